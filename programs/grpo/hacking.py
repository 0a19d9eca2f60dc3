"""Reward hacking, looked for: what is rewarded beside what is not, before and after.

A policy may raise a reward without better sonnets (Gao et al. 2022, "Scaling Laws for Reward Model
Overoptimization"). So the same samples are measured by quantities that no reward asks for; where
one of them gets worse while the reward rises, a warning says so.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass

from engine.batches import IGNORED_LABEL
from engine.records import Record
from engine.sonnets import continuation, opening_lines, verses
from evaluation import chrf, distinct_n
from programs.augment.leak_check import windows
from programs.decoding.sonnet_form import dictionary, last_word, words_of
from programs.grpo.losses import k3
from programs.grpo.rewards import NAMES
from programs.grpo.rollouts import Job, Samples, draw, known_log_probs
from sonnet_generation import TASK

COPIED = 4  # words running
RISES, FALLS, MOVES = "rises", "falls", "moves"


@dataclass(frozen=True)
class Watched:
    """A quantity that is not rewarded. It is worse if it rises, falls or moves by more than `most`.

    MOVES is relative to what it was before.
    """

    what: str
    worse_if: str
    most: float

    def is_worse(self, before: float, after: float) -> bool:
        change = after - before
        if self.worse_if == MOVES:
            return abs(change) > self.most * abs(before)
        return (change if self.worse_if == RISES else -change) > self.most


WATCHED = {
    "dev_loss": Watched("cross-entropy of the dev sonnets, nats a token", RISES, 0.05),
    "dev_kl": Watched("KL from the reference, nats a token", RISES, 0.1),
    "dev_copied": Watched(f"share of {COPIED}-grams from training sonnets", RISES, 0.02),
    "dev_distinct_2": Watched("distinct-2 over all samples", FALLS, 0.05),
    "dev_line_ends": Watched("distinct last words over all samples", FALLS, 0.05),
    "dev_real_words": Watched("share of words in the dictionary", FALLS, 0.02),
    "dev_tokens": Watched("tokens a sample", MOVES, 0.2),
    "dev_chrf": Watched("chrF against the true sonnets", FALLS, 1.0),
}


def rewarded(job: Job, samples: Samples) -> dict[str, float]:
    """The mean reward, and of each of its parts."""
    count = len(samples.figures)
    means = {"dev_reward": sum(f.total(job.weights) for f in samples.figures) / count}
    for name in NAMES:
        means[f"dev_{name}"] = sum(asdict(f)[name] for f in samples.figures) / count
    return means


def not_rewarded(job: Job, samples: Samples, gold: list[Record], copied: set) -> dict[str, float]:
    """All of `WATCHED` but the cross-entropy. gold: of each sample; copied: `word_grams`."""
    pairs = zip(samples.sonnets, gold, strict=True)
    added = [continuation(sonnet, len(opening_lines(origin))) for sonnet, origin in pairs]
    grams = [gram for sonnet in added for gram in word_grams([sonnet])]
    ends = [last_word(line) for sonnet in added for line in verses(sonnet.text)]
    words = [word for sonnet in added for word in words_of(sonnet.text)]
    written = samples.batch["answers"] != IGNORED_LABEL
    models = job.model, job.reference
    log_probs = [known_log_probs(job, model, samples.batch) for model in models]
    return {
        "dev_kl": float(k3(*log_probs)[written].mean()),
        "dev_copied": share(gram in copied for gram in grams),
        "dev_distinct_2": distinct_n(added, 2),
        "dev_line_ends": len(set(ends)) / max(len(ends), 1),
        "dev_real_words": share(bool(dictionary().phones_for_word(word)) for word in words),
        "dev_tokens": float(written.sum(dim=1).float().mean()),
        "dev_chrf": chrf(list(zip(samples.sonnets, gold, strict=True))),
    }


def share(truths: Iterable[bool]) -> float:
    truths = list(truths)
    return sum(truths) / max(len(truths), 1)


def word_grams(sonnets: list[Record]) -> set[tuple]:
    """The n-grams of words of these sonnets, from line to line; n is COPIED."""
    found = set()
    for sonnet in sonnets:
        found |= {gram for gram in windows(words_of(sonnet.text), COPIED) if len(gram) == COPIED}
    return found


class DevSet:
    """The dev sonnets, by which an epoch is judged: their prompts sampled, their text predicted."""

    def __init__(self, job: Job, sonnets: dict[str, list[Record]]):
        args, limit = job.args, job.model.gpt.config.max_position_embeddings
        settings = args.replace(shard=False)
        loaders = TASK.build_loaders(settings, job.model.tokenizer, limit, job.worker)
        self.job, self.loader, self.sonnets = job, loaders["dev"], sonnets["dev"]
        self.copied = word_grams(sonnets["train"])

    def measure(self) -> tuple[dict[str, float], Samples]:
        """What is rewarded and what is not, and the samples; the same draws of the same model."""
        job, copies = self.job, self.job.args.dev_samples
        samples = draw(job, self.sonnets, copies, f"{job.args.seed} dev")
        gold = [sonnet for sonnet in self.sonnets for _ in range(copies)]
        loss = TASK.evaluate(job.model, self.loader, job.device)["dev_loss"]
        figures = rewarded(job, samples) | {"dev_loss": loss}
        return figures | not_rewarded(job, samples, gold, self.copied), samples


def table(before: dict, after: dict) -> str:
    """Rewarded figures, then the others, one a line: before, after, the change."""
    worse = worsened(before, after)
    what = {"dev_reward": "reward"} | {f"dev_{name}": f"  {name}" for name in NAMES}
    groups = {"rewarded": what, "not rewarded": {n: w.what for n, w in WATCHED.items()}}
    width = max(len(text) for group in groups.values() for text in group.values())
    lines = []
    for title, group in groups.items():
        lines.append(f"{title:{width + 2}}{'before':>9}{'after':>9}{'change':>9}")
        for name, text in group.items():
            figures = f"{before[name]:9.3f}{after[name]:9.3f}{after[name] - before[name]:+9.3f}"
            lines.append(f"  {text:{width}}{figures}{'  worse' * (name in worse)}")
    return "\n".join(lines)


def worsened(before: dict, after: dict) -> list[str]:
    """Which of `WATCHED` are worse."""
    return [name for name, w in WATCHED.items() if w.is_worse(before[name], after[name])]


def warning(before: dict, after: dict) -> str:
    """Said of a reward that did not rise, or rose while other quantities got worse; else ""."""
    rise, worse = after["dev_reward"] - before["dev_reward"], worsened(before, after)
    if rise <= 0:
        return "warning: the reward did not rise on dev prompts: keep the model of the start"
    if not worse:
        return ""
    listed = "; ".join(f"{WATCHED[n].what} {before[n]:.3f} -> {after[n]:.3f}" for n in worse)
    return (
        f"warning: the reward rose by {rise:.3f} while these got worse: {listed}. The reward may "
        f"be hacked: read the samples; a larger --beta, fewer --epochs or a smaller --lr stay "
        f"nearer to the start"
    )
