"""One `quill serve` process for all tests that only call it, and no times for drawn examples."""

import hypothesis
import pytest

from support.processes import serving

hypothesis.settings.register_profile("quill", deadline=None)  # what a busy machine takes says nothing of the code
hypothesis.settings.load_profile("quill")


@pytest.fixture(scope="session")
def server():
    """What the server process said of itself: grpc, http, model."""
    with serving() as (process, ready):
        yield ready
        assert process.poll() is None, "the server ended while tests ran"
