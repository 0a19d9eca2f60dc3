"""GRPO: of several samples of one prompt, those gain whose reward is above their group's mean.

    J = 1/G Σ_i 1/|o_i| Σ_t [ min(ρ_it Â_i, clip(ρ_it, 1 − ε, 1 + ε) Â_i) − β D_it ]      eq. 3
    Â_i = (r_i − mean(r)) / std(r),    ρ = π/π_old,    D estimates KL(π ‖ π_ref), eq. 4

A step samples --group_size continuations of each of --batch_size prompts, scores them by rewards
that a program can check (rewards.py: lines, rhyme, syllables, no copied line, distinct words), and
makes --updates optimizer steps (μ) on them. π_ref is the model at the start, frozen. Samples are
drawn at temperature 1 from all tokens, as ρ is of that distribution.

An epoch is a pass over the prompts of the training sonnets; the one whose dev samples have the
highest mean reward is kept. A policy may raise the reward without better sonnets. So a table shows
it before and after, beside quantities that no reward asks for (hacking.py), and a warning names
those that got worse. In metrics.jsonl `train_acc` is the mean reward of the training samples.
--resume goes on where an interruption came.

Shao et al. 2024, "DeepSeekMath", section 4.1. Differs from the paper in that rewards are rules, in
that π_ref stays the start (the paper's algorithm 1 may renew it), and in that dropout is off.

    python -m programs.grpo --checkpoint runs/sonnet-…/best.safetensors --use_gpu
    python -m programs.grpo --checkpoint runs/sonnet-…/best.safetensors --weights rhyme=2,new=0
"""

from engine.errors import InputError, Parser, command
from engine.parallel import seed_everything

# isort: split

import torch

from engine.batches import TokenScores
from engine.completion import prompt_dataset
from engine.flags import (
    add_data_dir,
    add_fit_arguments,
    check_fit_flags,
    check_range,
    fit_options,
    in_data_dir,
)
from engine.inputs import run_inputs
from engine.length_buckets import LengthBuckets
from engine.parallel import Worker, joined_worker, seed_worker, world_size_of_torchrun
from engine.records import Record
from engine.run_report import epoch_line
from engine.settings import Settings
from engine.sonnets import split_sonnets
from engine.training import fit
from programs.decoding.sonnet_form import dictionary
from programs.further_training import (
    check_extensions,
    extended,
    run_folder,
    start_model,
    without_dropout,
)
from programs.grpo.hacking import DevSet, table, warning
from programs.grpo.losses import grpo_loss
from programs.grpo.rewards import NAMES, known_lines, parse_weights
from programs.grpo.rollouts import (
    Job,
    RolloutFolder,
    RolloutLoader,
    rollout,
    token_log_probs,
)
from programs.unfinished_work import digest
from sonnet_generation import TASK, add_split_paths

SHOWN = ("epoch", "train_loss", "train_reward", "dev_reward", "dev_loss", "dev_kl", "seconds")


def make_loader(job: Job, sonnets: list[Record], folder: RolloutFolder) -> RolloutLoader:
    """Batches of --batch_size prompts of training sonnets, drawn when it is their turn."""
    args, worker = job.args, job.worker
    prompts = prompt_dataset(job.model, sonnets, where=args.sonnet_path)
    share = {"rank": worker.rank, "workers": worker.world_size}
    sampler = LengthBuckets(prompts.lengths, args.batch_size, seed=args.seed, **share)

    def make(numbers: list[int], seed: str) -> dict:
        return rollout(job, [sonnets[i] for i in numbers], seed)

    folder.loader = RolloutLoader(prompts, sampler, args.updates, make, folder.kept_rollout)
    return folder.loader


def train(job: Job, sonnets: dict, dev: DevSet, folder: RolloutFolder) -> None:
    """Optimise; afterwards the model holds the epoch of the highest dev reward."""
    args, model, worker = job.args, job.model, job.worker
    torch.manual_seed(args.seed)
    extensions = extended(args, model, folder)
    without_dropout(model)
    model.to(worker.device)
    seed_worker(args.seed, worker)
    loader = make_loader(job, sonnets["train"], folder)
    folder.inputs = run_inputs(model, model.tokenizer, {"train": loader, "dev": dev.loader})
    folder.inputs |= {"training lines": digest(sorted(job.known))}

    def forward(network, batch: dict) -> TokenScores:
        log_probs = token_log_probs(network, batch)
        loss = grpo_loss(log_probs, batch, epsilon=args.epsilon, beta=args.beta)
        return TokenScores(loss, batch["rewards"].sum())

    def told(record: dict) -> None:
        record = record | {"train_reward": record["train_acc"]}
        print(epoch_line({name: record[name] for name in SHOWN}))

    fit(
        model,
        loader,
        loss_fn=lambda scores, batch: scores.loss,
        evaluate=lambda _: dev.measure()[0],
        options=fit_options(args, metric="dev_reward", maximize=True),
        folder=folder,
        worker=worker,
        extensions=extensions,
        forward=forward,
        on_epoch=told,
    )


def run(args, worker: Worker) -> None:
    """Measure the start, train, measure the best epoch, compare."""
    dictionary()
    seed_everything(args.seed)
    model, args = start_model(TASK, args)
    reference, _ = TASK.load(args.checkpoint)
    for part in (model, reference):
        part.to(worker.device)
    check_extensions(args)
    how = {"method": "grpo", "left_out": ("examples",), "kind": RolloutFolder}
    folder = run_folder(TASK, args, worker, **how)
    if folder.shorter_run() is None:
        folder.check_begun(args.resume)
    sonnets = split_sonnets(args, lambda line: None)  # the dev set says it
    known, weights = known_lines(sonnets["train"]), parse_weights(args.weights)
    job = Job(args, model, reference.eval(), weights, known, worker)
    dev = DevSet(job, sonnets)
    worker.say(f"grpo: beta {args.beta:g}, lr {args.lr:g}, checkpoints in {folder.path}")
    before, first = dev.measure()
    shown = [f"{n.replace('_', ' ')} :: {before[n]:.3f}" for n in SHOWN if n in before]
    worker.say(f"At the start: {', '.join(shown)}")
    train(job, sonnets, dev, folder)
    after, best = dev.measure()
    worker.say(f"The best epoch beside the start, on {len(best.sonnets)} samples of dev prompts:")
    worker.say(table(before, after))
    for i in range(min(args.examples, len(best.sonnets))):
        for when, samples in {"before": first, "after": best}.items():
            worker.say(f"\n{when}, reward {samples.figures[i].total(weights):.3f}:")
            worker.say(samples.sonnets[i].text)
    if said := warning(before, after):
        worker.say(f"\n{said}")
    worker.say(f"next: python {' '.join(TASK.command)} --checkpoint {folder.best}")


def get_args(argv=None):
    parser = Parser(__doc__, conflict_handler="resolve")
    group = parser.add_argument_group("the objective")
    group.add_argument("--group_size", type=int, default=8, help="samples of a prompt")
    group.add_argument("--updates", type=int, default=1, help="optimizer steps on a batch")
    group.add_argument("--epsilon", type=float, default=0.2, help="of the ratio's clip")
    group.add_argument("--beta", type=float, default=0.04, help="weight of the KL; 0: none")
    group.add_argument(
        "--weights",
        metavar="NAME=NUMBER,…",
        default="",
        help=f"of the rewards {', '.join(NAMES)}, each 1 if it is not named",
    )
    parser.add_argument("--examples", type=int, default=1, help="dev samples that are shown")
    parser.add_argument("--dev_samples", type=int, default=4, help="of each dev prompt")
    parser.add_argument("--max_new_tokens", type=int, default=256, help="of a sample, at most")
    parser.add_argument("--seed", type=int, default=11711)
    parser.add_argument("--epochs", type=int, default=3, help="passes over the training prompts")
    parser.add_argument("--use_gpu", action="store_true")
    parser.add_argument("--batch_size", type=int, default=8, help="prompts")
    parser.add_argument("--lr", type=float, default=1e-5)
    add_split_paths(parser)
    add_data_dir(parser)
    add_fit_arguments(parser)
    parser.add_argument(
        "--checkpoint", metavar="FILE", required=True, help="a sonnet run's best.safetensors"
    )
    args = in_data_dir(Settings.parse(parser, argv))
    check_fit_flags(args)
    check(args)
    return args


def check(args) -> None:
    """Refuse what makes no sense, before anything is loaded."""
    check_range(args, "group_size", 2)
    for name in ("updates", "dev_samples", "max_new_tokens"):
        check_range(args, name, 1)
    for name in ("examples", "beta"):
        check_range(args, name, 0)
    check_range(args, "epsilon", 0, 1)
    parse_weights(args.weights)
    if args.accumulate > 1:
        raise InputError(
            f"--accumulate {args.accumulate}: a step is on one batch of samples here: give a "
            f"larger --batch_size"
        )
    if args.updates > 1 and world_size_of_torchrun() > 1:
        raise InputError(
            f"--updates {args.updates}: with torchrun a batch serves for one update: leave one out"
        )


@command
def main():
    args = get_args()
    with joined_worker(args.use_gpu) as worker:
        run(args, worker)
