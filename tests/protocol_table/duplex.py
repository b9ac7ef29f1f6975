"""Bidirectional streams whose sides take turns, and those with more in flight than buffers hold."""

import os

import quill
from protocol_table.table import case
from support.probe import Ask

WORDS = ("a", "b", "c")
GIVE_UP_S = 0.3
BIG = Ask(blob=os.urandom(100_000))
"""Does not shrink: 200 of them fill every buffer on the way."""


@case
def both_sides_take_turns(row):
    assert row.caller.dialogue("turns", WORDS) == (["A", "B", "C"], None, [])


@case
def more_goes_both_ways_at_once_than_buffers_hold(row):
    replies = row.caller.messages("Chat", iter([BIG] * 200))
    assert [reply.blob for reply in replies] == [BIG.blob] * 200


def is_refused_and_told_where_to_go(row):
    """Instead of turns: a status that names the gRPC port, not a call that waits for ever."""
    replies, error, _ = row.caller.dialogue("turns", WORDS, GIVE_UP_S)
    assert replies == []
    assert type(error) is quill.Unimplemented
    assert error.message == (
        "in probe.v1.Probe/Turns both sides take turns, which HTTP/1.1 and gRPC-Web cannot: "
        f"call it over gRPC at {row.host.server.grpc_address}"
    )


def hears_nothing_while_it_thinks(row):
    """Instead of turns: requests wait in vain in the thread that reads replies; what was said is answered."""
    assert row.caller.dialogue("turns", WORDS, GIVE_UP_S) == (["A"], None, ["a"])
