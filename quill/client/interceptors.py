"""What sees every call of a client: interceptors, the same for every protocol and for one reply or many.

An interceptor is a generator function. What stands before its ``yield`` happens before the call, what stands behind it
happens after the call's end, however it ended; the idea is that of ``contextlib.contextmanager``.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from quill.client.address import Address
from quill.client.headers import Headers
from quill.client.options import check_timeout
from quill.client.requests import Requests, may_be_sent_again
from quill.client.transport import Call
from quill.errors import Code, InvalidType, InvalidUsage, Metadata, RpcError
from quill.wire.metadata import check_key, check_value


@dataclass(frozen=True, slots=True, kw_only=True)
class CallInfo:
    """A call that is about to be made. An interceptor yields it, as it is or with other headers or another timeout."""

    service: str
    method: str
    protocol: str
    """``"connect"``, ``"grpc"``, ``"grpc-web"`` or ``"quill"``."""
    authority: str
    """``host:port`` of the server."""
    streaming: bool
    """Whether the replies are a stream."""
    request_bytes: int | None
    """The size of the encoded request; None for a stream of requests."""
    timeout_ms: int | None
    """How long the whole call may take; None for a call without such a bound."""
    headers: Mapping[str, str | bytes] = field(repr=False)
    """The request metadata by name, in lower case; credentials included, so that its repr is not shown."""

    @property
    def path(self) -> str:
        """``/package.Service/Method``."""
        return f"/{self.service}/{self.method}"

    def with_headers(self, headers: Headers) -> CallInfo:
        """The same call with these headers besides, in place of those of the same names."""
        if not isinstance(headers, Mapping):
            raise InvalidType(f"headers must be a mapping of names to values, got {type(headers).__name__}")
        added = {(key := check_key(name)): check_value(key, value) for name, value in headers.items()}
        return replace(self, headers=MappingProxyType({**self.headers, **added}))

    def with_timeout(self, timeout_ms: int) -> CallInfo:
        """The same call, which may take so long as a whole, from the first ``yield`` on."""
        return replace(self, timeout_ms=check_timeout("timeout_ms", timeout_ms))


@dataclass(frozen=True, slots=True, kw_only=True)
class CallOutcome:
    """How a call ended: what ``yield`` gives back to an interceptor."""

    code: Code
    """The status. CANCELLED also where the caller gave up: closed the stream, cancelled the task, pressed Ctrl-C."""
    error: BaseException | None
    """What the caller will see raised; None where the call ended well, or was given up."""
    headers: Metadata = field(repr=False)
    """The response's initial metadata."""
    trailers: Metadata = field(repr=False)
    """The response's trailing metadata."""
    messages: int
    """How many replies there were."""
    message_bytes: int
    """Their size, as protobuf or JSON, before any compression."""
    attempts: int
    """How often the call was sent; more than once where it was retried."""


Steps = Generator[CallInfo, CallOutcome, None]
AsyncSteps = AsyncGenerator[CallInfo, CallOutcome]

Interceptor = Callable[[CallInfo], Steps]
"""For both clients: ``outcome = yield call``. It must not block where it is used with AsyncQuillClient."""

AsyncInterceptor = Callable[[CallInfo], Steps | AsyncSteps]
"""For AsyncQuillClient: as Interceptor, or an asynchronous generator function, which may await."""


def check_interceptors(interceptors: Iterable[Any], *, takes_async: bool) -> tuple[Any, ...]:
    """The interceptors of a client.

    Raises:
        InvalidType: One of them is none, or needs an event loop where there is none.
    """
    if not isinstance(interceptors, Iterable):
        raise InvalidType(f"interceptors must be a list, got {type(interceptors).__name__}")
    checked = tuple(interceptors)
    for interceptor in checked:
        if not callable(interceptor):
            raise InvalidType(f"an interceptor must be a generator function, got {type(interceptor).__name__}")
        if not takes_async and _is_async(interceptor):
            raise InvalidType("an asynchronous interceptor needs AsyncQuillClient")
    return checked


def _is_async(interceptor: Any) -> bool:
    called = interceptor if inspect.isroutine(interceptor) else type(interceptor).__call__
    return inspect.isasyncgenfunction(called) or inspect.iscoroutinefunction(called)


@dataclass(frozen=True, slots=True)
class Setting:
    """What interceptors need to know of their client.

    Args:
        address: The server.
        check_headers: Turns headers into metadata, by the rules of the client's own; raises LocalError.
    """

    address: Address
    check_headers: Callable[[Headers], Metadata]


class Passage:
    """One call on its way through one interceptor: everything but waiting."""

    def __init__(self, call: Call, request: bytes | Requests, setting: Setting, *, streaming: bool) -> None:
        self.info = CallInfo(
            service=call.service,
            method=call.method,
            protocol=setting.address.protocol,
            authority=setting.address.authority,
            streaming=streaming,
            request_bytes=len(request) if isinstance(request, bytes) else None,
            timeout_ms=call.timeout_ms,
            headers=MappingProxyType(dict(call.metadata)),
        )
        self._call = call
        self._request = request
        self._setting = setting
        self._start_s: float | None = None
        self._messages = self._message_bytes = 0

    def call(self, wanted: CallInfo) -> Call:
        """The call that an interceptor asks for.

        Raises:
            InvalidType: It is none.
            InvalidUsage: It is another call, or has a header that cannot be sent.
        """
        info = self.info
        if not isinstance(wanted, CallInfo):
            raise InvalidType(f"an interceptor yields the call that it was given, got {type(wanted).__name__}")
        if replace(wanted, headers=info.headers, timeout_ms=info.timeout_ms) != info:
            raise InvalidUsage("an interceptor can change a call's headers and timeout_ms only")
        call, now_s = self._call, time.monotonic()
        call.response.headers = call.response.trailers = ()
        self._start_s = self._start_s or now_s
        spent_ms = call.spent_ms + int((now_s - self._start_s) * 1000)
        if wanted.headers is not info.headers:
            call = replace(call, metadata=self._setting.check_headers(wanted.headers))
        if wanted.timeout_ms != info.timeout_ms:
            call = replace(call, timeout_ms=wanted.timeout_ms, first_message_timeout_ms=None)
        return call if spent_ms == call.spent_ms else replace(call, spent_ms=spent_ms)

    def count(self, message: bytes) -> None:
        """A reply has come."""
        self._messages += 1
        self._message_bytes += len(message)

    def outcome(self, error: BaseException | None, code: Code | None = None) -> CallOutcome:
        """How the call ended."""
        response = self._call.response
        return CallOutcome(
            code=_code(error) if code is None else code,
            error=error,
            headers=response.headers,
            trailers=response.trailers,
            messages=self._messages,
            message_bytes=self._message_bytes,
            attempts=response.attempts,
        )

    def check_again(self, error: BaseException | None) -> bool:
        """Whether a call that ended so can be made again, when its interceptor asks for it.

        Raises:
            InvalidUsage: It ended well.
        """
        if error is None:
            raise InvalidUsage("an interceptor yielded a second time, though the call had ended well")
        return isinstance(error, RpcError) and not self._messages and may_be_sent_again(self._request)


def not_yielded() -> InvalidUsage:
    """An interceptor returned without its call."""
    return InvalidUsage("an interceptor must yield the call, or raise what its caller is to see")


def no_generator(result: object) -> InvalidType:
    """An interceptor is of the wrong kind."""
    return InvalidType(f"an interceptor must be a generator function: calling it gave a {type(result).__name__}")


def _code(error: BaseException | None) -> Code:
    if error is None:
        return Code.OK
    if isinstance(error, RpcError):
        return error.code
    return Code.UNKNOWN if isinstance(error, Exception) else Code.CANCELLED
