"""DPO: of two answers to a prompt, the chosen one shall gain on the rejected one.

    L = −log σ(β log π(y_w|x)/π_ref(y_w|x) − β log π(y_l|x)/π_ref(y_l|x))     Rafailov et al., eq. 7

y_w is the chosen, y_l the rejected answer to x; log π(y|x) is a sum over the tokens of an answer,
its end token too, and none of x. `--loss` has IPO, ORPO and SimPO as well: preference_losses.py.
π_ref is the model at the start, without what --extension adds: its log-probabilities are computed
once and stand in the file of pairs. The log has the accuracy of the implicit rewards β log π/π_ref,
that is, how often the chosen answer's is the larger (train acc is that, too), and their margin.
--resume goes on where an interruption came, in training or in the building of pairs before it.

Rafailov et al. 2023, "Direct Preference Optimization: Your Language Model is Secretly a Reward
Model". Differs from the paper in the pairs, which nobody judged (preference_pairs.py makes them of
right answers and wrong ones), and in that dropout is off, so that π begins as π_ref.

    python -m programs.dpo --checkpoint runs/sonnet-…/best.safetensors --use_gpu
    python -m programs.dpo --task paraphrase --checkpoint runs/paraphrase-…/best.safetensors
"""

from collections import Counter

from engine.errors import InputError, Parser, command
from engine.hub import load_tokenizer
from engine.parallel import seed_everything

# isort: split

import torch
from tqdm import tqdm

from engine.batches import to_device
from engine.checkpoint import RunFolder
from engine.flags import (
    add_data_dir,
    add_fit_arguments,
    add_sampling_arguments,
    check_fit_flags,
    check_range,
    check_sampling,
    fit_options,
    in_data_dir,
)
from engine.inputs import run_inputs
from engine.parallel import Worker, joined_worker, seed_worker
from engine.records import data_path
from engine.settings import Settings
from engine.training import fit
from programs.dpo.data import (
    KINDS,
    PREFERENCES,
    make_loader,
    objective,
    precision,
    prepare_pairs,
)
from programs.dpo.losses import CHOSEN, REJECTED
from programs.further_training import check_extensions, extended, run_folder, start_model
from programs.tasks import TASKS
from sonnet_generation import add_split_paths

BETAS = {"dpo": 0.1, "ipo": 0.1, "orpo": 0.1, "simpo": 2.0}
LEFT_OUT = ("examples", "pairs_only")  # flags that change nothing of the result


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
    seed_worker(args.seed, worker)
    training = make_loader(args, pairs["train"], worker)
    tokenizer = load_tokenizer(args.model_size)
    folder.inputs = run_inputs(model, tokenizer, {"train": training, "dev": dev})
    fit(
        model.to(worker.device),
        training,
        loss_fn=aim.loss,
        evaluate=lambda m: evaluate(args, m, dev, worker),
        options=fit_options(args, metric="dev_loss", maximize=False),
        folder=folder,
        worker=worker,
        extensions=extensions,
        forward=lambda m, batch: aim.scores(dev.dataset.log_probs(m, batch), batch),
    )


def run(args, worker: Worker) -> None:
    """Build the pairs, look at them, train."""
    seed_everything(args.seed)
    task = TASKS[args.task]
    model, args = start_model(task, args)
    model.to(worker.device)
    check_extensions(args)
    folder = run_folder(task, args, worker, method=args.loss, left_out=LEFT_OUT)
    if worker.is_main:
        print(f"{args.loss}: beta {args.beta:g}, lr {args.lr:g}, checkpoints in {folder.path}")
    pairs, resume = prepare_pairs(args, model, folder, worker)
    if not args.pairs_only:
        train(args.replace(resume=resume), model, pairs, folder, worker)
    if worker.is_main:
        after = f"python {' '.join(task.command)} --checkpoint {folder.best}"
        if args.pairs_only:
            after = f"python -m programs.dpo … --pairs {folder.path / 'pairs-train.jsonl'}"
        print(f"next: {after}")


def get_args(argv=None):
    parser = Parser(__doc__, conflict_handler="resolve")
    parser.add_argument("--task", choices=PREFERENCES, default="sonnet")
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
    args = in_data_dir(Settings.parse(parser, argv))
    check_fit_flags(args)
    check_sampling(args)
    for name in ("examples", "gamma"):
        check_range(args, name, 0)
    args = args.replace(beta=BETAS[args.loss] if args.beta is None else args.beta)
    if not 0 < args.beta < float("inf"):
        raise InputError(f"--beta {args.beta}: expected a number above 0")
    return args


def add_data_arguments(parser) -> None:
    group = parser.add_argument_group("data, and how sonnets are sampled")
    add_split_paths(group)
    group.add_argument("--para_train", default=data_path("paraphrase", "train"))
    group.add_argument("--para_dev", default=data_path("paraphrase", "dev"))
    add_data_dir(parser)
    add_sampling_arguments(group)


@command
def main():
    args = get_args()
    with joined_worker(args.use_gpu) as worker:
        run(args, worker)
