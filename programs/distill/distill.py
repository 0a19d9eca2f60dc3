"""Distillation: a small model learns what a larger one, or an ensemble, says of the training texts.

    L = α T² KL(p ‖ q) + (1 − α) H(y, q₁)                     Hinton et al. 2015, section 2
    p, q = softmax(z / T), softmax(x / T)                     eq. 1

z are the teachers' logits, x the student's, y the true labels; H is the task's own cross-entropy,
of q₁, the student at T = 1. T² keeps the size of the gradient whatever T is. Several teachers are
averaged as in programs.ensemble, each at temperature T. In a sonnet every token is such a row.

What follows `--` is a run of the student's task, with all of its flags, and it is one: it resumes,
keeps its best epoch by the dev figures against the true labels, and predicts. `train loss` is L.

Hinton, Vinyals & Dean 2015, "Distilling the Knowledge in a Neural Network". Differs from the paper
in nothing but the KL divergence, whose gradient is that of its cross-entropy: losses.py.

    python -m programs.distill --teacher runs/one/best.safetensors \\
        --teacher runs/other/best.safetensors --temperature 2 --alpha 0.9 \\
        -- classifier.py --dataset sst --fine-tune-mode full-model --model_size gpt2
"""

import sys
from collections import Counter

from engine.errors import InputError, Parser, command

# isort: split

from engine.batches import IGNORED_LABEL
from engine.checkpoint import load_tree
from engine.flags import check_range
from engine.parallel import Worker, joined_worker
from engine.run_report import Report, reporting
from engine.settings import Settings
from engine.task import Task, run
from engine.trees import tree_digest
from programs.distill.losses import imitation_loss, soft_targets
from programs.distill.teachers import make_teachers
from programs.ensemble.weights import POOLS
from programs.tasks import PROGRAMS, TASKS, named_program, split_command


class Distilled:
    """A task whose runs learn from teachers, too; in all else it is the task itself."""

    def __init__(self, task: Task, teachers, *, temperature: float, alpha: float, pool: str):
        self.task, self.teachers = task, teachers
        self.temperature, self.alpha, self.pool = temperature, alpha, pool

    def __getattr__(self, name: str):
        return getattr(self.task, name)

    def run_name(self, settings: Settings) -> str:
        return f"distilled-{self.task.run_name(settings)}"

    def trained_part(self, settings, model, loaders, worker):
        """The task's own, its training batches with what the teachers say."""
        part, loaders, forward = self.task.trained_part(settings, model, loaders, worker)
        return part, loaders | {"train": self.teachers.beside(loaders["train"])}, forward

    def loss_fn(self, logits, batch: dict):
        """L summed over a training batch's targets, in nats; the task evaluates by its own loss."""
        if self.alpha == 0:
            return self.task.loss_fn(logits, batch)
        imitation = self.imitation(logits, batch)
        if self.alpha == 1:
            return imitation
        return self.alpha * imitation + (1 - self.alpha) * self.task.loss_fn(logits, batch)

    def imitation(self, logits, batch: dict):
        """T² KL(p ‖ q) summed over the batch's targets: padding is none, nor is a text's end."""
        targets = soft_targets(self.teachers.logits(batch), self.temperature, self.pool)
        losses = imitation_loss(logits.flatten(0, -2), targets, self.temperature)
        return (losses * (batch["labels"].flatten() != IGNORED_LABEL)).sum()


def describe(task: Task, path: str) -> str:
    """A teacher in a line: its checkpoint, and the dev figure of the epoch that was kept."""
    settings = load_tree(path, only="settings")["settings"]
    figure = load_tree(path, only="metrics").get("metrics", {}).get(task.metric)
    said = "" if figure is None else f", {task.metric.replace('_', ' ')} {figure:.3f}"
    return f"teacher {path}: {settings['model_size']}{said}"


def distil(args, settings: Settings, worker: Worker, report: Report) -> None:
    """Ask the teachers, then run the student's task."""
    teachers = make_teachers(args.task, args.teacher, settings, worker)
    for path in args.teacher:
        report.text(describe(args.task, path))
    how = {name: getattr(args, name) for name in ("temperature", "alpha", "pool")}
    digests = {path: tree_digest(path) for path in args.teacher}
    settings = settings.replace(distillation=how | {"teachers": digests})
    run(Distilled(args.task, teachers, **how), settings, worker, report)


def student_task(words: list[str]) -> tuple[Task, Settings]:
    """The task that `PROGRAM.py its flags` trains, and its settings."""
    program, flags = named_program(words)
    settings = PROGRAMS[program].get_args(flags)
    task = TASKS.get(getattr(settings, "dataset", PROGRAMS[program].name))
    if task is None:
        raise InputError(f"{program}: teachers have one task: add --dataset sst or cfimdb")
    for flag in ("checkpoint", task.trial):
        if getattr(settings, flag):
            raise InputError(f"--{flag}: a student is trained, and nothing else: leave it out")
    return task, settings


def get_args(argv=None):
    """(args, settings): this program's flags with the student's task, and the settings of that."""
    own, task_words = split_command(sys.argv[1:] if argv is None else list(argv))
    parser = Parser(
        __doc__,
        usage="python -m programs.distill --teacher FILE … [options] -- PROGRAM.py [flags]",
    )
    parser.add_argument(
        "--teacher",
        action="append",
        required=True,
        metavar="FILE",
        help="a best.safetensors of the same task; several are an ensemble",
    )
    parser.add_argument("--temperature", type=float, default=2.0, help="T, above 0")
    parser.add_argument("--alpha", type=float, default=0.9, help="share of imitation, from 0 to 1")
    parser.add_argument("--pool", choices=POOLS, default="log", help="mean of several teachers")
    args = parser.parse_args(own)
    check_range(args, "alpha", 0, 1)
    if not 0 < args.temperature < float("inf"):
        raise InputError(f"--temperature {args.temperature}: expected a number above 0")
    for path, count in Counter(args.teacher).items():
        if count > 1:
            raise InputError(f"--teacher {path}: stands twice: give each teacher once")
    args.teacher.sort()  # so that the order of the flags changes no bit
    args.task, settings = student_task(task_words)
    return args, settings


@command
def main():
    args, settings = get_args()
    with joined_worker(settings.use_gpu) as worker, reporting(settings, worker) as report:
        distil(args, settings, worker, report)
