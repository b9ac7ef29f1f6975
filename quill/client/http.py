"""What HTTP/1.1 and HTTP/2 have in common: bounds, a request, the head of its response, an exchange on a loop."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

MAX_HEAD_BYTES = 100 * 1024
"""How large the head of a response may be."""

IDLE_EXPIRY_S = 4.0
"""Idle connections of HTTP/1.1 are dropped before servers drop them (uvicorn: 5 s): a request that meets the end of a
connection may have run, and is not sent again."""

END = b""
"""What stands for the end of a body where pieces of it are asked for."""

Fields = list[tuple[str, str]]
"""Names in lower case, and values."""


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """A request. Its path is absolute; ``host`` and the framing of the body are the connection's matter."""

    method: str
    path: str
    headers: Fields = field(repr=False)
    body: bytes | None = field(repr=False)
    """All of it; None where its parts are sent one by one."""

    @property
    def framing(self) -> Fields:
        """The length of the body, where it is known; a GET has none, and does not speak of it."""
        has_length = self.body is not None and (self.body or self.method != "GET")
        return [("content-length", str(len(self.body or b"")))] if has_length else []


@dataclass(frozen=True, slots=True)
class Head:
    """Status and headers of a response."""

    status: int
    headers: Fields


class HttpExchange(Protocol):
    """One request and its response. The request may be sent by one task while another reads the response.

    Raises, from ``head`` and ``chunk``: RpcError where the server is lost, refuses the request, or breaks the rules of
    HTTP; marked by ``faults.not_sent`` where the request provably did not run.
    """

    async def send(self, part: bytes) -> None:
        """Send a part of the body; returns when it was taken. Raises OSError where the exchange has ended."""
        ...

    async def finish(self) -> None:
        """The body ends here."""
        ...

    async def head(self) -> Head:
        """The head of the response, which may come before the request is complete."""
        ...

    async def chunk(self) -> bytes:
        """The next piece of the body; END once it is complete."""
        ...

    def close(self) -> None:
        """Give up what is not done yet, and wake whoever waits for it. May be called again."""
        ...
