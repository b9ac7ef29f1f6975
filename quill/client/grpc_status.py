"""What the gRPC transports share: metadata, and grpc's errors turned into Quill's."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Protocol

import grpc

from quill.client import faults
from quill.client.address import Address
from quill.client.options import ClientOptions
from quill.client.transport import Call
from quill.errors import Code, ErrorDetail, InvalidArgument, Metadata, RpcError, Unimplemented
from quill.wire.metadata import from_http
from quill.wire.pushback import PUSHBACK_KEY
from quill.wire.status import status_from_details_bin

_DETAILS_KEY = "grpc-status-details-bin"
# C-core does not say whether a status is its own or the server's: only whole texts that are C-core's own are taken.
_NOT_CONNECTED = re.compile(
    r"failed to connect to all addresses|connections to all backends failing|errors resolving |DNS resolution failed",
    re.IGNORECASE,
)
_CONNECTION_LOST = re.compile(
    r"Stream removed \(.*\)|Socket closed|GOAWAY received.*|Too many pings|(keepalive|ping) (watchdog )?timeout"
    r"|transport closed|End of TCP stream"
    r"|(recvmsg:|sendmsg: ?)?(Connection reset by peer|Broken pipe|Connection timed out)( \(\d+\))?",
    re.IGNORECASE,
)
_DROPPED = "CANCELLED"
"""What a server on C-core says, and no more, of a call that it drops: it stops, or its queue is full."""
_RESET = re.compile(
    r"(Stream removed \()?(RST_STREAM \()?(Received )?RST_STREAM with error code (?P<number>\d+)\)*|Stream removed.*",
    re.IGNORECASE,
)
_TOO_LARGE = re.compile(r"CLIENT: Received message larger than max \((\d+) vs\. \d+\)|Decompressed message larger than")


class GrpcError(Protocol):
    """What the exceptions of grpc and grpc.aio have in common."""

    def code(self) -> grpc.StatusCode:
        """The status code."""

    def details(self) -> str | None:
        """The message."""

    def initial_metadata(self) -> Iterable[tuple[str, str | bytes]] | None:
        """The initial metadata."""

    def trailing_metadata(self) -> Iterable[tuple[str, str | bytes]] | None:
        """The trailing metadata."""


def compression(options: ClientOptions, request: bytes | None) -> grpc.Compression | None:
    """How grpc is to compress a request; None stands for several, whose sizes nobody knows."""
    is_wanted = options.enable_compression or options.compression is not None
    is_large = request is None or len(request) >= options.compress_from_bytes
    return grpc.Compression.Gzip if is_wanted and is_large else None


def timeout_s(call: Call) -> float | None:
    """The deadline of the call for grpc.

    A millisecond early, because C-core rounds up what it tells the server: what is 2000 ms when the call is made may
    still be a little more when it is sent, and would be told as 2010.
    """
    remaining_ms = call.remaining_ms
    return None if remaining_ms is None else max(remaining_ms - 1, 1) / 1000


def only(reply: bytes | None) -> bytes:
    """The reply to a unary call that ended well.

    Raises:
        Unimplemented: There is none: what grpc gives is None.
    """
    if reply is None:
        raise Unimplemented("the reply to a unary call has no message")
    return reply


def metadata(raw: Iterable[tuple[str, str | bytes]] | None) -> Metadata:
    """Metadata as grpc tells it, without what belongs to the protocol: equal to what travels over Connect."""
    told: list[tuple[str, str | bytes]] = []
    for key, value in raw or ():
        if isinstance(value, str):
            told += from_http([(key, value)])
        elif key != _DETAILS_KEY:
            told.append((key, value))
    return tuple(told)


def rpc_error(error: GrpcError, address: Address, options: ClientOptions, *, is_connected: bool | None) -> RpcError:
    """The exception for a status that grpc reports.

    Args:
        error: The status.
        address: The server.
        options: The client's settings.
        is_connected: Whether the channel has a connection now, if that is known; where it has, the status of a failure
            to connect is one that a gateway passed on.
    """
    code = Code.from_grpc(error.code().value[0])
    text = error.details() or ""
    trailing = list(error.trailing_metadata() or ())
    reset = None if trailing else _RESET.fullmatch(text)
    own = _own_failure(code, text, address, options, is_connected=is_connected)
    code, message = (own.code, own.message) if own else (code, text)
    if own is None and reset and reset["number"]:
        message = faults.reset(address, int(reset["number"])).message
    told = RpcError.of(
        code,
        message,
        details=_details(trailing),
        metadata=metadata(error.initial_metadata()),
        trailers=metadata(trailing),
    )
    if (
        own is not None
        and faults.did_not_run(own)
        and is_connected is False
        and (address.unix_path or f":{address.port}") in text
    ):
        return faults.not_sent(told)
    if own is None and reset:
        faults.cut_off(told)
    pushback = next((str(value) for key, value in trailing if key == PUSHBACK_KEY), None)
    return faults.pushed_back(told, pushback)


def _ours(address: Address) -> str:
    """What C-core's texts say of this server, and not of one behind a gateway."""
    return address.unix_path or f":{address.port}"


def _own_failure(
    code: Code, text: str, address: Address, options: ClientOptions, *, is_connected: bool | None
) -> RpcError | None:
    """The client's own words for a failure that C-core found itself; None for a status that the server sent."""
    if code is Code.UNAVAILABLE:
        if not is_connected and _NOT_CONNECTED.match(text):
            return faults.unreachable_text(address, text, options.tls)
        if _CONNECTION_LOST.fullmatch(text):
            return faults.lost(address)
    if code is Code.CANCELLED and text == _DROPPED:
        return faults.dropped(address)
    if code is Code.RESOURCE_EXHAUSTED and (match := _TOO_LARGE.search(text)):
        return faults.reply_too_large(int(match[1]) if match[1] else None, options.max_message_bytes)
    return None


def _details(trailing: Iterable[tuple[str, str | bytes]]) -> tuple[ErrorDetail, ...]:
    """The details of a rich error; damaged ones are left out, the status itself is known."""
    for key, value in trailing:
        if key == _DETAILS_KEY and isinstance(value, bytes):
            try:
                return status_from_details_bin(value)[2]
            except InvalidArgument:
                return ()
    return ()
