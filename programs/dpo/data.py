"""The pairs of a run of `programs.dpo`: built for its task, with log π_ref, kept in its folder.

While they are built, texts that were sampled and log-probabilities stand in pairs-unfinished.jsonl
there: an interrupted run takes them over. As soon as pairs-train.jsonl and pairs-dev.jsonl are
whole it goes, and a resumed run trains on these, the very numbers that it has seen before.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path

import torch

import paraphrase_detection
from engine.batches import BatchLoader, LengthBuckets, to_device
from engine.checkpoint import RunFolder
from engine.completion import complete
from engine.errors import InputError
from engine.hub import load_tokenizer
from engine.mixed_precision import autocast
from engine.parallel import Worker, barrier
from engine.records import Record
from engine.sonnets import split_sonnets
from programs.dpo.batches import PairDataset, TextPairs, WordPairs
from programs.dpo.losses import Objective
from programs.dpo.pairs import (
    CORRUPTIONS,
    Pair,
    corrupted_pairs,
    load_pairs,
    sampled_pairs,
    save_pairs,
    shown,
    yes_no_pairs,
)
from programs.unfinished_work import Unfinished, digest, weights_digest

KINDS = ("sampled", *CORRUPTIONS)
SPLITS = ("train", "dev")
PROMPTS = 16  # that are sampled from at once
SAVES = 50  # of a split's log π_ref, at most


def sonnet_pairs(args, model, splits, *, work: Unfinished, say) -> dict[str, list[Pair]]:
    """Of each kind as many as there are sonnets, but for those that a corruption leaves alone."""
    sonnets = split_sonnets(args, say)
    pairs = {split: [] for split in splits}
    for split in splits:
        for kind in args.kinds:
            if kind == "sampled":
                texts = sample(args, model, sonnets[split], name=f"sample, {split}", work=work)
                pairs[split] += sampled_pairs(sonnets[split], texts)
            else:
                pairs[split] += corrupted_pairs(sonnets[split], kind, args.seed)
    return pairs


def sample(args, model, sonnets: list[Record], *, name: str, work: Unfinished) -> list[Record]:
    """The sonnets' first lines as the model goes on from them; each batch has its own seed."""

    def make(some: list[Record], start: int) -> list[str]:
        own = args.replace(seed=args.seed + start, held_out_sonnet_path=args.sonnet_path)
        completed = complete(model, some, own)
        return [sonnet.text for sonnet in completed]

    texts = work.made(name, sonnets, size=PROMPTS, make=make)
    return [replace(sonnet, text=text) for sonnet, text in zip(sonnets, texts, strict=True)]


def paraphrase_pairs(args, model, splits, *, work: Unfinished, say) -> dict[str, list[Pair]]:
    """The right word against the wrong one, of every row."""
    task, pairs = paraphrase_detection.TASK, {}
    for split in splits:
        path = getattr(args, f"para_{split}")
        rows = task.read(path, labelled=True, say=say)[: args.limit]
        prompts = [paraphrase_detection.cloze_prompt(r.sentence1, r.sentence2) for r in rows]
        ids, labels = [r.sent_id for r in rows], [r.label for r in rows]
        pairs[split] = yes_no_pairs(prompts, ids, labels)
    return pairs


@dataclass(frozen=True)
class Preferences:
    """How a task's pairs are made and read."""

    build_pairs: Callable
    dataset: type[PairDataset]
    files: tuple[str, ...]  # the flags of what pairs are built from


PREFERENCES = {
    "sonnet": Preferences(
        sonnet_pairs, TextPairs, ("sonnet_path", "held_out_sonnet_path", "dev_gold_path")
    ),
    "paraphrase": Preferences(paraphrase_pairs, WordPairs, ("para_train", "para_dev")),
}


def prepare_pairs(args, model, folder: RunFolder, worker: Worker):
    """(pairs, resume): of train and dev, with log π_ref where it is wanted.

    resume: whether training goes on; where nothing was trained yet, it begins.
    """
    paths = {split: folder.path / f"pairs-{split}.jsonl" for split in SPLITS}
    unfinished = folder.path / "pairs-unfinished.jsonl"
    goes_on = args.resume and unfinished.exists()
    whole = all(path.exists() for path in paths.values())
    untrained = args.resume and (goes_on or (whole and not folder.last.exists()))
    barrier(worker)  # until all workers have looked
    built = not args.resume or goes_on
    resume = args.resume and not untrained
    folder.start(resume)
    datasets = {}
    if worker.is_main and built:
        work = Unfinished(unfinished, facts(args, model, worker), resume=goes_on)
        if goes_on:
            print(f"resumed: {len(work)} texts and pairs of log-probabilities are there already")
        datasets = keep_pairs(args, model, paths, worker=worker, work=work)
    barrier(worker)
    datasets = datasets or {split: tokenized(args, model, path) for split, path in paths.items()}
    return datasets, resume


def facts(args, model, worker: Worker) -> dict:
    """What decides the pairs of a run, beside the flags, by which its folder is named."""
    paths = [getattr(args, name) for name in PREFERENCES[args.task].files] + [args.pairs]
    data = [Path(path).read_bytes() for path in paths if path and Path(path).is_file()]
    return {
        "model": weights_digest(model),
        "device": worker.device.type,
        "data": digest(*data),
    }


def keep_pairs(args, model, paths: dict, *, worker: Worker, work: Unfinished) -> dict:
    """Build the pairs, save and show them; returns them as the model reads them."""
    pairs, datasets = build_pairs(args, model, work=work, say=print), {}
    work.save()  # until the last file is whole, none is taken for it
    for split, path in paths.items():
        save_pairs(path, pairs[split])
        datasets[split] = tokenized(args, model, path)
        if objective(args).has_reference:
            name = f"reference, {split}"
            scored = with_reference(
                args, model, datasets[split], name=name, worker=worker, work=work
            )
            datasets[split].pairs = scored
            save_pairs(path, scored)
        kinds = Counter(pair.kind for pair in pairs[split])
        listed = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        print(f"{split}: {len(pairs[split])} pairs ({listed}) in {path}")
    work.remove()
    if args.examples:
        print(shown(examples(pairs["train"], args.examples)))
    return datasets


def examples(pairs: list[Pair], count: int) -> list[Pair]:
    """The first `count` prompts, with the first pair of each kind."""
    kinds = dict.fromkeys(pair.kind for pair in pairs)
    by_kind = {kind: [p for p in pairs if p.kind == kind][:count] for kind in kinds}
    return [pair for group in zip_longest(*by_kind.values()) for pair in group if pair]


def build_pairs(args, model, *, work: Unfinished, say) -> dict[str, list[Pair]]:
    """Those of train out of --pairs, if that is given."""
    given = {}
    if args.pairs:
        given["train"] = [replace(pair, reference=None) for pair in load_pairs(args.pairs)]
    splits = [split for split in SPLITS if split not in given]
    pairs = given | PREFERENCES[args.task].build_pairs(args, model, splits, work=work, say=say)
    for split in splits:
        if not pairs[split]:
            raise InputError(f"no pair is left for {split}: give more data or other --kinds")
    return pairs


@torch.no_grad()
def with_reference(
    args, model, dataset: PairDataset, *, name: str, worker: Worker, work: Unfinished
) -> list[Pair]:
    """The pairs with log π_ref of both answers, computed with the precision of training."""
    model.eval()

    def make(batches: list[list[int]], _) -> list:
        """[the number of a pair, its log π_ref] of each pair in these batches."""
        found = []
        for batch in BatchLoader(dataset, batches, collate=dataset.collate):
            with precision(args, worker):
                log_probs = dataset.log_probs(model, to_device(batch, worker.device))
            found += zip(batch["indices"], log_probs.tolist(), strict=True)
        return found

    batches = list(LengthBuckets(dataset.lengths, args.batch_size, shuffle=False))
    found = dict(work.made(name, batches, size=-(-len(batches) // SAVES), make=make))
    return [replace(pair, reference=found[i]) for i, pair in enumerate(dataset.pairs)]


def objective(args) -> Objective:
    return Objective(args.loss, args.beta, args.gamma)


def precision(args, worker: Worker):
    return autocast(args, worker.device)


def tokenized(args, model, path) -> PairDataset:
    """The pairs of a file, as the model reads them."""
    limit = model.gpt.config.max_position_embeddings
    tokenizer = load_tokenizer(args.model_size)
    return PREFERENCES[args.task].dataset(load_pairs(path), tokenizer, limit, where=path)


def make_loader(args, dataset: PairDataset, worker: Worker | None = None):
    """Batches of --batch_size pairs; for a worker they are shuffled, and its share of all."""
    share = {"rank": worker.rank, "workers": worker.world_size} if worker else {"shuffle": False}
    buckets = LengthBuckets(dataset.lengths, args.batch_size, seed=args.seed, **share)
    return BatchLoader(dataset, buckets, collate=dataset.collate)
