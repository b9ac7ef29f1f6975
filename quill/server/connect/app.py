"""The ASGI application of the HTTP port: health pages, and calls of every registered method.

Connect, gRPC-Web and, on hosts that can send trailers, gRPC; all of them through one guard and one `Exchange`.
"""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from http import HTTPStatus
from typing import Any, Never, cast

from connectrpc.codec import Codec
from connectrpc.request import RequestContext
from connectrpc.server import ConnectASGIApplication, Endpoint

from quill.limits import Limits
from quill.server.connect.compression import ENCODINGS, BoundedCompression
from quill.server.connect.cors import Cors
from quill.server.connect.exchange import Exchange, current_exchange
from quill.server.connect.outgoing import Outgoing
from quill.server.connect.query import as_post, cacheable_by_permission
from quill.server.connect.request import Request
from quill.server.connect.transcoder import Transcoder
from quill.server.connect.unary import METHOD, UnaryCall
from quill.server.connect.web_text import receive_text, send_text
from quill.server.guard import Guard
from quill.server.health import Health
from quill.server.http_host import Receive, Send
from quill.server.registry import Handler, Registry
from quill.wire.descriptors import has_no_side_effects
from quill.wire.negotiate import Accepted, accepted

_JSON = b"application/json"
_TEXT = b"text/plain; charset=utf-8"

_log = logging.getLogger("quill.server")


class HttpApplication:
    """What the HTTP port answers.

    Args:
        guard: The door for calls.
        registry: What is served.
        limits: What is accepted.
        health: What /readyz says.
        grpc_address: Where to send callers of methods that HTTP/1.1 cannot carry; gives None without a gRPC port.
        cors: Which web pages may read replies.
        compression: Whether replies are compressed for clients that accept it.
    """

    def __init__(
        self,
        guard: Guard,
        registry: Registry,
        limits: Limits,
        health: Health,
        *,
        grpc_address: Callable[[], str | None],
        cors: Cors,
        compression: bool,
    ) -> None:
        self._guard = guard
        self._registry = registry
        self._limits = limits
        self._health = health
        self._grpc_address = grpc_address
        self._cors = cors
        self._compression = compression
        self._compressions: dict[str, BoundedCompression] = {
            encoding: BoundedCompression(encoding, limits) for encoding in ENCODINGS
        }
        self._transcoder = Transcoder(limits)
        self._connect = _ConnectCalls(limits, self._compressions.values())

    def close(self) -> None:
        """No more calls come: let go of the threads."""
        self._transcoder.close()

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request."""
        request = Request(scope)
        if not request.names_its_host:
            await _refuse(send, HTTPStatus.BAD_REQUEST, "a request has one Host", (b"connection", b"close"))
            return
        if self._cors:
            if self._cors.is_preflight(request):
                await self._cors.answer_preflight(request, send)
                return
            send = self._cors.sender(request, send)
        if request.path in ("/healthz", "/readyz"):
            await self._answer_health(request, send)
            return
        registered = self._registered(request)
        if request.is_grpc_without_trailers:
            said = "this port serves Connect and gRPC-Web; gRPC needs HTTP/2 trailers, which it cannot send"
            await _refuse(send, HTTPStatus.UNSUPPORTED_MEDIA_TYPE, said)
        elif registered is None and not request.is_call:
            await _refuse(send, HTTPStatus.NOT_FOUND, "not found")
        elif request.method not in (methods := _methods(request, registered)):
            await _refuse_method(send, methods)
        elif request.method == "GET":
            scope, receive = as_post(scope, receive)
            await self._call(Request(scope), registered, receive, cacheable_by_permission(send))
        elif request.is_text:
            await self._call(request, registered, receive_text(receive), send_text(send))
        else:
            await self._call(request, registered, receive, send)

    async def _call(self, request: Request, registered: Handler | None, receive: Receive, send: Send) -> None:
        """Run one call."""
        wanted = accepted(request.header(request.headers.accepted) or "") if self._compression else Accepted()
        outgoing = Outgoing(send, wanted, has_trailers=request.protocol == "grpc")
        exchange = Exchange(
            request,
            registered,
            receive,
            outgoing,
            guard=self._guard,
            limits=self._limits,
            transcoder=self._transcoder,
            grpc_address=self._grpc_address(),
        )
        token = current_exchange.set(weakref.proxy(exchange)) if exchange.is_enveloped else None
        try:
            if token is not None:
                await self._connect(request.scope(), exchange.receive, outgoing)
            else:
                await UnaryCall(
                    request, exchange, receive, outgoing, limits=self._limits, compressions=self._compressions
                ).answer()
        except asyncio.CancelledError:
            # The host is closing, or the client left: this was the request's whole task, and what could be told has
            # been told.
            _log.debug("%s was cancelled", request.path)
        finally:
            exchange.take_back_cancellation()
            if token is not None:
                current_exchange.reset(token)

    def _registered(self, request: Request) -> Handler | None:
        """The handler of a path, for its kind; no call is let through by this.

        To those who may not call it a method does not exist: its kind would tell them that it does.
        """
        try:
            allowed = self._guard.admission.allows(request.details, request.auth_context)
            return self._registry.find(request.details) if allowed else None
        except Exception:  # noqa: BLE001 - a generic handler of the user's; the guard asks it again and reports
            return None

    async def _answer_health(self, request: Request, send: Send) -> None:
        """Liveness and readiness, open to everybody: /healthz as long as the loop runs, /readyz while SERVING."""
        if request.method not in ("GET", "HEAD"):
            await _refuse_method(send, ("GET", "HEAD"))
        elif request.path == "/healthz" or self._health.is_serving:
            await _answer(send, HTTPStatus.OK, _JSON, b'{"status": "SERVING"}')
        else:
            await _answer(send, HTTPStatus.SERVICE_UNAVAILABLE, _JSON, b'{"status": "NOT_SERVING"}')


class _ConnectCalls(ConnectASGIApplication[None]):
    """connectrpc for messages in envelopes, given them raw, and Quill's own decoders."""

    def __init__(self, limits: Limits, compressions: Iterable[BoundedCompression]) -> None:
        super().__init__(
            service=None,
            endpoints=lambda _service: cast("Any", _Endpoints()),  # its type of an endpoint has no public name
            interceptors=[_Admission()],
            read_max_bytes=limits.max_message_bytes,
            compressions=compressions,
            codecs=[_RawCodec("proto"), _RawCodec("json")],
        )

    @property
    def path(self) -> str:
        """Every path."""
        return ""


class _Endpoints(Mapping[str, Endpoint[Any, Any]]):
    """The same endpoint for every path: it hands the messages on. connectrpc only calls ``get``."""

    _stream: Endpoint[Any, Any] = Endpoint.bidi_stream(METHOD, lambda messages, _: _Sent(messages))

    def __getitem__(self, path: str) -> Endpoint[Any, Any]:
        return self._stream

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


class _Sent:
    """The replies of a stream, for connectrpc: none, because the exchange sends them itself."""

    def __init__(self, messages: AsyncIterator[bytes]) -> None:
        self._messages = messages

    def __aiter__(self) -> _Sent:
        return self

    async def __anext__(self) -> Never:
        await current_exchange.get().respond_in_envelopes(self._messages)
        raise StopAsyncIteration


class _Admission:
    """Runs the guard where connectrpc has read the headers, set the deadline and not begun with the body."""

    async def on_start(self, ctx: RequestContext[Any, Any]) -> None:
        """Raise ConnectError where the call may not run."""
        await current_exchange.get().admit(ctx)

    async def on_end(self, _token: None, _ctx: RequestContext[Any, Any], _error: Exception | None) -> None:
        """Nothing to undo."""


class _RawCodec(Codec[bytes, bytes]):
    """Hands messages through; the exchange knows what they are."""

    def __init__(self, name: str) -> None:
        self._name = name

    def name(self) -> str:
        """The name in content types."""
        return self._name

    def encode(self, message: bytes) -> bytes:
        """The message."""
        return message

    def decode(self, data: bytes | bytearray, message_class: type[bytes]) -> bytes:
        """The message."""
        return data if isinstance(data, bytes) else bytes(data)


def _methods(request: Request, registered: Handler | None) -> tuple[str, ...]:
    """The HTTP methods that a method is called with; that of a POST is not looked up.

    Of an unknown one the guard says so, whichever way it is called.
    """
    service, _, method = request.path[1:].rpartition("/")
    takes_get = request.method != "POST" and (registered is None or has_no_side_effects(service, method))
    return ("GET", "POST") if takes_get else ("POST",)


async def _refuse_method(send: Send, methods: Sequence[str]) -> None:
    """Say which HTTP methods there are."""
    allow = (b"allow", ", ".join(methods).encode())
    await _refuse(send, HTTPStatus.METHOD_NOT_ALLOWED, "use " + " or ".join(methods), allow)


async def _refuse(send: Send, status: HTTPStatus, said: str, *headers: tuple[bytes, bytes]) -> None:
    """Refuse what is no call. Not in JSON: of an error in JSON, Connect's clients expect the members of theirs."""
    await _answer(send, status, _TEXT, f"{said}\n".encode(), *headers)


async def _answer(
    send: Send, status: HTTPStatus, content_type: bytes, body: bytes, *headers: tuple[bytes, bytes]
) -> None:
    """Answer with a small document."""
    head = [(b"content-type", content_type), (b"content-length", str(len(body)).encode()), *headers]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": body})
