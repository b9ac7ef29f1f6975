"""Whether a generation goes on after its connection was lost: decided without one, on a clock of the test's."""

import pytest

from client.test_llm_fold import completed, delta, done, started
from quill.client import faults
from quill.client.address import Address
from quill.client.llm.fold import Fold
from quill.client.llm.request import generate_request
from quill.client.llm.resumption import Resumption
from quill.errors import (
    Aborted,
    Cancelled,
    DataLoss,
    DeadlineExceeded,
    Internal,
    InvalidType,
    InvalidUsage,
    NotFound,
    OutOfRange,
    ResourceExhausted,
    Unavailable,
)

ADDRESS = Address.parse("http://127.0.0.1:1")
BEGUN = (started(epoch="e1", resumable=True), delta(1, ["a", "b"]))


class Scene:
    """A resumption, what it has received, and its clock."""

    def __init__(self, *messages, ttl_ms=1000, timeout_ms=None):
        self.now_s = 100.0
        self.fold = Fold("mine")
        request = generate_request("p", {"request_id": "mine"}, resume_ttl_ms=ttl_ms)
        self.resumption = Resumption(request, timeout_ms, self.fold, lambda: self.now_s)
        self.resumption.began()
        self.receive(*messages)

    def receive(self, *messages):
        for message in messages:
            self.fold.add(message)

    def lose(self, error=None):
        return self.resumption.wait_s(error or Unavailable("reset"))

    def asked(self):
        """Epoch and position that the next call names; None where it starts or joins."""
        options = self.resumption.request().stream_options
        return (options.resume.epoch, options.resume.next_position) if options.HasField("resume") else None


LOST = [
    Unavailable("the connection was lost"),
    faults.lost(ADDRESS),
    faults.reset(ADDRESS, 0x2),
    faults.reset(ADDRESS, 0x8),
    faults.refused(ADDRESS),
    faults.cut_off(Internal("no end")),
    None,
]


@pytest.mark.parametrize("error", LOST, ids=str)
def test_a_lost_connection_is_made_again_at_the_next_position(error):
    scene = Scene(*BEGUN)
    assert 0 < scene.resumption.wait_s(error) <= 0.05
    assert scene.asked() == ("e1", 3)
    assert scene.resumption.request().prompt == "p"
    assert scene.resumption.request().request_id == "mine"


ENDED = [
    OutOfRange("trimmed"),
    Aborted("other epoch"),
    NotFound("not kept"),
    Cancelled("CancelGenerate"),
    ResourceExhausted("quota"),
    Internal("internal error"),
    DataLoss("gap"),
    DeadlineExceeded("idle"),
    faults.reset(ADDRESS, 0x1),
    faults.pushed_back(Unavailable("shutting down"), "-1"),
]


@pytest.mark.parametrize("error", ENDED, ids=str)
def test_an_end_of_the_run_is_final(error):
    scene = Scene(*BEGUN)
    assert scene.resumption.wait_s(error) is None


def test_nothing_goes_on_without_a_ttl_or_where_the_server_keeps_no_runs():
    assert Scene(*BEGUN, ttl_ms=0).lose() is None
    assert Scene(started(epoch="e1", resumable=False)).lose() is None


def test_a_run_that_was_not_heard_of_is_asked_for_as_at_first():
    scene = Scene()
    assert scene.lose() is not None
    assert scene.asked() is None
    scene.receive(BEGUN[0])
    assert scene.lose() is not None
    assert scene.asked() == ("e1", 1)


@pytest.mark.parametrize(
    "error", [faults.refused(ADDRESS), faults.pushed_back(Unavailable("full"), "250")], ids=["not sent", "pushback"]
)
def test_a_first_call_that_did_not_run_is_the_matter_of_retries(error):
    scene = Scene()
    assert scene.resumption.wait_s(error) is None
    begun = Scene()
    assert begun.lose() is not None, "it may have run"
    assert begun.resumption.wait_s(error) is not None, "so the run may be there"


def test_a_server_that_still_counts_the_lost_call_is_asked_again():
    scene = Scene(*BEGUN)
    assert scene.lose() is not None
    assert scene.lose(ResourceExhausted("live streams")) is not None
    scene.receive(delta(3, ["c"]))
    assert scene.lose(ResourceExhausted("of the run")) is None


def test_the_cursor_survives_a_second_loss_before_any_event():
    scene = Scene(*BEGUN)
    for _ in range(3):
        assert scene.lose() is not None
        assert scene.asked() == ("e1", 3)


def test_waits_grow_until_something_new_arrives():
    scene = Scene(*BEGUN, ttl_ms=3_600_000)
    waits = [scene.lose() for _ in range(5000)]
    for number, wait_s in enumerate(waits):
        most_s = min(2.0, 0.05 * 2 ** min(number, 10))
        assert most_s / 2 <= wait_s <= most_s
    scene.receive(delta(1, ["a", "b"]))
    assert scene.lose() > 0.5, "what was seen before is nothing new"
    scene.receive(delta(3, ["c"]))
    assert scene.lose() <= 0.05


def test_waits_are_jittered():
    assert len({Scene(*BEGUN).lose() for _ in range(20)}) > 1


def test_the_ttl_counts_from_the_loss():
    scene = Scene(*BEGUN, ttl_ms=1000)
    assert scene.lose() is not None
    scene.now_s += 0.7
    assert scene.lose() is not None
    scene.now_s += 0.4
    assert scene.lose() is None
    assert not scene.resumption.take_cancel(), "the server has ended the run itself"


def test_something_new_starts_the_ttl_anew():
    scene = Scene(*BEGUN, ttl_ms=1000)
    assert scene.lose() is not None
    scene.now_s += 0.9
    scene.receive(delta(3, ["c"]))
    scene.now_s += 0.9
    assert scene.lose() is not None


def test_the_timeout_covers_all_calls():
    scene = Scene(*BEGUN, ttl_ms=60_000, timeout_ms=1000)
    scene.now_s += 0.4
    assert scene.lose() is not None
    assert scene.resumption.timeout_ms() in {599, 600}
    scene.now_s += 0.599
    assert scene.lose() is None
    assert scene.resumption.take_cancel(), "the run goes on, and nobody will come"
    assert Scene(*BEGUN).resumption.timeout_ms() is None


@pytest.mark.parametrize(
    ("error", "wanted"),
    [(DeadlineExceeded("idle"), True), (DataLoss("gap"), True), (NotFound("gone"), False), (Cancelled("x"), False)],
    ids=str,
)
def test_the_server_is_told_of_an_end_that_it_does_not_know(error, wanted):
    scene = Scene(*BEGUN)
    scene.resumption.wait_s(error)
    assert scene.resumption.take_cancel() is wanted


def test_a_close_is_told_once_and_only_of_a_run_that_may_live():
    scene = Scene(*BEGUN)
    assert [scene.resumption.take_cancel() for _ in range(2)] == [True, False]
    # Its reader, which was woken by the close, changes nothing.
    assert scene.resumption.wait_s(Cancelled("closed")) is None
    assert not scene.resumption.take_cancel()
    assert not Scene(*BEGUN, ttl_ms=0).resumption.take_cancel()
    assert not Scene(*BEGUN, done(3), completed(4)).resumption.take_cancel()
    never_asked = Resumption(generate_request("p", {}, resume_ttl_ms=5), None, Fold("x"), lambda: 0.0)
    assert not never_asked.take_cancel()


def test_the_ttl_is_checked_before_anything_is_sent():
    for value, kind in ((-1, InvalidUsage), (2**32, InvalidUsage), (1.5, InvalidType), (True, InvalidType)):
        with pytest.raises(kind, match="resume_ttl_ms"):
            generate_request("p", {}, resume_ttl_ms=value)
    plain = generate_request("p", {})
    assert not plain.HasField("stream_options")
    assert generate_request("p", {"request_id": ""}, resume_ttl_ms=5).request_id
