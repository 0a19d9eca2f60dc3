"""Many cases of one claim: a few run by default, all of them in `make test-all`."""

import itertools
from collections.abc import Callable, Iterable

import pytest


def slow_unless(quick: Callable, cases: Iterable) -> list:
    """Cases for `parametrize`, strings or tuples of strings, slow where quick(case) is false."""
    params = []
    for case in cases:
        values = case if isinstance(case, tuple) else (case,)
        marks = () if quick(case) else pytest.mark.slow
        params.append(pytest.param(*values, marks=marks, id="-".join(values)))
    return params


def one_partner_each(firsts: Iterable[str], seconds: Iterable[str]) -> list:
    """All pairs of two lists; by default each first one has one second one, in turn."""
    firsts, seconds = list(firsts), list(seconds)
    turns = set(zip(firsts, itertools.cycle(seconds), strict=False))
    return slow_unless(turns.__contains__, itertools.product(firsts, seconds))
