"""What goes wrong at the sidecar, and what the caller gets: its status, within its deadline, with the text that came.

Every row runs over real sockets, against the sidecar for development in a process of its own.
"""

import asyncio
from dataclasses import dataclass, field

import pytest

from quill.errors import Code
from quill.generation import FinishReason, StreamInterrupted
from quill.shard.config import SidecarConfig
from quill.shard.sidecar import ShardRequest, Sidecar
from quill.shard.state import State
from support.generating import Outcome, generate

ALL = ("A poll", "B poll", "C poll")
SOCKETS = ("A websocket", "C websocket")
TOKENS = 8
LIMITS = {"retry_budget_s": 0.3, "first_token_timeout_ms": 20_000, "idle_timeout_ms": 20_000}


@dataclass
class Row:
    what: str
    ways: tuple
    code: Code | None
    faults: dict | None = None
    behaviour: dict = field(default_factory=dict)
    config: dict = field(default_factory=dict)
    pieces: int | None = 0
    """How many pieces come; None where it does not matter."""
    says: str = ""
    reason: FinishReason | None = None
    max_tokens: int = TOKENS


def broadcast(what, code, /, *, says="", config=None, **fault):
    return Row(f"broadcast {what}", ALL, code, {"on": "broadcast", **fault}, says=says, config=config or {})


def waiting(what, code, /, *, says="", config=None, **fault):
    return Row(f"poll {what}", ALL, code, {"on": "pop", **fault}, says=says, config=config or {})


def polling(what, code, /, *, says="", config=None, **fault):
    """After three tokens, which only A gives one by one."""
    faults = {"on": "pop", "after": 3, **fault}
    return Row(f"poll {what} after tokens", ("A poll",), code, faults, says=says, pieces=3, config=config or {})


def upgrade(what, code, /, *, says="", **fault):
    return Row(f"upgrade {what}", SOCKETS, code, {"on": "upgrade", **fault}, says=says)


def frame(what, code, /, *, says="", config=None, after=3, **fault):
    faults = {"on": "frame", "after": after, **fault}
    return Row(f"frame {what}", SOCKETS, code, faults, says=says, pieces=after, config=config or {})


STATUSES = {
    400: Code.INVALID_ARGUMENT,
    401: Code.UNAUTHENTICATED,
    403: Code.PERMISSION_DENIED,
    404: Code.UNIMPLEMENTED,
    413: Code.INVALID_ARGUMENT,
    415: Code.INVALID_ARGUMENT,
    422: Code.INVALID_ARGUMENT,
    429: Code.RESOURCE_EXHAUSTED,
    500: Code.UNAVAILABLE,
    503: Code.UNAVAILABLE,
}
SHORT = {"request_timeout_s": 0.6, "retry_budget_s": 0.1}
EMPTY_DRAFT = {"on": "item", "kind": "empty_draft", "next": 1}
DRIP = {"kind": "drip", "delay_ms": 1500}
ROWS = [
    *(broadcast(str(n), code, kind="status", status=n, says=f"HTTP {n}") for n, code in STATUSES.items()),
    *(waiting(str(n), code, kind="status", status=n, says=f"HTTP {n}") for n, code in STATUSES.items()),
    *(polling(str(n), code, kind="status", status=n, says=f"HTTP {n}") for n, code in STATUSES.items()),
    *(upgrade(str(n), code, kind="status", status=n) for n, code in STATUSES.items()),
]
for make in (broadcast, waiting, polling):
    ROWS += [
        make("redirect", Code.FAILED_PRECONDITION, kind="redirect", says="redirect"),
        make("HTML", Code.INTERNAL, kind="html", says="html"),
        make("malformed JSON", Code.INTERNAL, kind="malformed", says="no JSON"),
        make("list", Code.INTERNAL, kind="list", says="no JSON object"),
        make("too much", Code.RESOURCE_EXHAUSTED, kind="huge", says="max_body_bytes"),
        make("slow drip", Code.UNAVAILABLE, config=SHORT, says="within 0.6 s", **DRIP),
        make("dropped connection", Code.UNAVAILABLE, kind="close", says="lost"),
        make("cut off", Code.UNAVAILABLE, kind="truncate", says="lost"),
    ]
ROWS += [
    waiting("missing result", Code.INTERNAL, kind="missing_result", says="no result"),
    polling("missing result", Code.INTERNAL, kind="missing_result", says="no result"),
    upgrade("redirect", Code.FAILED_PRECONDITION, kind="redirect", says="redirect"),
    upgrade("HTML", Code.INTERNAL, kind="html", says="HTTP 200"),
    upgrade("dropped connection", Code.UNAVAILABLE, kind="close"),
    frame("error and done", Code.UNAVAILABLE, kind="error", message="the peer went away", says="the peer went away"),
    frame("error and a dropped connection", Code.UNAVAILABLE, kind="error", done=False, says="the peer went away"),
    frame("error at once", Code.UNAVAILABLE, kind="error", after=0),
    frame(
        "error of validation", Code.INVALID_ARGUMENT, kind="error", after=0, message="max_new_tokens must be at most 1"
    ),
    frame("dropped connection", Code.UNAVAILABLE, kind="close", says="before its end"),
    frame("dropped connection at once", Code.UNAVAILABLE, kind="close", after=0),
    frame("close without done", Code.UNAVAILABLE, kind="close", code=1000, says="before its end"),
    frame("close with 1011", Code.UNAVAILABLE, kind="close", code=1011, says="before its end"),
    frame("malformed JSON", Code.INTERNAL, kind="malformed", says="no JSON"),
    frame("list", Code.INTERNAL, kind="list", says="no JSON object"),
    frame("plain text", Code.INTERNAL, kind="text", says="no JSON"),
    frame("too much", Code.RESOURCE_EXHAUSTED, kind="huge", says="max_body_bytes"),
    frame(
        "silence", Code.DEADLINE_EXCEEDED, kind="delay", delay_ms=60_000, config={"idle_timeout_ms": 500}, says="500 ms"
    ),
    frame(
        "silence at once",
        Code.DEADLINE_EXCEEDED,
        kind="delay",
        delay_ms=60_000,
        after=0,
        config={"first_token_timeout_ms": 500},
        says="no token came within 500 ms",
    ),
    Row(
        "nobody answers",
        ALL,
        Code.DEADLINE_EXCEEDED,
        behaviour={"peers": 0},
        config={"first_token_timeout_ms": 500},
        says="no token came within 500 ms",
    ),
    Row(
        "the total deadline passes first",
        (*ALL, *SOCKETS),
        Code.DEADLINE_EXCEEDED,
        behaviour={"first_token_delay_ms": 60_000},
        config={"timeout_ms": 500},
        says="did not end within 500 ms",
    ),
    Row(
        "the total deadline passes while tokens come",
        ("A poll", *SOCKETS),
        Code.DEADLINE_EXCEEDED,
        behaviour={"tokens_per_s": 20},
        config={"timeout_ms": 900},
        pieces=None,
        max_tokens=1000,
        says="did not end within 900 ms",
    ),
    Row(
        "no end and nothing more",
        ("A poll",),
        Code.DEADLINE_EXCEEDED,
        behaviour={"tokens": 3, "end": "none"},
        config={"idle_timeout_ms": 500},
        pieces=3,
        says="no token came for 500 ms",
    ),
    Row(
        "done without a token", ("A poll", *SOCKETS), Code.UNAVAILABLE, behaviour={"tokens": 0}, says="without a token"
    ),
    Row(
        "C's limit without a token",
        ("C websocket",),
        Code.UNAVAILABLE,
        behaviour={"websocket_limit_s": 0.5, "first_token_delay_ms": 60_000},
        config={"websocket_limit_s": 0.5},
        says="without a token",
    ),
    Row(
        "C's limit with a part",
        ("C websocket",),
        None,
        behaviour={"websocket_limit_s": 1, "tokens_per_s": 10},
        config={"websocket_limit_s": 1},
        pieces=None,
        max_tokens=1000,
        reason=FinishReason.STOP,
        says="limit of 1 s",
    ),
    # What is made good
    Row(
        "two malformed replies, then good ones", ALL, None, {"on": "pop", "kind": "malformed", "next": 2}, pieces=TOKENS
    ),
    Row("two 500s, then good ones", ALL, None, {"on": "pop", "kind": "status", "next": 2}, pieces=TOKENS),
    Row("two dropped connections", ALL, None, {"on": "pop", "kind": "close", "next": 2}, pieces=TOKENS),
    Row("foreign results", (*ALL, "C websocket"), None, {"on": "item", "kind": "foreign"}, pieces=TOKENS),
    Row("an empty draft first", ("B poll", "C poll"), None, EMPTY_DRAFT, behaviour={"peers": 2}, pieces=TOKENS),
    Row(
        "two malformed frames", SOCKETS, None, {"on": "frame", "kind": "list", "after": 3, "next": 2}, pieces=TOKENS - 2
    ),
    Row(
        "end with the last token",
        ("A poll", "A websocket"),
        None,
        behaviour={"tokens": 3, "end_with_token": True, "end": "done"},
        pieces=3,
        reason=FinishReason.STOP,
    ),
    *(
        Row(
            f"text as {name}, end as {end}",
            ("A poll", "A websocket"),
            None,
            behaviour={"tokens": 3, "text_field": name, "end": end},
            pieces=3,
            reason=FinishReason.STOP,
        )
        for name, end in [
            ("token", "event:done"),
            ("text", "event:eos"),
            ("delta", "event:completed"),
            ("draft_text", "done"),
            ("token", "eos"),
            ("text", "completed"),
        ]
    ),
    *(
        Row(
            f"{kind}, numbered by {name}",
            ("A poll",),
            None,
            {"on": "item", "kind": kind, "after": 1, "next": 3},
            behaviour={"number_field": name, "tokens": 6},
            pieces=6,
            reason=FinishReason.STOP,
        )
        for kind in ("duplicate", "reorder")
        for name in ("seq", "index")
    ),
    *(
        Row(
            f"frames {kind}, numbered",
            SOCKETS,
            None,
            {"on": "frame", "kind": kind, "after": 1, "next": 3},
            behaviour={"number_field": "seq", "tokens": 6},
            pieces=6,
            reason=FinishReason.STOP,
        )
        for kind in ("duplicate", "reorder")
    ),
    Row(
        "a numbered token is dropped",
        ("A poll",),
        Code.DATA_LOSS,
        {"on": "item", "kind": "drop", "after": 3, "next": 1},
        behaviour={"number_field": "seq"},
        config={"reorder_wait_s": 0.3},
        pieces=3,
        says="result 3",
    ),
    Row(
        "a numbered frame is dropped",
        SOCKETS,
        Code.DATA_LOSS,
        {"on": "frame", "kind": "drop", "after": 3, "next": 1},
        behaviour={"number_field": "seq"},
        config={"reorder_wait_s": 0.3},
        pieces=3,
        says="result 3",
    ),
    Row(
        "a slow reader",
        ("A poll", *SOCKETS),
        Code.RESOURCE_EXHAUSTED,
        config={"max_queued_pieces": 4},
        max_tokens=64,
        pieces=None,
        says="max_queued_pieces is 4",
    ),
]
CASES = [pytest.param(row, way, id=f"{row.what}, {way}") for row in ROWS for way in row.ways]


async def slow_reader(sidecar, transport):
    """Takes one piece, and the next when the stream has failed."""
    pieces = []
    request = ShardRequest(prompt="Alice was", max_tokens=64, transport=transport)
    events = sidecar.generate(request)
    try:
        async for piece in events:
            pieces.append(piece.text)
            (live,) = sidecar._reach.everything
            while live.state is not State.FAILED:
                await asyncio.sleep(0.01)
    except StreamInterrupted as error:
        broken = error
    assert broken.text == "".join(pieces)
    return Outcome(pieces, None, broken, 0)


@pytest.mark.parametrize(("row", "way"), CASES)
async def test_the_caller_gets_the_status_and_the_text_that_came(row, way, sidecar_of):
    dialect, _, transport = way.partition(" ")
    process = sidecar_of(dialect)
    if row.behaviour:
        process.behave(**row.behaviour)
    if row.faults is not None:
        process.set_faults(row.faults)
    async with Sidecar(SidecarConfig(base_url=process.url, dialect=dialect, **LIMITS | row.config)) as sidecar:
        how = "websocket" if transport == "websocket" else "http_poll"
        if row.what == "a slow reader":
            outcome = await slow_reader(sidecar, how)
        else:
            outcome = await generate(sidecar, transport=how, max_tokens=row.max_tokens)
    assert outcome.code is row.code, outcome
    told = str(outcome.error) if outcome.error else " ".join(outcome.end.warnings)
    assert row.says in told
    assert outcome.seconds < 30
    if row.pieces is not None:
        assert len(outcome.pieces) == row.pieces
    else:
        assert outcome.pieces
    if row.reason is not None:
        assert outcome.end.reason is row.reason
