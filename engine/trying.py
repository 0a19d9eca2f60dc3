"""A trained model on texts of one's own: `--text`, `--pair` and `--prompt` of the tasks.

The answer is for the terminal, or with `--json` one JSON object a line.
"""

import json
import sys
from collections.abc import Iterable
from pathlib import Path

import torch

from engine.batches import collate, forward_tokens, to_device
from engine.completion import complete
from engine.errors import InputError, printable
from engine.own_texts import given_prompt
from engine.signals import Stopped
from engine.sonnets import prompt_text
from engine.trees import load_tree

BAR = 32  # characters of a bar for probability 1
UNFINISHED = "\ufffd"  # what the decoder gives for a part of a character
EIGHTHS = " ▏▎▍▌▋▊▉"


def add_trial_arguments(parser, flag: str, **options) -> None:
    """The flag whose texts are tried, which may be given several times."""
    group = parser.add_argument_group("trying a trained model, by default the newest")
    group.add_argument(flag, action="append", **options)


def check_untrained(args, flag: str) -> None:
    """Refuse what says how to train beside a flag that trains nothing."""
    if getattr(args, flag, None):
        for name in ("extension", "resume"):
            if getattr(args, name):
                raise InputError(f"--{name} with --{flag}: nothing is trained: leave one out")


def checkpoint_to_try(tasks: Iterable, settings) -> tuple:
    """(task, best file): --checkpoint and its task, or the newest run of these tasks."""
    by_name = {task.name: task for task in tasks}
    if settings.checkpoint:
        name = load_tree(settings.checkpoint, only="task").get("task")
        return by_name.get(name, next(iter(by_name.values()))), Path(settings.checkpoint)
    found = [
        (path.stat().st_mtime, name, path)
        for name in by_name
        for path in Path(settings.runs_dir).glob(f"{name}-*/best.safetensors")
    ]
    if not found:
        raise InputError(
            f"{settings.runs_dir}: no run of {' or '.join(by_name)} is there yet: train first, or "
            f"give --checkpoint FILE"
        )
    _, name, path = max(found)
    return by_name[name], path


def continue_sonnet(model, path: str, settings) -> None:
    """Print samples that go on from the first three lines, each token as it is drawn."""
    prompt, where = given_prompt(path), f"--prompt {path}"
    for seed in range(settings.seed, settings.seed + settings.n):
        aloud = Aloud(model.tokenizer)
        stop = None if settings.json else aloud
        drawn = settings.replace(seed=seed)
        try:
            [sonnet] = complete(model, [prompt], drawn, where=where, stop=stop)
        except (KeyboardInterrupt, Stopped):
            say("" if settings.json else "\n")  # what is said of the end begins a line
            raise
        if settings.json:
            say_answer({"prompt": prompt_text(prompt), "text": sonnet.text, "seed": seed}, True)
        else:
            say_aloud(f"{sonnet.text[len(aloud.said) :]}\n\n")  # the last token


class Aloud:
    """Prints a growing text; a character that needs more tokens waits for them."""

    def __init__(self, tokenizer):
        self.tokenizer, self.said = tokenizer, ""

    def __call__(self, tokens) -> bool:
        text = self.tokenizer.decode(tokens, skip_special_tokens=True)
        if not text.endswith(UNFINISHED):
            say_aloud(text[len(self.said) :])
            self.said = text
        return False


@torch.no_grad()
def class_probabilities(model, token_ids: list[int], device) -> list[float]:
    """What the model thinks of each class for one text."""
    model.eval()
    row = {"index": 0, "sent_id": "", "label": None, "token_ids": token_ids}
    logits = forward_tokens(model, to_device(collate([row]), device))
    return logits[0].float().softmax(dim=-1).tolist()


def classified(
    text: str, classes: list[str], probabilities: list[float], tokens: list[str]
) -> dict:
    """The answer about one text, as `--json` prints it."""
    predicted = classes[max(range(len(classes)), key=probabilities.__getitem__)]
    by_class = {name: round(p, 6) for name, p in zip(classes, probabilities, strict=True)}
    return {"text": text, "predicted": predicted, "probabilities": by_class, "tokens": tokens}


def drawn(answer: dict) -> str:
    """The same for a terminal: a bar for each class, then the tokens between bars."""
    width = max(map(len, answer["probabilities"]))
    lines = [printable(answer["text"])]
    for name, probability in answer["probabilities"].items():
        mark = "→" if name == answer["predicted"] else " "
        lines.append(f"{mark} {name:>{width}}  {probability:6.1%}  {bar(probability)}")
    tokens = [printable(token) for token in answer["tokens"]]
    return "\n".join([*lines, f"  {len(tokens)} tokens: {'|'.join(tokens)}", ""])


def bar(share: float) -> str:
    """A share of 1 as a bar, to an eighth of a character."""
    whole, part = divmod(round(share * BAR * 8), 8)
    return "█" * whole + (EIGHTHS[part] if part else "")


def say_answer(answer: dict, as_json: bool) -> None:
    say(f"{json.dumps(answer, ensure_ascii=False) if as_json else drawn(answer)}\n")


def say_aloud(text: str) -> None:
    """Say verses, without what a terminal would obey."""
    say("\n".join(map(printable, text.split("\n"))))


def say(text: str) -> None:
    """Write to the standard output, at once also into a pipe."""
    sys.stdout.write(text)
    sys.stdout.flush()
