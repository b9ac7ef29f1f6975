"""The same cases over every protocol and carrier, sync and async: what is seen must be equal, cell by cell.

A case that cannot be in a cell is not left out: `IMPOSSIBLE` says why, and what is seen there instead is asserted.
"""

import contextlib

import pytest

from protocol_table import duplex, endings, leaving, messages, metadata, times  # noqa: F401 - they register their cases
from protocol_table.cells import CELLS, Host, Row
from protocol_table.impossible import IMPOSSIBLE
from protocol_table.table import CASES


@pytest.fixture(scope="module")
def hosts():
    """By whether they speak h2c."""
    with contextlib.ExitStack() as stack:
        found = {}
        for http2 in (False, True):
            found[http2] = Host(http2=http2)
            stack.callback(found[http2].close)
        yield found


@pytest.fixture(scope="module", params=CELLS.values(), ids=CELLS)
def cell(request):
    return request.param


@pytest.fixture
def row(cell, hosts):
    with contextlib.ExitStack() as stack:
        yield Row(cell, hosts[cell.carrier == "h2c"], stack)


@pytest.mark.parametrize("case", CASES)
def test_table(row, case):
    instead = IMPOSSIBLE.get((row.cell.name, case))
    (CASES[case] if instead is None else instead.run)(row)


def test_what_is_impossible_stands_in_the_table():
    assert {cell for cell, _ in IMPOSSIBLE} <= set(CELLS)
    assert {case for _, case in IMPOSSIBLE} <= set(CASES)
    assert all(instead.reason for instead in IMPOSSIBLE.values())
