"""DPO: of two answers to a prompt, the chosen one shall gain on the rejected one.

    L = −log σ(β log π(y_w|x)/π_ref(y_w|x) − β log π(y_l|x)/π_ref(y_l|x))     Rafailov et al., eq. 7

y_w is the chosen, y_l the rejected answer to x; log π(y|x) is a sum over the tokens of an answer,
its end token too, and none of x. `--loss` has IPO, ORPO and SimPO as well: preference_losses.py.
π_ref is the model at the start, without what --extension adds: its log-probabilities are computed
once and stand in the file of pairs. The log has the accuracy of the implicit rewards β log π/π_ref,
that is, how often the chosen answer's is the larger (train acc is that, too), and their margin.

Rafailov et al. 2023, "Direct Preference Optimization: Your Language Model is Secretly a Reward
Model". Differs from the paper in the pairs, which nobody judged (preference_pairs.py makes them of
right answers and wrong ones), and in that dropout is off, so that π begins as π_ref.

    python -m extensions.dpo --checkpoint runs/sonnet-…/best.safetensors --use_gpu
    python -m extensions.dpo --task paraphrase --checkpoint runs/paraphrase-…/best.safetensors
"""

import argparse
from argparse import Namespace
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from itertools import zip_longest
from pathlib import Path
from types import ModuleType

import torch
from torch import nn
from tqdm import tqdm

import paraphrase_detection
import sonnet_generation
from batches import LengthBuckets, batch_loader, to_device
from checkpoint import RunFolder, load_model
from corpus import save_tokenizer
from dataset import Record, read_pairs
from extensions.preference_batches import PairDataset, TextPairs, WordPairs
from extensions.preference_losses import CHOSEN, REJECTED, Objective
from extensions.preference_pairs import (
    CORRUPTIONS,
    Pair,
    corrupted_pairs,
    load_pairs,
    sampled_pairs,
    save_pairs,
    shown,
    yes_no_pairs,
)
from flags import (
    add_data_dir,
    add_fit_arguments,
    check_fit_flags,
    check_range,
    fit_options,
    load_extensions,
)
from parallel import Worker, joined_worker, wait_for_main
from training import Extension, apply_extensions, fit
from utils import InputError, command, load_tokenizer, seed_everything

BETAS = {"dpo": 0.1, "ipo": 0.1, "orpo": 0.1, "simpo": 2.0}
KINDS = ("sampled", *CORRUPTIONS)
PROMPTS = 16  # that are sampled from at once

# -- pairs -----------------------------------------------------------------------------------------


def sonnet_pairs(args, model, splits, say) -> dict[str, list[Pair]]:
    """Of each kind as many as there are sonnets, but for those that a corruption leaves alone."""
    sonnets = sonnet_generation.split_sonnets(args, say)
    pairs = {split: [] for split in splits}
    for split in splits:
        for kind in args.kinds:
            if kind == "sampled":
                pairs[split] += sampled_pairs(sonnets[split], sample(args, model, sonnets[split]))
            else:
                pairs[split] += corrupted_pairs(sonnets[split], kind, args.seed)
    return pairs


def sample(args, model, sonnets: list[Record]) -> list[Record]:
    """The sonnets' first lines as the model goes on from them, a batch at a time."""
    completed = []
    for start in tqdm(range(0, len(sonnets), PROMPTS), "sample", leave=False, disable=None):
        own = {"seed": args.seed + start, "held_out_sonnet_path": args.sonnet_path}
        some = sonnets[start : start + PROMPTS]
        completed += sonnet_generation.complete(model, some, Namespace(**vars(args) | own))
    return completed


def paraphrase_pairs(args, model, splits, say) -> dict[str, list[Pair]]:
    """The right word against the wrong one, of every row."""
    pairs = {}
    for split in splits:
        path = {"train": args.para_train, "dev": args.para_dev}[split]
        found = read_pairs(path, labelled=True)
        if found.dropped:
            say(f"{path}: incomplete rows are left out: {', '.join(found.dropped)}")
        records = found.records[: args.limit]
        prompts = [paraphrase_detection.cloze_prompt(r.sentence1, r.sentence2) for r in records]
        ids, labels = [r.sent_id for r in records], [r.label for r in records]
        pairs[split] = yes_no_pairs(prompts, ids, labels)
    return pairs


@dataclass(frozen=True)
class Task:
    module: ModuleType
    build_pairs: Callable
    dataset: type[PairDataset]


TASKS = {
    "sonnet": Task(sonnet_generation, sonnet_pairs, TextPairs),
    "paraphrase": Task(paraphrase_detection, paraphrase_pairs, WordPairs),
}


def prepare_pairs(args, model, folder: RunFolder, worker: Worker) -> dict[str, PairDataset]:
    """The pairs of train and dev, with log π_ref where it is wanted; kept in the run's folder.

    A resumed run finds them there, so that it sees the very numbers that it has seen before.
    """
    paths = {split: folder.path / f"pairs-{split}.jsonl" for split in ("train", "dev")}
    folder.start(args.resume)
    if worker.is_main and not args.resume:
        pairs = build_pairs(args, model, print)
        for split, path in paths.items():
            save_pairs(path, pairs[split])
            if objective(args).has_reference:
                save_pairs(path, with_reference(args, model, tokenised(args, model, path), worker))
            kinds = Counter(pair.kind for pair in pairs[split])
            listed = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
            print(f"{split}: {len(pairs[split])} pairs ({listed}) in {path}")
        if args.examples:
            print(shown(examples(pairs["train"], args.examples)))
    wait_for_main(worker)
    return {split: tokenised(args, model, path) for split, path in paths.items()}


def examples(pairs: list[Pair], count: int) -> list[Pair]:
    """The first `count` prompts, with the first pair of each kind."""
    kinds = dict.fromkeys(pair.kind for pair in pairs)
    by_kind = {kind: [p for p in pairs if p.kind == kind][:count] for kind in kinds}
    return [pair for group in zip_longest(*by_kind.values()) for pair in group if pair]


def build_pairs(args, model, say) -> dict[str, list[Pair]]:
    """Those of train out of --pairs, if that is given."""
    given = {}
    if args.pairs:
        given["train"] = [replace(pair, reference=None) for pair in load_pairs(args.pairs)]
    splits = [split for split in ("train", "dev") if split not in given]
    pairs = given | TASKS[args.task].build_pairs(args, model, splits, say)
    for split in splits:
        if not pairs[split]:
            raise InputError(f"no pair is left for {split}: give more data or other --kinds")
    return pairs


@torch.no_grad()
def with_reference(args, model, dataset: PairDataset, worker: Worker) -> list[Pair]:
    """The pairs with log π_ref of both answers, computed with the precision of training."""
    model.eval()
    found: dict[int, list[float]] = {}
    loader = make_loader(args, dataset)
    for batch in tqdm(loader, desc="reference", leave=False, disable=None):
        with precision(args, worker):
            log_probs = dataset.log_probs(model, to_device(batch, worker.device))
        found |= dict(zip(batch["indices"], log_probs.tolist(), strict=True))
    return [replace(pair, reference=found[i]) for i, pair in enumerate(dataset.pairs)]


def objective(args) -> Objective:
    return Objective(args.loss, args.beta, args.gamma)


def precision(args, worker: Worker):
    return torch.autocast(worker.device.type, dtype=torch.bfloat16, enabled=args.bf16)


def tokenised(args, model, path) -> PairDataset:
    """The pairs of a file, as the model reads them."""
    limit = model.gpt.config.max_position_embeddings
    tokenizer = load_tokenizer(args.model_size)
    return TASKS[args.task].dataset(load_pairs(path), tokenizer, limit, where=path)


def make_loader(args, dataset: PairDataset, worker: Worker | None = None):
    """Batches of --batch_size pairs; for a worker they are shuffled, and its share of all."""
    share = {"rank": worker.rank, "workers": worker.count} if worker else {"shuffle": False}
    buckets = LengthBuckets(dataset.lengths, args.batch_size, seed=args.seed, **share)
    return batch_loader(dataset, buckets, collate=dataset.collate)


# -- the run ---------------------------------------------------------------------------------------


def start_model(args):
    """The model to start from; what loading the result needs is noted in args."""
    module, args.started_with = TASKS[args.task].module, []
    if args.checkpoint:
        model, settings = load_model(args.checkpoint, args.task, module.build_model)
        for name in ("model_size", "gpt_config", "answer_tokens"):
            if hasattr(settings, name):
                setattr(args, name, getattr(settings, name))
        args.started_with = settings.extension
    else:
        if args.task == "paraphrase":
            tokenizer = load_tokenizer(args.model_size)
            args.answer_tokens = paraphrase_detection.answer_tokens(tokenizer)
        model = module.build_model(Namespace(**vars(args) | {"extension": []}))
        args.gpt_config = asdict(model.gpt.config)
    for part in model.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    return model


def run_folder(args, worker: Worker) -> RunFolder:
    """Its settings are those by which the task's own program loads the result."""
    settings = {**vars(args), "start": args.checkpoint}
    settings["extension"] = [*args.started_with, *args.extension]
    for name in ("examples", "pairs_only", "started_with"):
        del settings[name]
    name = f"{args.loss}-{Path(args.model_size).name}"
    return RunFolder(args.runs_dir, args.task, name, settings, writes=worker.is_main)


def extended(args, model, folder: RunFolder) -> list[Extension]:
    """Apply those of --extension; the checkpoint's own are in the model.

    A frozen backbone is no part of a result: where it was fine-tuned before, it is kept beside it
    as a folder in HuggingFace's format, which the result's `model_size` then names.
    """
    extensions = load_extensions(args.extension)
    if args.checkpoint and any(extension.freezes_backbone for extension in extensions):
        start = folder.path / "start"
        if folder.writes and not args.resume:
            tokenizer = load_tokenizer(args.model_size)
            model.gpt.save_pretrained(start, end_token=tokenizer.eos_token_id)
            save_tokenizer(tokenizer, start)
        folder.settings["model_size"] = str(start)
    apply_extensions(model, extensions)
    return extensions


def check_extensions(args) -> None:
    for flag, extension in zip(args.extension, load_extensions(args.extension), strict=True):
        if type(extension).penalty is not Extension.penalty:
            raise InputError(f"--extension {flag}: it acts on a task's loss, here there is another")
        if extension.freezes_backbone and args.started_with:
            raise InputError(
                f"--extension {flag}: {args.checkpoint} has {', '.join(args.started_with)}, whose "
                f"parameters are trained on: leave it out"
            )


@torch.no_grad()
def evaluate(args, model, loader, worker: Worker) -> dict:
    """Over dev pairs: the loss; accuracy and margin of the implicit rewards; then, of π alone, how
    often the chosen answer is the likelier one, and what it costs in nats a token."""
    model.eval()
    aim, totals = objective(args), Counter()
    for batch in tqdm(loader, desc="eval", leave=False, disable=None):
        batch = to_device(batch, worker.device)
        with precision(args, worker):
            log_probs = loader.dataset.log_probs(model, batch)
        scores = aim.scores(log_probs, batch)
        margins, nats = aim.margins(scores), -log_probs / batch["answer_lengths"]
        totals["dev_loss"] += float(aim.loss(scores))
        totals["dev_reward_acc"] += float((margins > 0).sum())
        totals["dev_reward_margin"] += float(margins.sum())
        totals["dev_acc"] += float((log_probs[:, CHOSEN] > log_probs[:, REJECTED]).sum())
        totals["dev_chosen_nll"] += float(nats[:, CHOSEN].sum())
    return {name: total / len(loader.dataset) for name, total in totals.items()}


def train(args, model, pairs: dict, folder: RunFolder, worker: Worker) -> None:
    """Optimise; afterwards the model holds the epoch of the lowest dev loss."""
    aim, dev = objective(args), make_loader(args, pairs["dev"])
    if worker.is_main and not args.resume:
        figures = evaluate(args, model, dev, worker)
        listed = ", ".join(f"{key.replace('_', ' ')} :: {figures[key]:.3f}" for key in figures)
        print(f"At the start: {listed}")
    torch.manual_seed(args.seed)
    extensions = extended(args, model, folder)
    torch.manual_seed(args.seed + worker.rank)
    fit(
        model.to(worker.device),
        make_loader(args, pairs["train"], worker),
        loss_fn=aim.loss,
        evaluate=lambda m: evaluate(args, m, dev, worker),
        options=fit_options(args, metric="dev_loss", maximise=False),
        folder=folder,
        worker=worker,
        extensions=extensions,
        forward=lambda m, batch: aim.scores(dev.dataset.log_probs(m, batch), batch),
    )


def run(args, worker: Worker) -> None:
    """Build the pairs, look at them, train."""
    seed_everything(args.seed)
    model = start_model(args).to(worker.device)
    check_extensions(args)
    folder = run_folder(args, worker)
    if worker.is_main:
        print(f"{args.loss}: beta {args.beta:g}, lr {args.lr:g}, checkpoints in {folder.path}")
    pairs = prepare_pairs(args, model, folder, worker)
    if not args.pairs_only:
        train(args, model, pairs, folder, worker)
    if worker.is_main:
        after = f"python {TASKS[args.task].module.__name__}.py --checkpoint {folder.best}"
        if args.pairs_only:
            after = f"python -m extensions.dpo … --pairs {folder.path / 'pairs-train.jsonl'}"
        print(f"next: {after}")


def get_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], conflict_handler="resolve"
    )
    parser.add_argument("--task", choices=TASKS, default="sonnet")
    parser.add_argument("--loss", choices=BETAS, default="dpo")
    betas = ", ".join(f"{name} {beta:g}" for name, beta in BETAS.items())
    parser.add_argument("--beta", type=float, help=f"ipo: τ, orpo: λ; default: {betas}")
    parser.add_argument("--gamma", type=float, default=1.0, help="simpo's margin")
    parser.add_argument(
        "--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="what is wrong with sonnets"
    )
    parser.add_argument("--pairs", metavar="FILE", help="JSON lines to train on instead")
    parser.add_argument("--pairs_only", action="store_true", help="build and save them, no more")
    parser.add_argument("--examples", type=int, default=1, help="prompts whose pairs are shown")
    add_data_arguments(parser)
    parser.add_argument("--seed", type=int, default=11711)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--use_gpu", action="store_true")
    parser.add_argument("--batch_size", type=int, default=8, help="pairs")
    parser.add_argument("--lr", type=float, default=1e-5)
    parser.add_argument("--model_size", default="gpt2", help="to start from, with no --checkpoint")
    add_fit_arguments(parser)
    parser.add_argument("--checkpoint", metavar="FILE", help="a best.safetensors to start from")
    args = parser.parse_args(argv)
    check_fit_flags(args)
    check_range(args, "temperature", 0)
    check_range(args, "top_p", 0, 1)
    for name in ("top_k", "examples", "gamma"):
        check_range(args, name, 0)
    check_range(args, "max_new_tokens", 1)
    args.beta = BETAS[args.loss] if args.beta is None else args.beta
    if not 0 < args.beta < float("inf"):
        raise InputError(f"--beta {args.beta}: expected a number above 0")
    return args


def add_data_arguments(parser) -> None:
    group = parser.add_argument_group("data, and how sonnets are sampled")
    group.add_argument("--sonnet_path", default="data/sonnets.txt")
    group.add_argument("--held_out_sonnet_path", default="data/sonnets_held_out.txt")
    group.add_argument("--dev_gold_path", default="data/TRUE_sonnets_held_out_dev.txt")
    group.add_argument("--para_train", default="data/quora-train.csv")
    group.add_argument("--para_dev", default="data/quora-dev.csv")
    add_data_dir(parser)
    group.add_argument("--temperature", type=float, default=1.2)
    group.add_argument("--top_p", type=float, default=0.9)
    group.add_argument("--top_k", type=int, default=0)
    group.add_argument("--max_new_tokens", type=int, default=256)


@command
def main():
    args = get_args()
    with joined_worker(args.use_gpu) as worker:
        run(args, worker)


if __name__ == "__main__":
    main()
