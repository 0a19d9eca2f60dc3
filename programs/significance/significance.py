"""Whether one system is better than another: paired bootstrap, McNemar's test, seeds' variance.

    paired bootstrap   the rows are drawn anew, with replacement, the same for both systems:
                       the share of draws in which A is the better one           Koehn 2004
    McNemar's test     b rows only A has right, c only B:  p = 2 P(X ≤ min(b, c)) for X of
                       Binomial(b + c, 1/2), at most 1                           McNemar 1947
    variances          Var over runs (seeds) of accuracy p, against p (1 − p) / n, the test
                       set's, had it been drawn anew;  P(A > B) over pairs of runs, which
                       should be at least 0.75          Bouthillier et al. 2021, sections 2 and 4

Koehn 2004, "Statistical Significance Tests for Machine Translation Evaluation"; McNemar 1947, "Note
on the Sampling Error of the Difference between Correlated Proportions"; Bouthillier et al. 2021,
"Accounting for Variance in Machine Learning Benchmarks". Differs from the papers: accuracy stands
in the place of BLEU, of several runs their mean; McNemar's test is the exact one and not his
approximation by χ²; of the sources of variance only seeds and test rows are looked at, by a second
interval for which the runs are drawn anew, too (a little too narrow if they are few).

    python -m programs.significance --gold data/quora-dev.csv --names LoRA plain \\
        --a lora-seed1.csv lora-seed2.csv --b plain-seed1.csv plain-seed2.csv
"""

import math
from dataclasses import dataclass

from engine.errors import InputError, Parser, command

# isort: split

import numpy as np

from engine.flags import check_range
from engine.prediction_files import check_ids, read_gold, read_predictions

CHUNK = 500  # draws at once
OUTPERFORMS = 0.75  # P(A > B) that is worth while: Bouthillier et al. 2021, section 4


def read_runs(paths: list[str], gold: dict[str, int], where, column: str) -> np.ndarray:
    """Which rows each of the files has right, (runs, n)."""
    if len(set(paths)) < len(paths):
        raise InputError(f"{', '.join(paths)}: a file stands twice: give each run once")
    right = []
    for path in paths:
        file = read_predictions(path, column)
        check_ids(file.classes, gold, path, where)
        right.append([file.classes[sent_id] == label for sent_id, label in gold.items()])
    return np.array(right)


# -- statistics ------------------------------------------------------------------------------------


def resampled_accuracies(right: np.ndarray, samples: int, rng) -> np.ndarray:
    """Each run's accuracy on test sets drawn from the rows of `right` (runs, n): (samples, runs).

    Rows that the runs have right and wrong alike are of one kind. How often each kind is drawn is
    multinomial, which is the same as drawing row by row, and the kinds are few.
    """
    n = right.shape[1]
    kinds, counts = np.unique(right, axis=1, return_counts=True)  # (runs, kinds)
    parts = []
    for start in range(0, samples, CHUNK):
        drawn = rng.multinomial(n, counts / n, size=min(CHUNK, samples - start))
        parts.append(drawn @ kinds.T.astype(float) / n)
    return np.concatenate(parts)


def resampled_means(accuracies: np.ndarray, rng) -> np.ndarray:
    """(samples, runs) -> for each sample the mean over runs that are drawn with replacement."""
    samples, runs = accuracies.shape
    drawn = rng.multinomial(runs, np.full(runs, 1 / runs), size=samples)
    return (accuracies * drawn).sum(axis=1) / runs


def mcnemar(only_a: int, only_b: int) -> float:
    """The exact two-sided p-value."""
    n = only_a + only_b
    tail = sum(math.comb(n, k) for k in range(min(only_a, only_b) + 1))
    return min(2 * tail / 2**n, 1.0)


def outperforming(a: np.ndarray, b: np.ndarray) -> float:
    """P(A > B) over all pairs of runs' accuracies, equal ones counted by half."""
    return float(np.mean((a[:, None] > b[None]) + 0.5 * (a[:, None] == b[None])))


@dataclass(frozen=True)
class Comparison:
    """A against B. Differences are A's mean accuracy less B's."""

    difference: float
    error: float  # standard deviation of the difference over drawn test sets
    interval: list[float]  # 95 %, the rows drawn anew
    better: float  # share of these draws in which A is better than B
    interval_runs: list[float] | None  # 95 %, the runs drawn anew, too; None: one run each
    outperforms: float | None
    tests: list[dict]  # McNemar's, run by run


def compare(a: np.ndarray, b: np.ndarray, *, samples: int, seed: int) -> Comparison:
    """a and b: (runs, n), which rows are right."""
    rng = np.random.default_rng(seed)
    drawn = resampled_accuracies(np.concatenate([a, b]), samples, rng)  # (samples, runs of both)
    of_a, of_b = drawn[:, : len(a)], drawn[:, len(a) :]
    differences = of_a.mean(axis=1) - of_b.mean(axis=1)
    many = len(a) > 1 or len(b) > 1
    if many:
        with_runs = resampled_means(of_a, rng) - resampled_means(of_b, rng)
    tests = []
    for one, other in zip(a, b, strict=False):
        only_a, only_b = int((one & ~other).sum()), int((other & ~one).sum())
        tests.append({"only_a": only_a, "only_b": only_b, "p": mcnemar(only_a, only_b)})
    return Comparison(
        difference=float(a.mean() - b.mean()),
        error=float(differences.std()),
        interval=np.quantile(differences, [0.025, 0.975]).tolist(),
        better=float(np.mean(differences > 1e-12)),
        interval_runs=np.quantile(with_runs, [0.025, 0.975]).tolist() if many else None,
        outperforms=outperforming(a.mean(axis=1), b.mean(axis=1)) if many else None,
        tests=tests,
    )


# -- the report ------------------------------------------------------------------------------------


def system_rows(systems: dict[str, np.ndarray]) -> list[list[str]]:
    """Accuracy, and its standard deviation by either source."""
    rows = [["system", "runs", "accuracy", "sd over runs", "sd of the test set"]]
    for name, right in systems.items():
        accuracies, n = right.mean(axis=1), right.shape[1]
        spread = f"{accuracies.std(ddof=1):.4f}" if len(right) > 1 else "–"
        test_set = math.sqrt(float(np.mean(accuracies * (1 - accuracies))) / n)
        rows.append([name, str(len(right)), f"{right.mean():.4f}", spread, f"{test_set:.4f}"])
    return rows


def comparison_rows(result: Comparison, names: list[str], samples: int) -> list[list[str]]:
    a, b = names

    def interval(low_high):
        return "from {:+.4f} to {:+.4f}".format(*low_high)

    rows = [[f"{a} against {b}", ""], ["difference of accuracy", f"{result.difference:+.4f}"]]
    rows += [["95 % interval, rows drawn anew", interval(result.interval)]]
    rows += [[f"share of {samples:,} draws in which {a} is better", f"{result.better:.3f}"]]
    if result.interval_runs:
        rows += [["95 % interval, rows and runs drawn anew", interval(result.interval_runs)]]
        rows += [[f"P({a} > {b}) over pairs of runs", f"{result.outperforms:.2f}"]]
    for i, test in enumerate(result.tests, start=1):
        counts = f"only {a} {test['only_a']}, only {b} {test['only_b']}"
        rows += [[f"McNemar, run {i}: right in {counts}", f"p = {test['p']:.2g}"]]
    return rows


def table(rows: list[list[str]], form: str) -> str:
    """Markdown, or LaTeX (with booktabs)."""
    if form == "markdown":
        rows = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
        cells = [[cell.replace("|", "/") for cell in row] for row in rows]
        return "\n".join(f"| {' | '.join(row)} |" for row in cells)
    escapes = {char: f"\\{char}" for char in "%&_#${}"}
    escapes |= {"–": "--", ">": "$>$", "\\": r"\textbackslash{}", "~": r"\~{}", "^": r"\^{}"}
    escaped = [[cell.translate(str.maketrans(escapes)) for cell in row] for row in rows]
    lines = [" & ".join(row) + r" \\" for row in escaped]
    columns = "l" + "r" * (len(rows[0]) - 1)
    body = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", lines[0], r"\midrule", *lines[1:]]
    return "\n".join([*body, r"\bottomrule", r"\end{tabular}"])


def spans_0(interval: list[float]) -> bool:
    low, high = interval
    return low <= 0 <= high


def verdict(result: Comparison, names: list[str], n: int) -> str:
    """What the figures say, and what to do next."""
    a, b = names if result.difference >= 0 else names[::-1]
    if abs(result.difference) < 1e-12:
        return f"{a} and {b} are equally good on these {n:,} rows"
    if spans_0(result.interval):
        needed = math.ceil(n * (1.96 * result.error / result.difference) ** 2)
        return (
            f"not shown that {a} is better than {b}: 0 lies in the rows' interval; next: for a "
            f"difference as large as this one about {needed:,} rows are needed, here are {n:,}"
        )
    if result.interval_runs and spans_0(result.interval_runs):
        return (
            f"{a} is better than {b} in these runs, but others may differ: 0 lies in the runs' "
            f"interval; next: more seeds, files for --a and --b"
        )
    if result.outperforms is None:
        return f"{a} is better than {b} in these two runs; next: more seeds, files for --a and --b"
    share = result.outperforms if result.difference > 0 else 1 - result.outperforms
    often = "often" if share >= OUTPERFORMS else f"less often than in {OUTPERFORMS:.0%} of pairs"
    return f"{a} is better than {b}, beyond the chance of rows and runs, and {often}"


def get_args(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("--gold", required=True, metavar="FILE", help="data with labels: a dev set")
    for name in ("a", "b"):
        text = f"predictions of system {name.upper()}, a file a run (seed)"
        parser.add_argument(f"--{name}", required=True, nargs="+", metavar="FILE", help=text)
    parser.add_argument("--names", nargs=2, default=["A", "B"], metavar=("A", "B"))
    parser.add_argument("--samples", type=int, default=10_000, help="draws of the bootstrap")
    parser.add_argument("--seed", type=int, default=11711)
    parser.add_argument("--format", choices=("markdown", "latex"), default="markdown")
    args = parser.parse_args(argv)
    check_range(args, "samples", 1)
    check_range(args, "seed", 0)
    if args.names[0] == args.names[1]:
        raise InputError(f"--names {args.names[0]} twice: expected two different names")
    return args


@command
def main():
    args = get_args()
    column = read_predictions(args.a[0]).column
    gold = read_gold(args.gold, column)
    a, b = (read_runs(paths, gold, args.gold, column) for paths in (args.a, args.b))
    result = compare(a, b, samples=args.samples, seed=args.seed)
    print(table(system_rows(dict(zip(args.names, (a, b), strict=True))), args.format), end="\n\n")
    print(table(comparison_rows(result, args.names, args.samples), args.format), end="\n\n")
    print(verdict(result, args.names, len(gold)))
