"""Run a program of Python's; its seconds and its peak of memory go into a JSON file.

    python studies/measured.py REPORT PROGRAM [flags]     REPORT: {"seconds": …, "peak_mb": …}

The peak is the largest resident memory of one process, the program or one that it waited for. A
process of its own measures, since Linux counts the memory of whoever starts a program as its own.
"""

import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.children import start_child
from engine.files import atomic_write


def peak_mb() -> float | None:
    """Of the children that have ended; None on Windows, which does not tell."""
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit / 2**20


if __name__ == "__main__":
    report, *words = sys.argv[1:]
    started = time.perf_counter()
    code = start_child(words).wait()
    figures = {"seconds": time.perf_counter() - started, "peak_mb": peak_mb()}
    with atomic_write(report) as file:
        json.dump(figures, file)
    sys.exit(code)
