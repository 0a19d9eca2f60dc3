"""What the study of programs runs: checkpoints of three tasks, and programs on them.

Each function starts programs as a person would and gives figures by name, read from files that the
programs leave: reports, metrics.jsonl, predictions.
"""

import contextlib
import hashlib
import json
import shutil
import tempfile
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

from engine.prediction_files import ANSWER_TOKENS
from engine.records import NUM_LABELS, data_file, read_pairs, read_sentiment, read_sonnets
from engine.sonnets import partners
from evaluation import sonnet_report
from studies.programs_data import GOLD, SMALL, WHOLE, prepare
from studies.study import SCHEDULE, Study, argv_of, fine_tune, history, metric_of, start, train

MODEL = "gpt2-mini"
RATE = 3e-4  # the better one of two for each task: studies/results/pretraining_pays.json
EPOCHS = {"sst": 2, "paraphrase": 2}  # of checkpoints, in place of the studies' own number
OF_SONNETS = ("chrf", "lines_14_share", "distinct_2")
UNROUNDED = "quantize --bits 16"  # measures a checkpoint as it is
TRIALS = 8
SPACE = {"lr": "log:1e-4..3e-3", "hidden_dropout_prob": "0.0..0.5"}


class ProgramsStudy(Study):
    """A study with a folder for its data and checkpoints, another one for other settings."""

    def __init__(self, args):
        super().__init__(args)
        settings = [args.data_dir, args.limit, args.bf16, self.results["checkpoint"]]
        digest = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:8]
        self.root = Path(args.folder).resolve() / digest
        prepare(args.data_dir, self.root, args.limit)

    def on(self, data) -> Namespace:
        """The flags with other data, whose number of rows is decided already."""
        return Namespace(**vars(self.args) | {"data_dir": str(self.root / data), "limit": None})

    def program(self, name: str, *argv) -> None:
        """Run one of programs/."""
        start(self.args, ["-m", f"programs.{name}", *argv])

    @property
    def gpu(self) -> list[str]:
        return ["--use_gpu"] * self.args.use_gpu

    @property
    def bf16(self) -> list[str]:
        return ["--bf16"] * self.args.bf16


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="bench-programs-") as folder:
        yield Path(folder)


def model_flags(epochs: int | None = None) -> list[str]:
    return ["--model_size", MODEL, *(["--epochs", str(epochs)] if epochs else [])]


def checkpoint(study: ProgramsStudy, name: str, seed: int) -> Path:
    """A task's best.safetensors, trained now if it was not before."""
    place = study.root / f"{name}-{seed}"
    if not place.is_dir():
        unfinished = place.with_suffix(".unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        flags = model_flags(EPOCHS.get(name))
        run = train(study.on(WHOLE), name, flags, unfinished, seed=seed, lr=RATE)
        (run / "last.safetensors").unlink(missing_ok=True)
        unfinished.rename(place)
    [path] = place.glob("*/best.safetensors")
    return path


# -- quantize, ensemble, augment -------------------------------------------------------------------


def rounded(
    study: ProgramsStudy, name: str, words: str, *, seed: int = 0, path: Path | None = None
) -> dict[str, float]:
    """A seed's checkpoint, or another one, as a program makes it; speed: times that of before."""
    program, *flags = words.split()
    path = path or checkpoint(study, name, seed)
    with scratch() as folder:
        out = folder / "integers.safetensors"
        flags += ["--checkpoint", path, "--out", out, "--data_dir", study.root / WHOLE]
        study.program(program, *flags, "--batch_size", 32, *study.gpu)
        report = json.loads(Path(f"{out}.json").read_text(encoding="utf-8"))
    before, after, metric = report["before"], report["after"], metric_of(name)
    return {
        metric: after[metric],
        "megabytes": after["megabytes"],
        "speed": before["seconds"] / after["seconds"],
    }


def together(study: ProgramsStudy, name: str, seeds, flags=()) -> dict[str, float]:
    """Dev accuracy of the mean of several seeds' logits."""
    argv = ["--task", name, "--dev_only", "--data_dir", study.root / WHOLE, *flags]
    for seed in seeds:
        argv += ["--checkpoint", checkpoint(study, name, seed)]
    with scratch() as folder:
        out = folder / "dev.csv"
        study.program("ensemble", *argv, "--dev_out", out, "--runs_dir", study.root, *study.gpu)
        return {"dev_acc": accuracy(out, dev_values(study, name))}


def dev_values(study: ProgramsStudy, name: str) -> dict[str, str]:
    """What a prediction file should say, by id."""
    path = study.root / WHOLE / data_file(name, "dev")
    if name == "paraphrase":
        pairs = read_pairs(path, labelled=True).records
        return {pair.sent_id: str(ANSWER_TOKENS[pair.label]) for pair in pairs}
    records = read_sentiment(path, NUM_LABELS[name])
    return {record.sent_id: str(record.label) for record in records}


def accuracy(path: Path, expected: dict[str, str]) -> float:
    _, *lines = path.read_text(encoding="utf-8").splitlines()
    predicted = dict(line.replace(" ", "").split(",") for line in lines)
    return sum(predicted[sent_id] == value for sent_id, value in expected.items()) / len(expected)


def as_trained(study: ProgramsStudy, name: str, *, seed: int) -> dict[str, float]:
    """A checkpoint's run, as `augmented` has it of others."""
    return {"dev_acc": history(checkpoint(study, name, seed).parent)[-1]["dev_acc"]}


def augmented(study: ProgramsStudy, name: str, words: str, *, epochs: int, seed: int) -> dict:
    """Dev accuracy after the last epoch, as a choice among more epochs would be an advantage."""
    source = study.root / (WHOLE if name == "paraphrase" else SMALL)
    with scratch() as folder:
        data = folder / "data" if words else source
        if words:
            flags = [*words.split(), "--seed", seed, "--data_dir", source, "--out_dir", data]
            study.program("augment", "--task", name, *flags)
        run = train(study.on(data), name, model_flags(epochs), folder, seed=seed, lr=RATE)
        return {"dev_acc": history(run)[-1]["dev_acc"]}


# -- sonnets ---------------------------------------------------------------------------------------


def written(study: ProgramsStudy, path: Path) -> dict[str, float]:
    """Figures of a file of continued dev sonnets."""
    generated, gold = read_sonnets(path), study.root / WHOLE / GOLD
    report = sonnet_report(generated, partners(generated, read_sonnets(gold), path, gold))
    return {name: report[name] for name in OF_SONNETS}


def outputs(folder: Path) -> list:
    return ["--dev_sonnet_out", folder / "dev.txt", "--sonnet_out", folder / "other.txt"]


def preferring(study: ProgramsStudy, words: str, *, seed: int) -> dict[str, float]:
    """The sonnets' checkpoint after dpo with these flags; without any, as it is."""
    path, data = checkpoint(study, "sonnet", seed), ["--data_dir", study.root / WHOLE]
    with scratch() as folder:
        if words:
            flags = [*words.split(), "--checkpoint", path, "--data_dir", study.root / SMALL]
            flags += ["--seed", seed, "--runs_dir", folder, *SCHEDULE]
            study.program("dpo", *flags, *study.bf16, *study.gpu)
            [path] = folder.glob("*/best.safetensors")
        perplexity = rounded(study, "sonnet", UNROUNDED, path=path)["dev_perplexity"]
        flags = ["--checkpoint", path, "--seed", seed, *data, *outputs(folder), *study.gpu]
        start(study.args, ["sonnet_generation.py", *flags])
        return {"dev_perplexity": perplexity, **written(study, folder / "dev.txt")}


def decoded(study: ProgramsStudy, strategy: str, *, seed: int) -> dict[str, float]:
    flags = ["--checkpoint", checkpoint(study, "sonnet", seed), "--strategy", strategy]
    with scratch() as folder:
        flags += ["--seed", seed, "--data_dir", study.root / WHOLE, *outputs(folder)]
        study.program("decoding", *flags, *study.gpu)
        return written(study, folder / "dev.txt")


# -- search ----------------------------------------------------------------------------------------


def searched(study: ProgramsStudy, seed: int) -> dict[str, float]:
    """The figure and the flags of the best trial; an interrupted search goes on."""
    own = [*model_flags(), "--data_dir", study.root / SMALL, "--seed", seed, *SCHEDULE]
    program = [*argv_of("sst"), *own, *study.bf16, *study.gpu]
    flags = ["--trials", TRIALS, "--space", *(f"{name}={text}" for name, text in SPACE.items())]
    flags += ["--study", f"sst-{seed}", "--seed", seed, "--runs_dir", study.root]
    study.program("search", *flags, "--", *program)
    trials = []
    for path in (study.root / "search" / f"sst-{seed}").glob("trial-*/*/metrics.jsonl"):
        settings = json.loads(path.with_name("config.json").read_text(encoding="utf-8"))
        best = max(record["dev_acc"] for record in history(path.parent))
        trials.append({"dev_acc": best, **{name: settings[name] for name in SPACE}})
    return max(trials, key=lambda trial: trial["dev_acc"])


def tuned(study: ProgramsStudy, lr: float, flags=(), *, seed: int) -> dict[str, float]:
    """A run as the trials are."""

    def flags_of(*_):
        return [*model_flags(), *flags]

    return {"dev_acc": fine_tune(study.on(SMALL), "sst", flags_of, seed=seed, lr=lr)}
