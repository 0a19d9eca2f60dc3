"""Which code a result is of: a commit that can be checked out, or words that say otherwise."""

from engine.errors import InputError
from engine.provenance import CHANGES, UNKNOWN, current_commit

SHORT = 7  # digits of a commit that are shown


def add_commit_flag(parser) -> None:
    parser.add_argument(
        "--uncommitted",
        action="store_true",
        help="measure code that no commit holds; the tables then say so",
    )


def check_committed(args) -> None:
    """Refuse to measure code that differs from its commit, unless --uncommitted is given."""
    commit = current_commit()
    if args.uncommitted or not (commit == UNKNOWN or commit.endswith(CHANGES)):
        return
    reason = "git knows no commit of it" if commit == UNKNOWN else "it has uncommitted changes"
    raise InputError(
        f"results name the commit of the code, and {reason}: commit first, or give --uncommitted"
    )


def described(results: dict) -> str:
    """A sentence for the page of a table: the commits, and whether they hold all of the code."""
    commits = sorted(set(_commits(results)))
    if not commits:
        return "Nothing was measured yet."
    names = ", ".join(dict.fromkeys(f"`{commit[:SHORT]}`" for commit in commits))
    with_changes = any(commit.endswith(CHANGES) for commit in commits)
    return f"Measured at {names}" + (", with changes that no commit holds." * with_changes or ".")


def _commits(value) -> list[str]:
    """Every commit that a results file names: of the file, of its parts, of its rows."""
    if isinstance(value, dict):
        own = [value["commit"]] if isinstance(value.get("commit"), str) else []
        return own + [commit for item in value.values() for commit in _commits(item)]
    return [commit for item in value for commit in _commits(item)] if type(value) is list else []
