"""What the folder of a pre-trained model says of its making, stage after stage.

training.json   the figures and flags of the last stage; under "before" those of the checkpoint that
                it went on from, and so on
metrics.jsonl   an evaluation a line, of all stages, with the tokens read since the first one
curves.png      the same as a picture
"""

import json
from dataclasses import replace
from pathlib import Path

import torch

from config import GPT2Config
from engine.corpus import save_tokenizer
from engine.devices import hardware
from engine.errors import InputError, excerpt, is_number, quoted
from engine.files import atomic_write
from engine.hub import BUNDLED, save_gpt2
from engine.parallel import Worker
from engine.plots import loss_and_metric, picture
from engine.provenance import current_commit
from models.gpt2 import GPT2Model

DRAWN = ("epoch", "tokens", "train_loss", "bits_per_byte")  # numbers of each evaluation
FACTS_ONLY_HERE = {"gpt_config", "runs_dir", "out", "resume", "checkpoint"}  # of this machine


def tokens_per_step(args, worker: Worker) -> int:
    return args.batch_size * args.block * args.accumulate * worker.world_size


def write_making(out: Path, args, figures: dict, progress, worker: Worker) -> None:
    """Write the three files into a folder. progress: of `fit`, or None if nothing was trained.

    figures: the model's, of the whole validation text.
    """
    facts = dict(figures)
    earlier, records = read_making(args.init)
    if progress is not None:
        facts |= _stage(args, progress, worker)
        read = records[-1]["tokens"] if records else 0
        each = args.eval_every * tokens_per_step(args, worker)
        records += [r | {"tokens": read + (r["epoch"] + 1) * each} for r in progress.history]
        with atomic_write(out / "metrics.jsonl") as file:
            file.writelines(json.dumps(record) + "\n" for record in records)
        draw(records, out / "curves.png")
    with atomic_write(out / "training.json") as file:
        json.dump(facts | ({"before": earlier} if earlier else {}), file, indent=2)
        file.write("\n")


def save_model(out: Path, gpt: GPT2Model, tokenizer) -> None:
    """Write the model (with GPT-2's dropout again) and its tokenizer."""
    defaults = GPT2Config()
    gpt.config = replace(
        gpt.config,
        hidden_dropout_prob=defaults.hidden_dropout_prob,
        attention_probs_dropout_prob=defaults.attention_probs_dropout_prob,
    )
    save_gpt2(gpt, out, end_token=tokenizer.eos_token_id)
    save_tokenizer(tokenizer, out)


def read_making(checkpoint: str | None) -> tuple[dict, list[dict]]:
    """(facts, records) of a checkpoint that this project pre-trained; of any other ({}, [])."""
    folder = Path(BUNDLED.get(checkpoint, checkpoint or ""))
    facts, records = folder / "training.json", folder / "metrics.jsonl"
    if checkpoint is None or not facts.is_file() or not records.is_file():
        return {}, []
    [stages], evaluations = _objects(facts, whole=True), _objects(records)
    for number, record in enumerate(evaluations, start=1):
        if not all(is_number(record.get(name)) for name in DRAWN):
            raise InputError(
                f"{records}, line {number}: found {quoted(record)}, expected numbers under "
                f"{', '.join(DRAWN)}: copy the folder again"
            )
    return stages, evaluations


def _objects(path: Path, whole: bool = False) -> list[dict]:
    """The JSON object of a whole file, or one of each line."""
    try:
        text = path.read_text(encoding="utf-8")
        found = [json.loads(part) for part in ([text] if whole else text.splitlines())]
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: no JSON ({excerpt(error)}): copy the folder again") from error
    for value in found:
        if not isinstance(value, dict):
            raise InputError(f"{path}: found {quoted(value)}, expected JSON objects: copy it again")
    return found


def _stage(args, progress, worker: Worker) -> dict:
    """How a stage was trained; its weights are those of its best epoch."""
    steps = (progress.best_epoch + 1) * args.eval_every
    flags = {key: value for key, value in vars(args).items() if key not in FACTS_ONLY_HERE}
    for name in ("text", "valid"):
        flags[name] = [Path(file).name for file in flags[name]]
    return {
        "steps": steps,
        "tokens": steps * tokens_per_step(args, worker),
        "seconds": round(sum(record["seconds"] for record in progress.history)),
        "hardware": hardware(worker.device),
        "workers": worker.world_size,
        "torch": torch.__version__,
        "commit": current_commit(),
        "flags": flags,
    }


def draw(records: list[dict], path) -> None:
    """Bits a byte of validation text, and training loss, by tokens read."""
    tokens, losses, bits = (
        [record[key] for record in records] for key in ("tokens", "train_loss", "bits_per_byte")
    )
    millions = [count / 1e6 for count in tokens]
    with picture(path, 6, 3.5) as figure:
        left, right = loss_and_metric(figure, millions, losses, bits)
        left.set(xlabel="million tokens read", ylabel="training loss (nats a token)")
        right.set_ylabel("validation (bits a byte of text)")
        for end, record in zip(millions, records[1:], strict=False):
            if record["epoch"] == 0:  # of the next stage
                left.axvline(end, color="gray", linestyle=":")
