"""The best file that belongs to a last file: last names its digest and its epoch.

A new best waits beside the old one until a last file names it: then it takes the old one's place.
A process that ends at any moment leaves a pair that belongs together, or one that can be told.
"""

import os
from pathlib import Path

from engine.errors import InputError, quoted
from engine.files import sync
from engine.trees import load_tree, tree_digest


def promote(last: Path, best: Path, new_best: Path) -> None:
    """Put the waiting best in its place if last names it; else nobody needs it any more."""
    if not new_best.exists():
        return
    named = _named(last) if last.exists() else None
    if named and named["digest"] == _digest(new_best):
        os.replace(new_best, best)
        sync(best.parent)
    else:
        new_best.unlink()


def named_best(last: Path, best: Path) -> dict | None:
    """What last names, if `best` is that; another one is refused. None before the first epoch."""
    tree = {key: load_tree(last, only=key).get(key) for key in ("best", "progress")}
    named, progress = tree["best"], tree["progress"]
    if named is None and isinstance(progress, dict) and progress.get("best_epoch") is not None:
        named = {"epoch": progress["best_epoch"], "digest": None}  # written before it was named
    if named is None:
        return None
    if not isinstance(named, dict) or not named.keys() >= {"epoch", "digest"}:
        raise InputError(f"{last}: found {quoted(named)}, expected the name of a best: train anew")
    if not best.exists():
        raise InputError(f"{best}: missing, {last.name} names it: put it back, or train anew")
    metrics, digest = load_tree(best, only="metrics").get("metrics"), tree_digest(best)
    epoch = metrics.get("epoch") if isinstance(metrics, dict) else None
    if epoch != named["epoch"] or named["digest"] not in (None, digest):
        raise InputError(
            f"{best}: of epoch {quoted(epoch)}, digest {digest[:8]}; {last.name} names epoch "
            f"{quoted(named['epoch'])}, digest {str(named['digest'])[:8]}: they are of two "
            f"attempts: put the right one back, or train anew without --resume"
        )
    return {"epoch": epoch, "digest": digest}


def _named(last: Path) -> dict | None:
    """What a last file names; None also of a file that cannot be read, which others will say."""
    try:
        named = load_tree(last, only="best").get("best")
    except InputError:
        return None
    return named if isinstance(named, dict) and "digest" in named else None


def _digest(path: Path) -> str | None:
    try:
        return tree_digest(path)
    except InputError:
        return None  # half of one, or damaged
