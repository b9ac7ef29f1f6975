"""Whatever a client sends, the sidecar answers in its own words: no input is an accident."""

import contextlib
import json

from hypothesis import given, settings
from hypothesis import strategies as st

from quill.errors import InvalidUsage
from quill.testing.sidecar.behaviour import Behaviour, assignments
from quill.testing.sidecar.faults import KINDS, Fault
from quill.testing.sidecar.requests import Declined, Refused, Work, read_broadcast, read_websocket

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
FIELDS = [
    "request_id",
    "prompt_context",
    "prompt",
    "min_tokens",
    "max_new_tokens",
    "input_token_ids",
    "model",
    "stream",
]
SURROGATES = st.text(st.characters(), max_size=3)
OBJECTS = st.dictionaries(st.sampled_from(FIELDS), JSON | SURROGATES | st.integers(0, 600))
DIALECTS = st.sampled_from("ABC")
SMALL = settings(max_examples=150, deadline=None)


def is_work(found):
    return isinstance(found, Work) and found.request_id.encode() is not None and found.prompt.encode() is not None


@SMALL
@given(body=st.binary(max_size=50) | OBJECTS.map(lambda value: json.dumps(value).encode()), dialect=DIALECTS)
def test_any_body_is_work_or_refused(body, dialect):
    with contextlib.suppress(Refused, Declined):
        assert is_work(read_broadcast(body, dialect))


@SMALL
@given(text=st.text(max_size=50) | OBJECTS.map(json.dumps), dialect=st.sampled_from("AC"))
def test_any_message_is_work_or_refused(text, dialect):
    with contextlib.suppress(Refused):
        assert is_work(read_websocket(text, dialect))


@SMALL
@given(
    request_id=st.text(min_size=1, max_size=40),
    prompt=st.text(min_size=1, max_size=100).filter(str.strip),
    tokens=st.integers(1, 512),
)
def test_every_request_within_the_limits_is_taken(request_id, prompt, tokens):
    body = json.dumps({"request_id": request_id, "prompt_context": prompt, "min_tokens": tokens}).encode()
    if len(request_id.encode()) <= 128:
        assert read_broadcast(body, "B") == read_broadcast(body, "C") == Work(request_id, prompt, tokens)


@SMALL
@given(
    values=JSON
    | st.fixed_dictionaries(
        {"on": st.sampled_from(list(KINDS)), "kind": st.sampled_from(sorted(set().union(*KINDS.values())))},
        optional=dict.fromkeys(("next", "after", "probability", "status", "delay_ms", "message", "hits", "code"), JSON),
    )
)
def test_any_value_is_a_fault_or_refused(values):
    with contextlib.suppress(InvalidUsage):
        assert Fault.read(values).kind == values["kind"]


@SMALL
@given(name=st.sampled_from(["tokens", "tokens_per_s", "peers", "end", "stalled", "fallback"]), value=JSON)
def test_any_switch_is_set_or_refused(name, value):
    with contextlib.suppress(InvalidUsage):
        assert getattr(Behaviour.read({name: value}), name) == value
    with contextlib.suppress(InvalidUsage):
        Behaviour.read(assignments([f"{name}={json.dumps(value)}"]))
