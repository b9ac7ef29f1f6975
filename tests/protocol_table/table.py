"""Where cases are registered: a case is a function of a Row, and named as it is."""

import functools
from collections.abc import Callable

from protocol_table.callers import KINDS
from protocol_table.cells import Row

CASES: dict[str, Callable[[Row], None]] = {}


def case(run):
    """A case of its own."""
    assert run.__name__ not in CASES
    CASES[run.__name__] = run
    return run


def for_each(*values):
    """A case for each value, its second argument; the value stands in its name, in brackets."""

    def register(run):
        for value in values:
            CASES[f"{run.__name__}[{value}]"] = functools.partial(_with, run, value)
        return run

    return register


def _with(run, value, row):
    run(row, value)


for_each_kind = for_each(*KINDS)
