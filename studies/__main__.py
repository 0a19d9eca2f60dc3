"""Studies of quality: run what is missing, say what is, write the tables.

    python -m studies run --jobs 2                         every study, two runs at a time
    python -m studies run modes-sst optimizers-sst         these two
    python -m studies run --storage sqlite:///studies.db   beside others that give the same URL
    python -m studies run --suite gpt2 --use_gpu           the handout's numbers: needs the hub
    python -m studies status                               what is done, and what is left
    python -m studies table                                the tables of the pages

The studies are declared in studies/suites/; each run becomes a line of studies/results/SUITE.jsonl.
What is recorded there is not run again, so an interrupted command goes on where it stopped.
"""

from pathlib import Path

from engine.errors import InputError, Parser, command, leave_stopped

# isort: split

from benchmarks import tables
from benchmarks.provenance import add_commit_flag, check_committed
from engine.files import check_writable
from engine.flags import check_range
from engine.hub import BUNDLED
from engine.signals import Stopped
from studies.entries import load
from studies.records import Records
from studies.runner import Runner
from studies.status import budget, status

RESULTS, TRIED = "studies/results/", "runs/studies/tried/"


def get_args(argv=None):
    parser = Parser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True, parser_class=Parser)
    run = commands.add_parser("run", help="do the runs that are missing")
    add_choice(run)
    run.add_argument("--jobs", type=int, default=1, help="runs at a time")
    run.add_argument("--storage", metavar="URL", help="share the runs: sqlite:///… postgresql://…")
    run.add_argument("--folder", default="runs/studies", help="rows, checkpoints, runs at work")
    run.add_argument("--use_gpu", action="store_true")
    add_commit_flag(run)
    add_choice(commands.add_parser("status", help="runs that are done and missing"))
    commands.add_parser("table", help="write the tables of README.md and the other pages")
    args = parser.parse_args(argv)
    if args.command == "run":
        check_range(args, "jobs", 1)
    if args.command != "table":
        check_range(args, "limit", 1)
        tried = args.limit or args.model or args.data_dir
        args.results = args.results or (TRIED if tried else RESULTS)
        args.data_dir = Path(args.data_dir or "data").resolve()
    return args


def check_before_training(args) -> None:
    """Refuse now what would stop a run only when it has trained."""
    for folder in (args.results, args.folder):
        check_writable(Path(folder) / "file")
    model = args.model and BUNDLED.get(args.model, Path(args.model))
    if model and not (model / "config.json").is_file():
        raise InputError(f"--model {args.model}: no config.json there: give a model's folder")


def add_choice(parser) -> None:
    """The flags that choose studies and what they are run on."""
    parser.add_argument("names", nargs="*", metavar="NAME", help="studies; default: all")
    parser.add_argument("--suite", help="the studies of one file")
    parser.add_argument("--data_dir", metavar="DIR", help="in place of data/, to try it")
    parser.add_argument("--limit", type=int, metavar="N", help="N rows of each file, to try it")
    parser.add_argument("--model", help="a folder in place of the model, to try it")
    parser.add_argument(
        "--results", metavar="DIR", help=f"default: {RESULTS}, of what is tried {TRIED}"
    )


@command
def main():
    args = get_args()
    if args.command == "table":
        tables.write()
        return
    changes = {"model": args.model} if args.model else {}
    studies, records = load(args.names, args.suite, **changes), Records(args.results)
    if args.command == "status":
        print(status(studies, records, args.limit))
        return
    check_committed(args)
    check_before_training(args)
    print(budget(studies, records, args), flush=True)
    try:
        Runner(studies, records, args).run()
    except (KeyboardInterrupt, Stopped) as end:
        leave_stopped(end, "the same command goes on with what is missing")


if __name__ == "__main__":
    main()
