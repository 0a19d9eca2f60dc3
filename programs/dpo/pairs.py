"""Preference pairs for `programs.dpo`: a prompt, a better answer and a worse one; built and read.

    {"sent_id": "18", "kind": "shuffled", "prompt": "Shall I …", "chosen": "…", "rejected": "…"}

A file has one such JSON object a line; a file of one's own needs only the last three. For sonnets
the better answer is the true continuation; the worse one is it with something wrong (CORRUPTIONS),
or what a model wrote. For paraphrase they are the right and the wrong word of "yes" and "no".
"""

import json
import random
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path

from engine.errors import InputError
from engine.files import atomic_write
from engine.records import Record
from engine.sonnets import PROMPT_LINES, continuation, opening_lines, prompt_text, verses
from engine.tables import read_text

RHYMES = "ababcdcdefefgg"
LAST_WORD = re.compile(r"([^\W_][\w'’-]*)(\W*)$")
ATTEMPTS = 1000  # orders of last words that are looked at before one is taken as it is


@dataclass(frozen=True)
class Pair:
    """One preference. reference: log π_ref of the two answers, [rejected, chosen], once known."""

    sent_id: str
    kind: str
    prompt: str
    chosen: str
    rejected: str
    reference: list[float] | None = None


# -- what can be wrong with a sonnet ---------------------------------------------------------------


def shuffled(lines: list[str], draw: random.Random) -> list[str]:
    """The lines in another order."""
    return draw.sample(lines, len(lines))


def truncated(lines: list[str], draw: random.Random) -> list[str]:
    """The first lines only, one at least."""
    return lines[: draw.randrange(1, len(lines))]


def repeated(lines: list[str], draw: random.Random) -> list[str]:
    """From some line on that line alone, as of a model that is caught in a loop."""
    start = draw.randrange(len(lines) - 1)
    return lines[:start] + [lines[start]] * (len(lines) - start)


def unrhymed(lines: list[str], draw: random.Random) -> list[str]:
    """The same lines with their last words exchanged, so that what rhymed no longer does.

    Where lines rhyme is taken from the scheme of Shakespeare's sonnets, after the prompt's lines;
    no line keeps a word of its own rhyme, as another line or the prompt may have its partner.
    """
    scheme = [RHYMES[(PROMPT_LINES + i) % len(RHYMES)] for i in range(len(lines))]
    for _ in range(ATTEMPTS):
        order = draw.sample(range(len(lines)), len(lines))
        rhymes = [scheme[i] for i in order]
        moved = all(new != old for new, old in zip(rhymes, scheme, strict=True))
        pairs = combinations(zip(rhymes, scheme, strict=True), 2)
        if moved and not any(one[0] == two[0] and one[1] == two[1] for one, two in pairs):
            break
    ends = [LAST_WORD.search(line) for line in lines]
    words = [end.group(1) if end else "" for end in ends]
    return [
        line[: end.start()] + words[i] + end.group(2) if end else line
        for line, end, i in zip(lines, ends, order, strict=True)
    ]


CORRUPTIONS: dict[str, Callable] = {
    "shuffled": shuffled,
    "truncated": truncated,
    "repeated": repeated,
    "unrhymed": unrhymed,
}


# -- building --------------------------------------------------------------------------------------


def answer(sonnet: Record, given: int) -> str:
    """What follows the given lines, as it is written; blank lines are not counted."""
    lines = sonnet.text.splitlines()
    ends = [i for i, line in enumerate(lines, start=1) if line.strip()]
    return "\n".join(lines[ends[given - 1] :]) if len(ends) >= given else ""


def corrupted_pairs(sonnets: list[Record], kind: str, seed: int) -> list[Pair]:
    """Each sonnet's continuation against itself with something wrong, if that changes it."""
    pairs = []
    for sonnet in sonnets:
        chosen = continuation(sonnet).text
        lines = verses(chosen)
        if len(lines) < 2:
            raise InputError(
                f"sonnet {sonnet.sent_id}: {len(lines)} lines after the prompt's {PROMPT_LINES}, "
                f"expected two or more: complete it or leave it out"
            )
        draw = random.Random(f"{seed} {kind} {sonnet.sent_id}")
        rejected = "\n".join(CORRUPTIONS[kind](lines, draw))
        pairs.append(Pair(sonnet.sent_id, kind, prompt_text(sonnet), chosen, rejected))
    return [pair for pair in pairs if pair.chosen != pair.rejected]


def sampled_pairs(sonnets: list[Record], completed: list[Record]) -> list[Pair]:
    """Each sonnet's continuation against that which a model wrote; `completed` has the prompt."""
    pairs = []
    for sonnet, sample in zip(sonnets, completed, strict=True):
        answers = [answer(text, len(opening_lines(sonnet))) for text in (sonnet, sample)]
        pairs.append(Pair(sonnet.sent_id, "sampled", prompt_text(sonnet), *answers))
    return [pair for pair in pairs if pair.chosen != pair.rejected]


def yes_no_pairs(prompts: list[str], sent_ids: list[str], labels: list[int]) -> list[Pair]:
    """Each question with its right answer (label 1: yes) against the wrong one."""
    answers = {0: ("no", "yes"), 1: ("yes", "no")}
    rows = zip(sent_ids, prompts, labels, strict=True)
    return [Pair(sent_id, "answer", prompt, *answers[label]) for sent_id, prompt, label in rows]


# -- files -----------------------------------------------------------------------------------------


def save_pairs(path, pairs: list[Pair]) -> None:
    """One JSON object a line."""
    with atomic_write(path) as file:
        for pair in pairs:
            fields = {key: value for key, value in asdict(pair).items() if value is not None}
            file.write(json.dumps(fields, ensure_ascii=False) + "\n")


def load_pairs(path) -> list[Pair]:
    """What `save_pairs` wrote, or a file of one's own with prompt, chosen and rejected."""
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file: expected pairs, as --pairs_only writes them")
    lines = read_text(path).split("\n")
    return [_parse(line, f"{path}, line {n}", n) for n, line in enumerate(lines, 1) if line.strip()]


def _parse(line: str, where: str, number: int) -> Pair:
    try:
        found = json.loads(line)
    except ValueError as error:
        raise InputError(f"{where}: no JSON ({error}): write one object a line") from error
    needed = ("prompt", "chosen", "rejected")
    texts = [found.get(name) if isinstance(found, dict) else None for name in needed]
    if not all(isinstance(text, str) for text in texts):
        raise InputError(f"{where}: expected an object with the texts {', '.join(needed)}: mend it")
    prompt, chosen, rejected = texts
    if not prompt or chosen == rejected:
        wrong = "two equal answers" if prompt else "an empty prompt"
        raise InputError(f"{where}: {wrong}: nothing can be learnt from it, mend or delete it")
    sent_id, kind = str(found.get("sent_id", number)), str(found.get("kind", "given"))
    return Pair(sent_id, kind, prompt, chosen, rejected, found.get("reference"))


def shown(pairs: list[Pair]) -> str:
    """Pairs for people's eyes; prompt and better answer stand once for all that share them."""
    lines, above = [], None
    for pair in pairs:
        texts = {"prompt": pair.prompt, "chosen": pair.chosen} if above != pair.chosen else {}
        texts[pair.kind] = pair.rejected or "(nothing)"
        lines += [f"  {key:9}  {' / '.join(text.splitlines())}" for key, text in texts.items()]
        above = pair.chosen
    return "\n".join(lines)
