"""Sidecars for development as processes, one of each dialect for all tests."""

import contextlib

import pytest

from quill.testing.sidecar import SidecarProcess


@pytest.fixture(scope="session")
def processes():
    with contextlib.ExitStack() as stack:
        running = {}

        def get(dialect):
            if dialect not in running:
                running[dialect] = stack.enter_context(SidecarProcess(dialect))
            return running[dialect]

        yield get


@pytest.fixture
def sidecar_of(processes):
    """The sidecar of a dialect, which behaves as if just started."""

    def get(dialect):
        process = processes(dialect)
        process._post({"faults": [], "behaviour": {}, "restart": True})  # as the three methods, in one request
        return process

    return get
