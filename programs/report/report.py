"""Show what runs learned on one page: curves, mistakes, calibration, attention, sonnets.

    python -m programs.report runs/sst-full-model-gpt2-mini-1a2b3c4d --out report.html
    python -m programs.report runs/sst-* --sentence "a warm and funny film" --out sst.html

The page is one file that needs no other one. Of a single run it shows all there is; several are
compared: those that differ in their seed alone are one method, whose mean and standard deviation
it gives, and each two methods on the same dev rows are told apart by a paired bootstrap (Koehn
2004) and McNemar's test (1947). Dev rows are predicted anew, by each run's best epoch.
"""

from dataclasses import dataclass

from engine.errors import InputError, Parser, command, notice

# isort: split

from engine.files import atomic_write, check_writable
from engine.parallel import start_worker
from engine.throughput import count_parameters
from programs.decoding.verse_marks import MarkedSonnet, has_dictionary, mark
from programs.report import charts, statistics
from programs.report.attention import Maps, maps
from programs.report.comparison import compared, pairs
from programs.report.outputs import Classified, classified, load, poems, token_ids_of
from programs.report.page import render
from programs.report.runs import PRETRAIN, Run, read_runs
from programs.tasks import TASKS

WRONG = 10  # examples of mistakes
NO_BEST = "There is no best.safetensors in this folder, so nothing could be predicted anew."
NO_DEV = "A pre-training run has no task, so there is nothing to predict."


@dataclass(frozen=True)
class Section:
    """What the page shows of one run; without a model the reason why there is no more."""

    run: Run
    curves: list[str]
    missing: str = ""
    parameters: int = 0
    classified: Classified | None = None
    attention: Maps | None = None
    poems: list[tuple[str, MarkedSonnet, MarkedSonnet | None]] | None = None

    @property
    def id(self) -> str:
        return self.run.path.name

    @property
    def command(self) -> str | None:
        return self.run.config.get("command")

    @property
    def mistakes(self) -> "Mistakes | None":
        return Mistakes(self.classified, self.id) if self.classified else None


class Mistakes:
    """The figures of a classifier's dev rows, each computed where the page asks for it."""

    def __init__(self, found: Classified, name: str):
        self.found, self.names = found, found.names
        self.confusion = statistics.confusion(found.labels, found.predicted, len(found.names))
        self.bins, self.ece = statistics.calibration(found.labels, found.probabilities)
        self.reliability = charts.reliability(f"reliability-{name}", self.bins)
        self.accuracy = statistics.Share("all", int(found.right.sum()), len(found.right))
        self.by_label = statistics.by_label(found.labels, found.predicted, found.names)
        self.by_length = statistics.by_length(found.lengths, found.right)

    @property
    def worst(self) -> list[dict]:
        found = self.found
        rows = statistics.most_confidently_wrong(found.labels, found.probabilities, WRONG)
        return [
            {
                "text": found.texts[i],
                "gold": found.names[found.labels[i]],
                "predicted": found.names[found.predicted[i]],
                "confidence": found.probabilities[i].max(),
                "of_gold": found.probabilities[i][found.labels[i]],
            }
            for i in rows
        ]


def section(run: Run, sentence: str | None, *, whole: bool) -> Section:
    """whole: with attention and sonnets, which a comparison of many leaves out."""
    best = int(run.best["epoch"])
    curves = charts.curves(f"curves-{run.path.name}", run.history, run.metric, best)
    if run.task == PRETRAIN or not run.best_file.is_file():
        return Section(run, curves, missing=NO_DEV if run.task == PRETRAIN else NO_BEST)
    loaded = load(run)
    shown = {"parameters": count_parameters(loaded.model)}
    if run.task != "sonnet":
        shown["classified"] = classified(loaded)
    elif whole:
        marked = has_dictionary()
        shown["poems"] = [
            (number, mark(text, marked), mark(gold, marked) if gold else None)
            for number, text, gold in poems(run, loaded)
        ]
    if whole:
        text = sentence or example(shown)
        shown["attention"] = maps(loaded.model.gpt, token_ids_of(loaded, text), loaded.tokenizer)
    return Section(run, curves, **shown)


def example(shown: dict) -> str:
    """A text to look at: of middle length among the dev rows, or a sonnet's first line."""
    if "poems" in shown:
        return shown["poems"][0][1].verses[0].text
    order = shown["classified"].lengths.argsort(kind="stable")
    return shown["classified"].texts[order[len(order) // 2]]


def get_args(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's folder")
    parser.add_argument("--out", default="report.html", help="the page")
    parser.add_argument("--sentence", help="whose attention to show; of pairs: FIRST / SECOND")
    return parser.parse_args(argv)


@command
def main():
    args = get_args()
    check_writable(args.out)
    start_worker(use_gpu=False)
    runs = read_runs(args.runs)
    if args.sentence is not None and not args.sentence.strip():
        raise InputError("--sentence is empty: give a text, or leave it out")
    sections = []
    for run in runs:
        notice(f"reading {run.path}")
        sections.append(section(run, args.sentence, whole=len(runs) == 1 or bool(args.sentence)))
    groups = compared(runs)
    found = {s.run.path: s.classified for s in sections if s.classified}
    page = render(
        sections=sections,
        groups=groups,
        pairs=pairs(groups, found),
        tasks=TASKS,
        marked=any(s.poems for s in sections) and has_dictionary(),
    )
    with atomic_write(args.out) as file:
        file.write(page)
    print(f"{args.out}: {len(runs)} run{'s' * (len(runs) > 1)}, {len(page) / 1e6:.2f} MB")
    print(f"next: open {args.out} in a browser")
