"""One `quill serve` process for all tests that only call it."""

import pytest

from support.processes import serving


@pytest.fixture(scope="session")
def server():
    """What the server process said of itself: grpc, http, model."""
    with serving() as (process, ready):
        yield ready
        assert process.poll() is None, "the server ended while tests ran"
