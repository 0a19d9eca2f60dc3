"""Sonnets, told apart by their opening lines: prompts, partners, splits, the null baseline.

A model is given a sonnet's first three lines, its prompt. Numbers differ from file to file, so a
sonnet is known in another file by the letters of these lines.
"""

import random
import re
from collections import defaultdict
from pathlib import Path

from engine.errors import InputError
from engine.records import Record, read_sonnets, warn_of_rows_in_both

PROMPT_LINES = 3


def verses(text: str) -> list[str]:
    """The lines that are not blank."""
    return [line for line in text.splitlines() if line.strip()]


def opening_lines(sonnet: Record) -> list[str]:
    """The first three lines, blank ones not counted: those that a model is given."""
    return verses(sonnet.text)[:PROMPT_LINES]


def opening(sonnet: Record, lines: int = PROMPT_LINES) -> str:
    """The letters of a sonnet's first lines, by which it is known in another file."""
    return re.sub(r"[\W_]+", "", "".join(opening_lines(sonnet)[:lines]).lower())


def openings(sonnet: Record) -> set[str]:
    """Its openings of one, two and three lines, among them that of its prompt."""
    return {opening(sonnet, lines) for lines in range(1, PROMPT_LINES + 1)}


def prompt_text(sonnet: Record) -> str:
    """The opening lines as the text that a model continues."""
    return "\n".join(opening_lines(sonnet)) + "\n"


def continuation(sonnet: Record, lines: int = PROMPT_LINES) -> Record:
    """What a model added to the first lines that it was given."""
    return Record(sonnet.sent_id, "\n".join(verses(sonnet.text)[lines:]))


def partners(sonnets: list[Record], others: list[Record], path, other_path) -> list[Record]:
    """For each sonnet, the other one with the same opening lines: as many as a model was given.

    That number is not known, so those with more lines in common become partners first. A sonnet of
    either file that has no partner, or may have several, is an error.
    """
    found, free = {}, others
    for lines in range(PROMPT_LINES, 0, -1):
        alike = defaultdict(list)
        for other in free:
            alike[opening(other, lines)].append(other)
        for i, sonnet in enumerate(sonnets):
            if i not in found and len(alike[opening(sonnet, lines)]) == 1:
                found[i] = alike[opening(sonnet, lines)].pop()
        free = [other for group in alike.values() for other in group]
    lone = [sonnet for i, sonnet in enumerate(sonnets) if i not in found]
    for here, there, left in ((path, other_path, lone), (other_path, path, free)):
        if left:
            numbers = ", ".join(sonnet.sent_id for sonnet in left)
            raise InputError(
                f"{here}: sonnet {numbers} without a partner: expected exactly one sonnet with the "
                f"same opening lines in {there}: compare files of the same prompts"
            )
    return [found[i] for i in range(len(sonnets))]


def null_baseline(
    prompts: list[Record], training: list[Record], *, where, seed: int = 11711
) -> list[Record]:
    """Each prompt with random lines of training sonnets up to 14: what no model at all scores.

    where: the file of the training sonnets. No line is drawn twice.
    """
    draw = random.Random(seed)
    lines = [line for sonnet in training for line in verses(sonnet.text)]
    completed = []
    for prompt in prompts:
        given = opening_lines(prompt)
        missing = 14 - len(given)
        if len(lines) < missing:
            raise InputError(
                f"{where}: {len(lines)} lines in all, expected at least {missing} for the baseline "
                f"of random lines: complete the file"
            )
        text = "\n".join([*given, *draw.sample(lines, missing)])
        completed.append(Record(prompt.sent_id, text))
    return completed


def split_sonnets(settings, say) -> dict[str, list[Record]]:
    """Sonnets to learn from (train) and to choose the best epoch by (dev).

    settings: sonnet_path, dev_gold_path, held_out_sonnet_path and limit. A dev sonnet that is also
    a held-out prompt is left out: it would let the choice look at a test text. Without the dev
    sonnets' full text, the last tenth of train serves.
    """
    training, gold_path = read_sonnets(settings.sonnet_path), settings.dev_gold_path
    if Path(gold_path).exists():
        prompts = {opening(sonnet) for sonnet in read_sonnets(settings.held_out_sonnet_path)}
        gold = read_sonnets(gold_path)
        dev = [sonnet for sonnet in gold if not openings(sonnet) & prompts]
        warn_of_rows_in_both(training, dev, {"train": settings.sonnet_path, "dev": gold_path}, say)
        if tested := [sonnet.sent_id for sonnet in gold if openings(sonnet) & prompts]:
            say(
                f"dev sonnet {', '.join(tested)}: a held-out prompt too, not used to choose an "
                f"epoch"
            )
    else:
        tenth = max(len(training) // 10, 1)
        training, dev = training[:-tenth], training[-tenth:]
        say(f"{gold_path}: not there, the last {len(dev)} of train choose the epoch")
    if not dev or not training:
        raise InputError(
            f"{settings.sonnet_path}: too few sonnets to train on and to choose an epoch by"
        )
    return {"train": training[: settings.limit], "dev": dev[: settings.limit]}


def dev_gold(settings) -> list[Record]:
    """The full text of the dev prompts, in their order; [] without the file of it."""
    prompts_path, gold_path = settings.dev_sonnet_path, settings.dev_gold_path
    if not Path(gold_path).exists():
        return []
    pairs = read_sonnets(prompts_path), read_sonnets(gold_path)
    return partners(*pairs, prompts_path, gold_path)[: settings.limit]


def random_lines(settings, prompts: list[Record]) -> list[Record]:
    """The null baseline of these prompts, out of the training sonnets."""
    path = settings.sonnet_path
    return null_baseline(prompts, read_sonnets(path), where=path)
