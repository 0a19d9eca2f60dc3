"""See it work in minutes, without network: `make demo`.

gpt2-mini, the small GPT-2 that this project pre-trained and brings along, is fine-tuned by the same
programs as GPT-2 itself: it learns sentiment (SST), then to complete sonnets, of which two are
shown. At the end stand dev texts with what was predicted of them, right and wrong.
The course's data are used if they are in data/, else data/sample. No figure here is GPT-2's.
"""

import shlex
import sys
from pathlib import Path

from engine.errors import Parser, command

# isort: split

from classifier import TASKS
from engine.children import start_child
from engine.files import ROOT
from engine.flags import length_limit
from engine.hub import load_tokenizer
from engine.prediction_files import read_predictions
from engine.records import Record, data_file
from engine.settings import Settings
from engine.trying import checkpoint_to_try, class_probabilities

OUT = Path("runs/demo")
RIGHT, WRONG = 3, 2  # dev texts that are shown, if there are as many
MODEL = ["--model_size", "gpt2-mini", "--schedule", "linear", "--warmup", "0.1"]
SENTIMENT = ["--dataset", "sst", "--fine-tune-mode", "full-model"]
SONNETS = ["--lr", "5e-4", "--temperature", "0.8", "--max_new_tokens", "160"]
# For three minutes at most on two CPU cores.
COURSE = {
    "sst": ["--epochs", "1", "--batch_size", "32", "--lr", "1e-3"],
    "sonnet": ["--epochs", "3"],
}
SAMPLE = {"sst": ["--epochs", "5", "--lr", "5e-4"], "sonnet": ["--epochs", "5"]}


def run(program: str, data: Path, *flags: str) -> None:
    """Run a task's program as a person would; all of its outputs go to runs/demo."""
    words = [program, *MODEL, *flags, "--data_dir", str(data), "--runs_dir", str(OUT)]
    print("\npython", shlex.join(words), flush=True)
    code = start_child(words, cwd=ROOT).wait()
    if code:
        sys.exit(code)


def examples(rows: list[Record], predicted: dict[str, int]) -> list[Record]:
    """Right rows, then wrong ones: three and two, or more of one kind for want of the other."""
    right = [row for row in rows if predicted[row.sent_id] == row.label]
    wrong = [row for row in rows if predicted[row.sent_id] != row.label]
    few_wrong = wrong[: max(WRONG, RIGHT + WRONG - len(right))]
    return right[: RIGHT + WRONG - len(few_wrong)] + few_wrong


def show_examples(data: Path, predictions: Path) -> None:
    """Print dev texts with their class, the predicted one, and how sure the model is."""
    runs = Settings({"checkpoint": None, "runs_dir": str(ROOT / OUT)})
    task, best = checkpoint_to_try([TASKS["sst"]], runs)
    model, settings = task.load(best)
    tokenizer, limit = load_tokenizer(settings.model_size), length_limit(settings, model)
    path = ROOT / data / data_file(task.name, "dev")
    rows = task.read(path, labelled=True, say=print)
    predicted = read_predictions(predictions, task.column).classes
    print("\nDev texts, and what the model that learnt sentiment says of them")
    for row in examples(rows, predicted):
        [token_ids] = task.tokens(tokenizer, [row], limit, where=path, say=print)
        found = predicted[row.sent_id]
        share = class_probabilities(model, token_ids, "cpu")[found]
        gold, said = task.class_names[row.label], task.class_names[found]
        mark = "right" if found == row.label else "wrong"
        print(f"\n{row.text}\n  {mark}: {said} (probability {share:.3f}), gold: {gold}")
    words = [*task.command, "--checkpoint", str(best.relative_to(ROOT)), f"--{task.trial}"]
    print(f"\nnext: {shlex.join(['python', *words, *task.trial_texts])}")


@command
def main():
    Parser(__doc__).parse_args()
    data, flags = Path("data"), COURSE
    if not (ROOT / data / data_file("sst", "train")).exists():
        data, flags = data / "sample", SAMPLE
    outputs = {name: str(OUT / f"{name}.txt") for name in ("dev_sonnet_out", "sonnet_out")}
    print("gpt2-mini, this project's own small GPT-2 (pretrained/gpt2-mini), learns sentiment ...")
    files = [f"--{split}_out={OUT / f'sst-{split}-out.csv'}" for split in ("dev", "test")]
    run("classifier.py", data, *SENTIMENT, *flags["sst"], *files)
    print("\n... and sonnets")
    files = [f"--{flag}={path}" for flag, path in outputs.items()]
    run("sonnet_generation.py", data, *SONNETS, *flags["sonnet"], *files)
    show_examples(data, ROOT / OUT / "sst-dev-out.csv")


if __name__ == "__main__":
    main()
