"""`python -m course.leaderboard`: score submissions, keep their history, write the site.

    python -m course.leaderboard submissions/ --gold gold/ --out site

SUBMISSIONS is a folder of zips or Gradescope's export. site/ is for students. site-staff/, beside
it, is not: it has the history, each submission's problems, and the teams behind pseudonyms.
"""

from engine.errors import InputError, Parser, command, notice

# isort: split

from contextlib import contextmanager
from functools import partial
from pathlib import Path

from filelock import FileLock, Timeout
from tqdm import tqdm

from course.leaderboard.exports import write_staff
from course.leaderboard.pages import Site, write_site
from course.leaderboard.schedule import Processes, score_all
from course.leaderboard.scoring import fingerprints, read_answers, score_submission
from course.leaderboard.sources import Submission, find
from course.leaderboard.store import History
from engine.flags import check_range


def get_args(argv=None):
    parser = Parser(__doc__, description="Score submissions, keep their history, write the site.")
    parser.add_argument("submissions", type=Path, help="a folder of zips, or Gradescope's export")
    parser.add_argument("--gold", type=Path, required=True, help="the folder of the answers")
    parser.add_argument("--out", type=Path, default=Path("site"), help="default: %(default)s")
    parser.add_argument("--staff", type=Path, help="default: OUT-staff")
    parser.add_argument("--anonymous", action="store_true", help="pseudonyms instead of names")
    parser.add_argument("--title", default="Leaderboard", help="default: %(default)s")
    parser.add_argument("--workers", type=int, default=2, help="processes (default: %(default)s)")
    args = parser.parse_args(argv)
    check_range(args, "workers", 1)
    args.staff = args.staff or args.out.resolve().with_name(f"{args.out.resolve().name}-staff")
    for path in (args.submissions, args.gold, args.staff, Path.cwd()):
        if path.resolve().is_relative_to(args.out.resolve()):
            raise InputError(f"--out {args.out}: {path} lies in it, expected a folder of its own")
    return args


@contextmanager
def alone(folder: Path):
    """Wait until no other process works on this history."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        notice(f"{folder}: another process is scoring into it: waiting for its end")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def enter(history: History, found: list[Submission], unread: dict[str, str]) -> dict:
    """Id in the history -> submission; files that cannot be read go to `unread`."""
    entered = {}
    for submission in found:
        try:
            entered.setdefault(history.add(submission, submission.digest()), submission)
        except OSError as error:
            unread[submission.path.name] = f"cannot be read ({error.strerror}): copy it again"
    return entered


@command
def main(argv=None):
    args = get_args(argv)
    answers = read_answers(args.gold)
    found, unread = find(args.submissions)
    with alone(args.staff):
        history = History(args.staff / "history.sqlite", fingerprints(args.gold))
        entered = enter(history, found, unread)
        processes = Processes(partial(score_submission, args.gold), args.workers)
        done = score_all(history, [*entered.items()], processes.score, args.workers)
        for _ in tqdm(done, total=len(entered), desc="submissions", disable=None):
            pass
        processes.close()
        sonnets = answers["dev"]["sonnet"][1].labels if "sonnet" in answers.get("dev", {}) else []
        site = Site.read(history, sonnets, args.title, args.anonymous)
        problems = write_staff(args.staff, site.frame, unread)
        write_site(site, args.out)
        history.close()
    print(f"{args.out}/index.html: {len(site.names):,} teams, {len(entered):,} submissions read")
    if problems:
        print(f"{args.staff}/problems.csv: {problems:,} files or submissions that scored nothing")


if __name__ == "__main__":
    main()
