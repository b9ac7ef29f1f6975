"""How much a server accepts. One place for every bound."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

from quill.errors import InvalidUsage

MAX_MESSAGE_DEPTH = 100
"""How many messages may lie within each other in JSON, the outermost included. Of the binary form protobuf's own
parsers read as many, and upb one more."""

MAX_TENSOR_RANK = 64
"""How many dimensions a tensor may have: what NumPy holds from version 2 on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of a server. Each is checked before what it bounds is buffered or started.

    Times are in seconds. On the gRPC port C-core enforces the bounds of messages, metadata, connections and times,
    in its own words.

    A server with ``http2`` keeps the bounds of messages, metadata, calls and streams on its HTTP port. Of the times
    there it keeps that of HTTP/1.1 headers, which also ends idle HTTP/1.1 connections; connections above theirs wait.

    Raises:
        InvalidUsage: A count or size is below 1 or above what there can be, or a time is not above 0.
    """

    max_message_bytes: int = 64 * 1024 * 1024
    """One request message, after decompression. RESOURCE_EXHAUSTED above."""
    max_reply_bytes: int = 64 * 1024 * 1024
    """One reply message, before compression; in JSON, its text. RESOURCE_EXHAUSTED above."""
    max_metadata_bytes: int = 16 * 1024
    """All request headers of one call together."""
    max_concurrent_calls: int = 10_000
    """Calls inside a handler, or whose large reply waits for its client, on both ports together. RESOURCE_EXHAUSTED
    above."""
    max_unread_bytes: int = 512 * 1024 * 1024
    """Replies of unary calls that wait for clients which do not read, on all HTTP/2 connections together. The process
    holds up to twice as much for them. RESOURCE_EXHAUSTED for the reply that is too many, unless it is the only one."""
    max_live_streams: int = 10_000
    """Those of them that stream their requests or replies. RESOURCE_EXHAUSTED above."""
    max_pending_requests: int = 10_000
    """Calls that wait for a handler on the gRPC port; C-core's own default loses calls when thousands open at once."""
    max_connections: int = 10_000
    """Open connections of each port. Status 503 above on the HTTP port; the gRPC port closes them."""
    handshake_timeout_s: float = 10.0
    """For a TLS handshake, and on the gRPC port for the HTTP/2 preface and settings. The connection is closed after."""
    header_timeout_s: float = 10.0
    """For the headers of a request on the HTTP port, from its first byte (on a new connection from its opening)."""
    body_idle_timeout_s: float = 60.0
    """For the next byte of a request's body on the HTTP port, while the server is ready for it. Status 408 above."""
    connection_idle_timeout_s: float = 300.0
    """How long a connection without calls is kept; on the HTTP port also one that closes behind a reply of which its
    client takes nothing."""
    keepalive_interval_s: float = 20.0
    """How long a connection may be silent before its peer is asked whether it is still there: by a ping of HTTP/2 on
    the gRPC port, by a probe of TCP on the HTTP port."""
    keepalive_timeout_s: float = 10.0
    """How long a peer may answer nothing that it was asked or sent before its connection is closed, as if it had hung
    up. A peer that only reads slowly does answer."""
    min_ping_interval_s: float = 5.0
    """How often clients may ping the gRPC port, with and without calls; those that do more often are sent away."""
    max_decompression_window_bytes: int = 8 * 1024 * 1024
    """The window that a Zstandard frame may ask for (RFC 8878, section 3.1.1.1.2)."""
    max_message_depth: int = MAX_MESSAGE_DEPTH
    """How many messages may lie within each other in JSON, the outermost included: 100 at most, as in the binary form,
    where protobuf itself bounds them. INVALID_ARGUMENT above."""
    max_tensor_bytes: int = 1024 * 1024 * 1024
    """The elements of one tensor that is received. RESOURCE_EXHAUSTED above."""
    max_tensor_rank: int = 32
    """The dimensions of one tensor that is received: 64 at most. RESOURCE_EXHAUSTED above."""
    max_tensors: int = 1024
    """The tensors of one call of TensorService that are received. RESOURCE_EXHAUSTED above."""
    max_receiving_bytes: int = 4 * 1024 * 1024 * 1024
    """The memory of tensors that are received in chunks or by sockets, of all calls together, for as long as a model or
    anybody else holds them; calls with less than 1 MiB are not counted. RESOURCE_EXHAUSTED above. A quarter of it stays
    for the next ones when they are gone."""
    max_lanes: int = 256
    """Lanes that callers have negotiated, of all kinds. RESOURCE_EXHAUSTED above, and callers send chunks."""
    max_lanes_per_principal: int = 64
    """Those of one principal. RESOURCE_EXHAUSTED above."""
    max_lane_bytes: int = 4 * 1024 * 1024 * 1024
    """The memory that is shared with callers. RESOURCE_EXHAUSTED above."""
    max_lane_bytes_per_principal: int = 2 * 1024 * 1024 * 1024
    """That of one principal. RESOURCE_EXHAUSTED above."""
    max_prompt_bytes: int = 4 * 1024 * 1024
    """The text of a prompt or of all messages of a conversation. RESOURCE_EXHAUSTED above."""
    max_runs: int = 10_000
    """Generations alive at once. RESOURCE_EXHAUSTED above."""
    max_session_runs: int = 10_000
    """Generations alive at once on one session. RESOURCE_EXHAUSTED above, for the generation that is too many."""
    max_session_starts: int = 1_000
    """Generations that one frame of a session may start. RESOURCE_EXHAUSTED above, for the session."""
    max_journal_bytes: int = 1024 * 1024
    """What a run may produce ahead of its reader before its backend is paused, and what of it can be resumed."""
    max_resume_ttl_s: float = 600.0
    """How long a run may ask to outlive its connection. What asks for more gets this."""
    max_kept_bytes: int = 1024 * 1024 * 1024
    """The memory of runs that can be resumed, of which each has its part set aside, and of finished runs that are kept.
    The oldest finished runs go first; then new resumable runs are refused. RESOURCE_EXHAUSTED above."""
    max_kept_bytes_per_principal: int = 512 * 1024 * 1024
    """That of the runs of one principal. RESOURCE_EXHAUSTED above."""
    max_finished_bytes: int = 64 * 1024 * 1024
    """Of max_kept_bytes, that for finished runs that cannot be resumed: they are kept for callers who did not get the
    reply and ask again. The oldest go first."""

    def __post_init__(self) -> None:
        _check_positive(self)
        for name, most in (("max_message_depth", MAX_MESSAGE_DEPTH), ("max_tensor_rank", MAX_TENSOR_RANK)):
            if getattr(self, name) > most:
                raise InvalidUsage(f"{name} must be at most {most}, got {getattr(self, name)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """What one principal may use; None for no bound. RESOURCE_EXHAUSTED above, with the time to wait.

    On a server that asks for no credentials all callers are one principal. Health is not counted.

    Raises:
        InvalidUsage: A bound is below 1.
    """

    requests_per_minute: int | None = None
    """Calls; as many may come at once, and they come back evenly over the minute."""
    live_streams: int | None = None
    """Calls at once that stream their requests or replies."""
    tokens_per_minute: int | None = None
    """Tokens of prompts and completions together. A generation is never cut for it: what it used above the bound is
    waited for before the next call."""

    def __post_init__(self) -> None:
        _check_positive(self)


def _check_positive(bounds: Any) -> None:
    for field in fields(bounds):
        value = getattr(bounds, field.name)
        if isinstance(value, int) and value < 1:
            raise InvalidUsage(f"{field.name} must be at least 1, got {value}")
        if isinstance(value, float) and not 0 < value < math.inf:
            raise InvalidUsage(f"{field.name} must be a number of seconds above 0, got {value:g}")
