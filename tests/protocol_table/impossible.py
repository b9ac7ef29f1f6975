"""What cannot be: cell and case, why, and what happens instead."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

from protocol_table import duplex, leaving, metadata
from protocol_table.cells import Row


@dataclass(frozen=True)
class Instead:
    """Why a case cannot be in a cell, and a case that says what is seen there."""

    reason: str
    run: Callable[[Row], None]


def _grpc_end(kind):
    return Instead(
        "a grpc.aio server tells a handler of a cancelled call that the requests have ended, and up to some "
        "milliseconds later that the call is cancelled; nothing tells the two ends apart",
        functools.partial(leaving.ends_the_handler_in_some_way, kind=kind),
    )


_HEADERS_LOST = Instead(
    "grpc.aio may forget the headers of a call without requests and replies, which ends before it has asked for them",
    functools.partial(metadata.a_stream_without_messages_has_its_trailers, kind="chat"),
)
_NO_TURNS = Instead("HTTP/1.1 sends a whole request before its response", duplex.is_refused_and_told_where_to_go)
_WEB = Instead("gRPC-Web has no bidirectional streams", duplex.is_refused_and_told_where_to_go)
_BLOCKING = Instead(
    "the blocking client pulls requests in the thread that reads replies: while they are waited for nobody reads",
    duplex.hears_nothing_while_it_thinks,
)

IMPOSSIBLE: dict[tuple[str, str], Instead] = {
    ("connect-sync", "both_sides_take_turns"): _NO_TURNS,
    ("connect-async", "both_sides_take_turns"): _NO_TURNS,
    ("connect-h2c-sync", "both_sides_take_turns"): _BLOCKING,
    ("grpc-web-sync", "both_sides_take_turns"): _WEB,
    ("grpc-web-async", "both_sides_take_turns"): _WEB,
    ("grpc-web-h2c-sync", "both_sides_take_turns"): _WEB,
    ("grpc-web-h2c-async", "both_sides_take_turns"): _WEB,
    ("grpc-async", "a_stream_without_messages_has_its_metadata[chat]"): _HEADERS_LOST,
    ("grpc-sync", "cancelling_amid_the_requests_is_no_end_of_them[collect]"): _grpc_end("collect"),
    ("grpc-sync", "cancelling_amid_the_requests_is_no_end_of_them[chat]"): _grpc_end("chat"),
    ("grpc-async", "cancelling_amid_the_requests_is_no_end_of_them[collect]"): _grpc_end("collect"),
    ("grpc-async", "cancelling_amid_the_requests_is_no_end_of_them[chat]"): _grpc_end("chat"),
}
