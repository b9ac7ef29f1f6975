"""The seam between the client and a protocol: a call, its reply, and what a transport does with them.

Transports move bytes. They know no message types: the client has encoded the request before and decodes the
reply after. Every exception that leaves a transport is a QuillError, asyncio.CancelledError or KeyboardInterrupt.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, Protocol

from quill.client.requests import Requests
from quill.errors import Metadata

Codec = Literal["proto", "json"]
"""How messages are encoded on the wire."""

LINGER_MS = 1000
"""How long the end of a call may take after its last message: nothing more can come that matters."""


@dataclass(slots=True)
class ResponseMetadata:
    """Filled in while a call runs, for those who ask: pass one as ``response=`` and read it afterwards."""

    headers: Metadata = ()
    """The initial metadata, from the arrival of the first message on."""
    trailers: Metadata = ()
    """The trailing metadata, from the end of the call on, errors included."""
    attempts: int = 0
    """How often the call was sent, or tried to be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """Everything that a transport needs to know of one call, checked already."""

    service: str
    method: str
    codec: Codec = "proto"
    metadata: Metadata = field(default=(), repr=False)
    """Request metadata, credentials included; values of ``-bin`` keys are bytes."""
    timeout_ms: int | None = None
    """The deadline of the whole call, told to the server. None: no total deadline."""
    first_message_timeout_ms: int | None = None
    """How long a stream's first message may take."""
    idle_timeout_ms: int | None = None
    """How long the gap between two messages of a stream may be."""
    spent_ms: int = 0
    """What has gone of the timeouts before the call, on learning how to make it."""
    max_attempts: int | None = None
    """How often it may be sent; None for as often as the client says."""
    previous_attempts: int = 0
    """How often the call was sent before."""
    no_side_effects: bool | None = None
    """Whether the server's descriptors say that it may run twice; None where the server was not asked."""
    response: ResponseMetadata = field(default_factory=ResponseMetadata)

    @property
    def path(self) -> str:
        """The path of the method, on every protocol: ``/package.Service/Method``."""
        return f"/{self.service}/{self.method}"

    def may_run_twice(self) -> bool:
        """Whether the contract says of this unary method that it has no side effects."""
        if self.no_side_effects is not None:
            return self.no_side_effects
        from quill.wire.descriptors import has_no_side_effects

        return has_no_side_effects(self.service, self.method)

    @property
    def remaining_ms(self) -> int | None:
        """The deadline of the call when it begins; None for no deadline."""
        return None if self.timeout_ms is None else max(1, self.timeout_ms - self.spent_ms)


class AsyncByteStream(Protocol):
    """The messages of one streaming call, as they come. Belongs to one event loop."""

    idle_timeout_ms: int | None
    """How long the next gap may be; may be changed while the call runs."""

    async def next_message(self) -> bytes | None:
        """The next message; None where the call ended with OK.

        Raises:
            RpcError: The status that ended the call; DEADLINE_EXCEEDED where a timeout of the call ran out.
        """
        ...

    def cancel(self) -> None:
        """Cancel the call if it still runs, without waiting for anything. May be called again."""
        ...


class SyncByteStream(Protocol):
    """The messages of one streaming call, as they come. One thread reads."""

    idle_timeout_ms: int | None
    """How long the next gap may be; may be changed while the call runs."""

    def next_message(self) -> bytes | None:
        """The next message; None where the call ended with OK. Errors as in AsyncByteStream."""
        ...

    def cancel(self) -> None:
        """Cancel the call if it still runs, from any thread; a reader that waits is woken. May be called again."""
        ...

    def abandon(self) -> None:
        """As ``cancel``, for a finalizer: nobody reads, and this thread may be in the middle of anything."""
        ...


class AsyncTransport(Protocol):
    """One connection, or pool of them, to one server, on one event loop."""

    async def unary(self, call: Call, request: bytes) -> bytes:
        """Send one message, return one message."""
        ...

    def stream(self, call: Call, request: bytes | Requests) -> AsyncByteStream:
        """Send one message, or those of an iterator; nothing is sent before the first ``next_message``.

        What the iterator raises cancels the call and comes out of ``next_message``. When the call has ended the
        iterator is closed.
        """
        ...

    async def aclose(self) -> None:
        """End all calls and close the connections."""
        ...


class AsyncWire(AsyncTransport, Protocol):
    """A protocol itself, with nothing around it."""

    async def get_status(self, path: str, timeout_ms: int) -> int | None:
        """The HTTP status of a GET; None where the protocol has no GET. Errors as in ``unary``."""
        ...


class SyncTransport(Protocol):
    """One connection, or pool of them, to one server, usable from many threads."""

    def unary(self, call: Call, request: bytes) -> bytes:
        """Send one message, return one message."""
        ...

    def stream(self, call: Call, request: bytes | Iterable[bytes]) -> SyncByteStream:
        """Send one message, or those of an iterator; as ``stream`` of an AsyncTransport."""
        ...

    def close(self) -> None:
        """End all calls and close the connections."""
        ...


class SyncWire(SyncTransport, Protocol):
    """A protocol itself, with nothing around it."""

    def get_status(self, path: str, timeout_ms: int) -> int | None:
        """The HTTP status of a GET; None where the protocol has no GET. Errors as in ``unary``."""
        ...
