"""Ensembles: the classes that several checkpoints agree on, weighted equally or as dev has it best.

    log p(y|x) = Σ_m w_m log p_m(y|x) − log Z(x)    w_m = 1/M, or fitted: ensemble_weights.py

Members p_m are checkpoints of one task, of any seeds, sizes and techniques. With --both_orders each
is two members of paraphrase's ensemble: it is asked about the two questions in either order. What a
member says is computed once and kept in runs/ensemble/. --vote is a majority vote of prediction
files, in which the first file settles ties.

Heskes 1998, "Selecting Weighting Factors in Logarithmic Opinion Pools". Differs from the paper in
how weights are fitted (ensemble_weights.py), and in that `--pool linear` averages probabilities.

    python -m programs.ensemble --task paraphrase --weights fitted --both_orders --use_gpu \\
        --checkpoint runs/one/best.safetensors --checkpoint runs/other/best.safetensors
    python -m programs.ensemble --vote one.csv other.csv third.csv --out vote.csv
"""

from collections import Counter
from dataclasses import replace
from pathlib import Path

from engine.errors import InputError, Parser, command
from engine.files import check_writable

# isort: split

import torch
from tqdm import tqdm

from engine.classification import ClassificationTask
from engine.flags import check_range
from engine.parallel import joined_worker
from engine.prediction_files import (
    CLASSES,
    check_ids,
    read_predictions,
    write_predictions,
    write_record,
)
from engine.records import PairRecord, data_file
from evaluation import report_table
from programs.ensemble.members import Member
from programs.ensemble.weights import POOLS, cross_fitted, fit_weights, mean_loss
from programs.tasks import TASKS

CLASSIFICATION = {n: t for n, t in TASKS.items() if isinstance(t, ClassificationTask)}

# -- members ---------------------------------------------------------------------------------------


def swapped_questions(rows: list[PairRecord]) -> list[PairRecord]:
    return [replace(r, sentence1=r.sentence2, sentence2=r.sentence1) for r in rows]


def member_log_probs(args, path: str, records: dict[str, list], device) -> dict[str, dict]:
    """What a checkpoint says: {member: {split: (n, c)}}, a member for each order of questions."""
    where = {"runs_dir": args.runs_dir, "batch_size": args.batch_size}
    member = Member.load(TASKS[args.task], path, device, **where)
    found: dict[str, dict] = {}
    for swapped in (False, True) if args.both_orders else (False,):
        name = path.removesuffix("/best.safetensors") + ", swapped" * swapped
        found[name] = {
            split: member.log_probs(
                swapped_questions(rows) if swapped else rows, split, where=getattr(args, split)
            )
            for split, rows in records.items()
        }
    return found


# -- the two commands ------------------------------------------------------------------------------


def report(names: list[str], log_probs, labels, pool: str, fitted) -> str:
    """Loss and accuracy on dev of each member and of the ensembles."""

    def row(weight: float, pooled) -> dict[str, float]:
        right = (pooled.argmax(dim=-1) == labels).double().mean()
        loss = float(mean_loss(pooled, labels))
        return {"fitted_weight": weight, "dev_loss": loss, "dev_acc": float(right)}

    rows = {
        name: row(float(weight), said)
        for name, weight, said in zip(names, fitted, log_probs, strict=True)
    }
    uniform = torch.full_like(fitted, 1 / len(fitted))
    rows["together, uniform weights"] = row(1.0, POOLS[pool](log_probs, uniform))
    rows["together, fitted weights"] = row(1.0, POOLS[pool](log_probs, fitted))
    if len(labels) > 1:
        rows["together, fitted on other rows"] = row(1.0, cross_fitted(log_probs, labels, pool))
    return report_table(rows)


def predict_together(args, device) -> list[str]:
    """Write the ensemble's predictions; what to say about them."""
    outputs = {split: getattr(args, f"{split}_out") for split in args.splits}
    for path in outputs.values():
        check_writable(path)
    task = TASKS[args.task]
    records = {
        split: task.read(getattr(args, split), labelled=split == "dev", say=tqdm.write)
        for split in outputs
    }
    found: dict[str, dict] = {}
    paths = sorted(args.checkpoint)  # so that the order of the flags changes no bit
    for path in tqdm(paths, desc="members", leave=False, disable=None):
        found |= member_log_probs(args, path, records, device)
    said = {split: torch.stack([of[split] for of in found.values()]) for split in outputs}
    labels = torch.tensor([record.label for record in records["dev"]])
    fitted = fit_weights(said["dev"], labels, args.pool)
    weights = fitted if args.weights == "fitted" else torch.full_like(fitted, 1 / len(found))
    together = POOLS[args.pool](said["dev"], weights).argmax(dim=-1)
    accuracy = float((together == labels).double().mean())
    lines = [report(list(found), said["dev"], labels, args.pool, fitted)]
    for split, path in outputs.items():
        classes = POOLS[args.pool](said[split], weights).argmax(dim=-1).tolist()
        values = [task.classes[label] for label in classes]
        write_predictions(path, task.column, [row.sent_id for row in records[split]], values)
        write_record(Path(args.runs_dir) / "ensemble", path, args, {"acc": accuracy})
        lines.append(f"{split} predictions, {args.weights} weights, are in {path}")
    if args.weights == "fitted":
        lines.append("the weights know dev's labels: compare there by --weights uniform")
    return [*lines, f"next: {compare_command(args.dev, outputs['dev'])}"]


def vote(paths: list[str], out) -> str:
    """Write each row's most frequent class; of equally frequent ones the first file's."""
    check_writable(out)
    first, *others = (read_predictions(path) for path in paths)
    for other in others:
        read_predictions(other.path, first.column)
        check_ids(other.classes, first.classes, other.path, first.path)
    written = {label: value for value, label in CLASSES[first.column].items()}
    values = []
    for sent_id in first.classes:
        votes = Counter(file.classes[sent_id] for file in (first, *others))
        values.append(written[votes.most_common(1)[0][0]])
    write_predictions(out, first.column, list(first.classes), values)
    return f"the vote of {len(paths)} files is in {out}\nnext: {compare_command('GOLD', out)}"


def compare_command(gold, out) -> str:
    return f"python -m programs.significance --gold {gold} --a {out} --b FILE"


def get_args(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("--task", choices=CLASSIFICATION, help="that of the checkpoints")
    parser.add_argument("--checkpoint", action="append", default=[], metavar="FILE")
    parser.add_argument("--weights", choices=("uniform", "fitted"), default="uniform")
    parser.add_argument("--pool", choices=POOLS, default="log")
    parser.add_argument("--both_orders", action="store_true", help="paraphrase: ask twice, swapped")
    parser.add_argument("--vote", nargs="+", default=[], metavar="FILE", help="prediction files")
    parser.add_argument("--out", help="with --vote: where the predictions go")
    parser.add_argument("--data_dir", default="data")
    parser.add_argument("--dev", help="default: the task's file in --data_dir")
    parser.add_argument("--test", help="default: the task's file in --data_dir")
    parser.add_argument("--dev_out", help="default: predictions/ensemble-TASK-dev-out.csv")
    parser.add_argument("--test_out", help="default: predictions/ensemble-TASK-test-out.csv")
    parser.add_argument("--dev_only", action="store_true", help="leave the test file alone")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--runs_dir", default="runs", help="members' answers are kept below it")
    parser.add_argument("--use_gpu", action="store_true")
    args = parser.parse_args(argv)
    check_range(args, "batch_size", 1)
    if bool(args.vote) == bool(args.checkpoint) or bool(args.vote) != bool(args.out):
        raise InputError("expected either --checkpoint FILE (several times) or --vote FILES --out")
    if args.checkpoint and not args.task:
        raise InputError(f"--checkpoint: name the task, too: --task {' or '.join(CLASSIFICATION)}")
    if args.both_orders and args.task != "paraphrase":
        raise InputError(f"--both_orders: {args.task or 'a vote'} has no two questions to swap")
    for path, count in Counter([*args.checkpoint, *args.vote]).items():
        if count > 1:
            raise InputError(f"{path}: stands twice: give each member once")
    args.dev = args.dev or str(Path(args.data_dir) / data_file(args.task, "dev"))
    args.test = args.test or str(Path(args.data_dir) / data_file(args.task, "test"))
    args.splits = ["dev"] if args.dev_only else ["dev", "test"]
    for split in ("dev", "test"):
        default = f"predictions/ensemble-{args.task}-{split}-out.csv"
        setattr(args, f"{split}_out", getattr(args, f"{split}_out") or default)
    return args


@command
def main():
    args = get_args()
    if args.vote:
        print(vote(args.vote, args.out))
        return
    with joined_worker(args.use_gpu) as worker:
        for line in predict_together(args, worker.device):
            print(line)
