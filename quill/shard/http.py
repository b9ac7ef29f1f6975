"""HTTP to a sidecar: one exchange at a time is bounded in time and size, and every failure says what may have happened.

httpx loads when the first exchange is made. No proxy, no environment, no redirects.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING
from urllib.parse import quote

from quill.errors import InvalidUsage, ResourceExhausted, RpcError, Unavailable
from quill.shard import faults
from quill.shard.messages import Malformed

if TYPE_CHECKING:
    import httpx

    from quill.shard.config import SidecarConfig

_KEEPALIVE_S = 3.0
"""Less than servers keep an idle connection, so that none is used while it is being closed."""
_MAX_CONNECTIONS = 64
_MAX_IDLE_CONNECTIONS = 4
"""Every request looks at all of them; polls one after the other need no more."""
_CONNECT_SHARE = 0.8
_HEADERS = {"accept": "application/json", "accept-encoding": "identity", "user-agent": "quill"}
_OK = range(200, 300)
_SERVER_ERRORS = range(500, 600)
_EXCERPT_BYTES = 2048


class Failed(Exception):  # noqa: N818 - what became of an exchange
    """An exchange failed.

    Args:
        error: For the caller.
        sent: Whether the sidecar may have seen the request.
        lost: Whether a reply may have been lost on its way.
        again: Whether a poll may be tried again.
    """

    def __init__(self, error: RpcError, *, sent: bool, lost: bool = False, again: bool = False) -> None:
        super().__init__(error.message)
        self.error = error
        self.sent = sent
        self.lost = lost
        self.again = again


class SidecarHttp:
    """The HTTP client of one sidecar, in one event loop.

    Args:
        config: Where it is, and the bounds.

    Raises:
        InvalidUsage: httpx is not installed.
    """

    def __init__(self, config: SidecarConfig) -> None:
        try:
            import httpx
        except ImportError:
            raise InvalidUsage("the sidecar client needs httpx: pip install 'quill-rpc[shard]'") from None
        self._config = config
        self._httpx = httpx
        # Below httpx's client, which takes as long again for redirects, cookies and the like that are not wanted here.
        self._transport = httpx.AsyncHTTPTransport(
            trust_env=False,
            verify=config.base_url.startswith("https:"),  # authorities take 20 ms to load
            limits=httpx.Limits(
                max_connections=_MAX_CONNECTIONS,
                max_keepalive_connections=_MAX_IDLE_CONNECTIONS,
                keepalive_expiry=_KEEPALIVE_S,
            ),
        )
        # What takes longer once it is connected, the exchange as a whole ends.
        connect_s = config.request_timeout_s * _CONNECT_SHARE
        self._extensions = {"timeout": {"connect": connect_s, "pool": connect_s}}

    def poll(self, request_id: str) -> httpx.Request:
        """The request that polls for an id; it may be sent many times."""
        url = f"{self._config.url(self._config.pop_result_endpoint)}?request_id={quote(request_id, safe='')}"
        return self._request("GET", url)

    async def pop(self, poll: httpx.Request) -> bytes:
        """Send a poll; the body of the reply.

        Raises:
            Failed: There is none.
            Malformed: It is HTML or compressed.
        """
        return await self._exchange(poll, f"/pop-result of {self._config.place}")

    async def broadcast(self, body: bytes) -> bytes:
        """Send a prompt; the body of the reply.

        Raises:
            Failed: There is none.
            Malformed: It is HTML or compressed.
        """
        url = self._config.url(self._config.broadcast_endpoint)
        post = self._request("POST", url, body)
        return await self._exchange(post, f"/broadcast-work of {self._config.place}")

    async def health(self) -> bytes:
        """The body of /health.

        Raises:
            Failed: There is none.
            Malformed: It is HTML or compressed.
        """
        get = self._request("GET", self._config.url(self._config.health_endpoint))
        return await self._exchange(get, f"/health of {self._config.place}")

    async def aclose(self) -> None:
        """Close the connections."""
        await self._transport.aclose()

    def _request(self, method: str, url: str, body: bytes | None = None) -> httpx.Request:
        headers = _HEADERS if body is None else _HEADERS | {"content-type": "application/json"}
        return self._httpx.Request(method, url, headers=headers, content=body, extensions=self._extensions)

    async def _exchange(self, request: httpx.Request, place: str) -> bytes:
        httpx = self._httpx
        try:
            async with asyncio.timeout(self._config.request_timeout_s):  # httpx's own starts anew with every byte
                return await self._send(request, place)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            why = "no answer" if isinstance(error, httpx.ConnectTimeout) else reason(error)
            text = f"cannot reach {self._config.place}: {why}"
            raise Failed(Unavailable(text), sent=False, again=True) from None
        except httpx.PoolTimeout:
            raise Failed(Unavailable(f"too many requests wait for {place}"), sent=False, again=True) from None
        except (TimeoutError, httpx.TimeoutException):
            text = f"{place} gave no whole reply within {self._config.request_timeout_s:g} s"
            raise Failed(Unavailable(text), sent=True, lost=True, again=True) from None
        except httpx.HTTPError:
            text = f"the connection to {place} was lost before the reply was whole"
            raise Failed(Unavailable(text), sent=True, lost=True, again=True) from None

    async def _send(self, request: httpx.Request, place: str) -> bytes:
        response = await self._transport.handle_async_request(request)
        try:
            ok = response.status_code in _OK
            body = await self._read(
                response, place, cap=self._config.max_body_bytes if ok else _EXCERPT_BYTES, whole=ok
            )
        finally:
            await response.aclose()
        if not ok:
            error = faults.status(place, response.status_code, body, response.headers.get("retry-after"))
            raise Failed(error, sent=True, again=response.status_code in _SERVER_ERRORS)
        for header, wrong in (("content-type", "html"), ("content-encoding", "")):
            value = response.headers.get(header, "").lower()
            if value and value != "identity" and wrong in value:
                raise Malformed(f"its {header} is {value[:40]!r}, and JSON was asked for")
        return body

    async def _read(self, response: httpx.Response, place: str, *, cap: int, whole: bool) -> bytes:
        body = bytearray()
        async for chunk in response.aiter_raw():
            body += chunk
            if len(body) > cap:
                if not whole:
                    break
                text = f"the reply of {place} has more than max_body_bytes, {cap}; it was not read to its end"
                raise Failed(ResourceExhausted(text), sent=True, lost=True)
        return bytes(body[:cap])


def reason(error: BaseException) -> str:
    """Why no connection could be made, in the words of the operating system where it has some."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ConnectionRefusedError):
            return "connection refused"
        if isinstance(cause, OSError) and cause.errno is not None and cause.errno > 0:
            return os.strerror(cause.errno).lower()
        cause = cause.__cause__ or cause.__context__
    return "the connection failed"
