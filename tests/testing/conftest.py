"""One sidecar process for each dialect, restarted in place and without faults for each test."""

import httpx
import pytest

from quill.testing.sidecar import SidecarProcess


@pytest.fixture(scope="session")
def _process_a():
    with SidecarProcess("A") as sidecar:
        yield sidecar


@pytest.fixture(scope="session")
def _process_b():
    with SidecarProcess("B") as sidecar:
        yield sidecar


@pytest.fixture(scope="session")
def _process_c():
    with SidecarProcess("C") as sidecar:
        yield sidecar


class Peer:
    """A sidecar and a plain HTTP client for it."""

    def __init__(self, process, http):
        self.process = process
        self.http = http

    def broadcast(self, request_id="sdk-1", prompt="Alice was", min_tokens=5, **fields):
        body = {"request_id": request_id, "prompt_context": prompt, "min_tokens": min_tokens, **fields}
        return self.http.post("/broadcast-work", json=body)

    def pop(self, request_id="sdk-1"):
        reply = self.http.get("/pop-result", params={"request_id": request_id})
        assert reply.status_code == 200, reply.text
        assert set(reply.json()) == {"result"}
        return reply.json()["result"]

    def results(self, count, request_id="sdk-1"):
        """So many results, polled until they are there; the test's own timeout ends it where they never come."""
        found = []
        while len(found) < count:
            if (result := self.pop(request_id)) is not None:
                found.append(result)
        return found

    def until(self, check):
        """Ask for the report until it is as it should be."""
        while not check(report := self.process.report()):
            pass
        return report


def _fresh(process):
    process.set_faults()
    process.behave()
    process.restart()
    with httpx.Client(base_url=process.url, trust_env=False, timeout=30) as http:
        yield Peer(process, http)


@pytest.fixture
def a(_process_a):
    yield from _fresh(_process_a)


@pytest.fixture
def b(_process_b):
    yield from _fresh(_process_b)


@pytest.fixture
def c(_process_c):
    yield from _fresh(_process_c)
