"""The benchmarks' own tests start many processes: they run in `make test-all`."""

from pathlib import Path

import pytest


@pytest.hookimpl(tryfirst=True)  # before pytest deselects by marker
def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.slow)
