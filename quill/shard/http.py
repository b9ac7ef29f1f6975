"""HTTP to a sidecar: one exchange at a time is bounded in time and size, and every failure says what may have happened.

No proxy, no environment, no redirects.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

import h11

from quill.errors import ResourceExhausted, Unavailable
from quill.shard import faults
from quill.shard.connection import Connection, Lost, Reply
from quill.shard.faults import Failed
from quill.shard.messages import Malformed

if TYPE_CHECKING:
    from quill.shard.config import SidecarConfig

_KEEPALIVE_S = 3.0
"""Less than servers keep an idle connection, so that none is used while it is being closed."""
_MAX_POSTS = 64
"""At a time. A sidecar whose queue is full lets them wait, and polls must not wait behind them."""
_MAX_IDLE_CONNECTIONS = 4
_CONNECT_SHARE = 0.8
_PATH_CHARACTERS = "/%:@!$&'()*+,;=~-._"
_SERVER_ERRORS = range(500, 600)


class SidecarHttp:
    """The HTTP client of one sidecar, in one event loop.

    Args:
        config: Where it is, and the bounds.
    """

    def __init__(self, config: SidecarConfig) -> None:
        self._config = config
        self._loop = asyncio.get_running_loop()
        parts = urlsplit(config.base_url)
        self._secure = parts.scheme == "https"
        self._host = parts.hostname or ""
        self._port = parts.port or (443 if self._secure else 80)
        self._prefix = quote(parts.path.rstrip("/"), safe=_PATH_CHARACTERS)
        self._headers = [
            ("host", parts.netloc.encode("idna")),
            ("accept", "application/json"),
            ("accept-encoding", "identity"),
            ("user-agent", "quill"),
        ]
        self._tls: ssl.SSLContext | None = None
        self._posts = asyncio.Semaphore(_MAX_POSTS)
        self._open: set[Connection] = set()
        self._idle: list[Connection] = []
        self._pop_place = f"/pop-result of {config.place}"

    def poll(self, request_id: str) -> h11.Request:
        """The request that polls for an id; it may be sent many times."""
        return self._request("GET", self._config.pop_result_endpoint, f"?request_id={quote(request_id, safe='')}")

    async def pop(self, poll: h11.Request) -> bytes:
        """Send a poll; the body of the reply.

        Raises:
            Failed: There is none.
            Malformed: It is HTML or compressed.
        """
        return await self._exchange(poll, self._pop_place)

    async def broadcast(self, body: bytes) -> bytes:
        """Send a prompt; the body of the reply.

        Raises:
            Failed: There is none.
            Malformed: It is HTML or compressed.
        """
        place = f"/broadcast-work of {self._config.place}"
        length = [("content-type", "application/json"), ("content-length", str(len(body)))]
        post = self._request("POST", self._config.broadcast_endpoint, headers=length)
        try:
            async with asyncio.timeout(self._config.request_timeout_s):
                await self._posts.acquire()
        except TimeoutError:
            raise Failed(Unavailable(f"too many requests wait for {place}"), sent=False, again=True) from None
        try:
            return await self._exchange(post, place, body)
        finally:
            self._posts.release()

    async def health(self) -> bytes:
        """The body of /health.

        Raises:
            Failed: There is none.
            Malformed: It is HTML or compressed.
        """
        return await self._exchange(
            self._request("GET", self._config.health_endpoint), f"/health of {self._config.place}"
        )

    async def aclose(self) -> None:
        """Close the connections."""
        for connection in self._open:
            connection.abort()
        self._open.clear()
        self._idle.clear()
        await asyncio.sleep(0)  # in which the loop closes the sockets

    def _request(
        self, method: str, endpoint: str, query: str = "", *, headers: list[tuple[str, str]] | None = None
    ) -> h11.Request:
        target = self._prefix + quote(endpoint, safe=_PATH_CHARACTERS) + query
        return h11.Request(method=method, target=target, headers=[*self._headers, *(headers or ())])

    async def _exchange(self, request: h11.Request, place: str, body: bytes = b"") -> bytes:
        due_s = self._loop.time() + self._config.request_timeout_s
        connection = self._kept() or await self._connect()
        try:
            reply = await connection.exchange(request, body, max_body_bytes=self._config.max_body_bytes, due_s=due_s)
        except TimeoutError:
            text = f"{place} gave no whole reply within {self._config.request_timeout_s:g} s"
            raise Failed(Unavailable(text), sent=True, lost=True, again=True) from None
        except Lost as lost:
            text = f"the connection to {place} was lost before the reply was whole"
            raise Failed(Unavailable(text), sent=lost.sent, lost=lost.sent, again=True) from None
        finally:
            self._put_back(connection)
        return self._checked(reply, place)

    def _checked(self, reply: Reply, place: str) -> bytes:
        if not reply.ok:
            error = faults.status(place, reply.status, reply.body, reply.header(b"retry-after"))
            raise Failed(error, sent=True, again=reply.status in _SERVER_ERRORS)
        if not reply.whole:
            text = f"the reply of {place} has more than max_body_bytes, {self._config.max_body_bytes}"
            raise Failed(ResourceExhausted(text), sent=True, lost=True)
        for header, wrong in ((b"content-type", "html"), (b"content-encoding", "")):
            value = (reply.header(header) or "").lower()
            if value and value != "identity" and wrong in value:
                raise Malformed(f"its {header.decode()} is {value[:40]!r}, and JSON was asked for")
        return reply.body

    # Connections

    def _kept(self) -> Connection | None:
        """The one that was used last, so that those which are not needed grow old."""
        oldest_s = self._loop.time() - _KEEPALIVE_S
        while self._idle:
            connection = self._idle.pop()
            if connection.usable and connection.idle_since_s > oldest_s:
                return connection
            self._drop(connection)
        return None

    def _put_back(self, connection: Connection) -> None:
        if connection.usable and len(self._idle) < _MAX_IDLE_CONNECTIONS and connection in self._open:
            self._idle.append(connection)
        else:
            self._drop(connection)

    def _drop(self, connection: Connection) -> None:
        connection.abort()
        self._open.discard(connection)

    async def _connect(self) -> Connection:
        try:
            async with asyncio.timeout(self._config.request_timeout_s * _CONNECT_SHARE):
                if self._secure and self._tls is None:
                    self._tls = await asyncio.to_thread(ssl.create_default_context)  # authorities take 20 ms to load
                _, connection = await self._loop.create_connection(Connection, self._host, self._port, ssl=self._tls)
        except TimeoutError:
            why = "no answer"
        except OSError as error:
            why = faults.reason(error)
        else:
            self._open.add(connection)
            return connection
        raise Failed(Unavailable(f"cannot reach {self._config.place}: {why}"), sent=False, again=True) from None
