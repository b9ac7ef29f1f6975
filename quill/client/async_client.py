"""The asyncio client."""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import AsyncIterable, Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self, overload

from quill.client import faults, health
from quill.client.address import Address
from quill.client.base import ClientBase
from quill.client.exchange import Exchange, Method, prepare
from quill.client.headers import Headers
from quill.client.intercept_async import InterceptedAsyncTransport
from quill.client.last_words import LastWords
from quill.client.late import AsyncDecode, LateAsyncStream
from quill.client.options import ClientOptions
from quill.client.reflection import AsyncReflection
from quill.client.retry_async import RetryingAsyncTransport
from quill.client.streams import AsyncMessageStream, only_async
from quill.client.transport import AsyncByteStream, AsyncTransport, AsyncWire, Call, Codec, ResponseMetadata
from quill.errors import InvalidUsage, RpcError

if TYPE_CHECKING:
    from types import TracebackType

    from google.protobuf.message import Message

    from quill.client.exchange import Request
    from quill.client.llm.async_llm import AsyncLLM
    from quill.client.tensors.async_tensors import AsyncTensors


@dataclass(frozen=True, slots=True)
class _Home:
    """The transport of one event loop in one process: made with the first call."""

    process: int
    loop: asyncio.AbstractEventLoop
    wire: AsyncWire
    """The protocol alone, without retries."""
    transport: AsyncTransport
    reflection: AsyncReflection


class AsyncQuillClient(ClientBase):
    """Calls any method of any gRPC or Connect server, on one event loop.

        async with AsyncQuillClient("http://127.0.0.1:8080") as client:
            reply = await client.call_json("inference.v1.LLMService", "Generate", {"prompt": "Hello"})
            async for delta in client.llm.stream("Hello"):
                print(delta.text, end="")

    A client whose event loop was closed begins anew on the next one. Cancelling a task that waits for a call cancels
    the call; the CancelledError passes.

    Every call may raise, beside RpcError with the status that it ended with: InvalidUsage and InvalidType, before
    anything is sent, where an argument cannot be used, a credential would cross a network in clear text, or the
    client is closed.

    Arguments and settings are those of ClientBase.
    """

    _takes_async_iterators = True

    def _prepare(self) -> None:
        self._home: _Home | None = None

    @overload
    async def call(
        self,
        service: str,
        method: str,
        request: bytes | bytearray | memoryview,
        *,
        timeout_ms: int | None = None,
        headers: Headers | None = None,
        codec: Codec | None = None,
        response: ResponseMetadata | None = None,
    ) -> bytes: ...

    @overload
    async def call(
        self,
        service: str,
        method: str,
        request: Message | Iterable[Request] | AsyncIterable[Request],
        *,
        timeout_ms: int | None = None,
        headers: Headers | None = None,
        codec: Codec | None = None,
        response: ResponseMetadata | None = None,
    ) -> Any: ...

    async def call(
        self,
        service: str,
        method: str,
        request: Request | Iterable[Request] | AsyncIterable[Request],
        *,
        timeout_ms: int | None = None,
        headers: Headers | None = None,
        codec: Codec | None = None,
        response: ResponseMetadata | None = None,
    ) -> Any:
        """Call a method with one reply.

        Args:
            service: Fully qualified: ``inference.v1.LLMService``.
            method: ``Generate``.
            request: A protobuf message; or bytes, which are a serialized message unless they are a JSON object from
                the first byte, ``{``, to the last. For a method that takes a stream of requests, an iterator of them,
                as ``stream`` takes it.
            timeout_ms: How long this call may take; the client's ``timeout_ms`` where None.
            headers: Sent with this call, in place of the client's of the same names.
            codec: ``"proto"`` or ``"json"``: what request bytes are, instead of looking at them.
            response: Filled with the reply's headers and trailers.

        Returns:
            For a message, a message of the method's output type. For bytes, bytes in the request's own encoding.
        """
        if self._are_several(request):
            timeout_ms = self.timeout_ms if timeout_ms is None else timeout_ms
            return await only_async(
                self.stream(
                    service, method, request, timeout_ms=timeout_ms, headers=headers, codec=codec, response=response
                )
            )
        target = self._method(service, method)
        call = self._unary_call(target, timeout_ms, headers, response)
        if target.transcodes(request, codec, sniff=True):
            target, call = await self._describe(target, call)
        exchange = target.exchange(request, codec, sniff=True)
        return await exchange.decoded(await self._transport().unary(*prepare(call, exchange)))

    async def call_json(
        self,
        service: str,
        method: str,
        request: Mapping[str, Any] | Iterable[Mapping[str, Any]] | AsyncIterable[Mapping[str, Any]],
        *,
        timeout_ms: int | None = None,
        headers: Headers | None = None,
        response: ResponseMetadata | None = None,
    ) -> dict[str, Any]:
        """Call a method with one reply, with a dict or an iterator of dicts, in canonical ProtoJSON both ways.

        Field names may be written as in the contract or in lowerCamelCase; they come back in lowerCamelCase, without
        the fields that have their default. Over gRPC the server is asked for its descriptors (reflection); where it
        does not offer them, the generated module of the service must have been imported. Arguments as in ``call``.
        """
        if self._are_several(request):
            timeout_ms = self.timeout_ms if timeout_ms is None else timeout_ms
            return await only_async(
                self.stream_json(service, method, request, timeout_ms=timeout_ms, headers=headers, response=response)
            )
        target = self._method(service, method)
        call = self._unary_call(target, timeout_ms, headers, response)
        if "json" not in target.codecs:
            target, call = await self._describe(target, call)
        exchange = target.exchange_dict(request)
        return await exchange.decoded(await self._transport().unary(*prepare(call, exchange)))

    def stream(
        self,
        service: str,
        method: str,
        request: Request | Iterable[Request] | AsyncIterable[Request],
        *,
        timeout_ms: int | None = None,
        first_message_timeout_ms: int | None = None,
        max_attempts: int | None = None,
        headers: Headers | None = None,
        codec: Codec | None = None,
        response: ResponseMetadata | None = None,
    ) -> AsyncMessageStream[Any]:
        """Call a method that streams its replies. Nothing is sent before the first message is asked for.

        Args:
            service: Fully qualified: ``inference.v1.LLMService``.
            method: ``StreamGenerate``.
            request: A protobuf message; or bytes, which are a serialized message unless ``codec`` says JSON. For a
                method that takes a stream of requests, an iterator of them, all of one kind: it is pulled as the
                server takes them; an ordinary iterator runs on the event loop and must not block, what it raises
                cancels the call and comes out of the stream, and the end of the call closes it. Over HTTP/1.1 the
                replies may wait until all requests are sent: a dialogue, whose next request depends on a reply, needs
                gRPC, or Connect over HTTP/2 (``http2=True``).
            timeout_ms: How long the whole call may take. Where None, the first message must come within the client's
                ``timeout_ms``, counted from the last request, and the stream may last as long as no gap exceeds
                ``idle_timeout_ms``.
            first_message_timeout_ms: How long the first message may take, in place of what is said above.
            max_attempts: How often the call may be sent, in place of what the client says; 1 for whoever asks again
                by himself.
            headers: Sent with this call, in place of the client's of the same names.
            codec: ``"proto"`` or ``"json"``: what request bytes are; the replies are the same.
            response: Filled with the headers once the first message has come, with the trailers at the end.

        Returns:
            An iterator of messages or bytes, as the request is. Close it, use it as a context manager, or read it to
            its end.
        """
        target = self._stream_method(service, method, request)
        call = self._stream_call(
            target,
            timeout_ms,
            headers,
            response,
            first_message_timeout_ms=first_message_timeout_ms,
            max_attempts=max_attempts,
        )
        if target.transcodes(request, codec, sniff=False):
            return self._late_stream(target, call, lambda described: described.exchange_stream(request, codec))
        exchange = target.exchange_stream(request, codec)
        return AsyncMessageStream(self._transport().stream(*prepare(call, exchange)), exchange.decoded)

    def stream_json(
        self,
        service: str,
        method: str,
        request: Mapping[str, Any] | Iterable[Mapping[str, Any]] | AsyncIterable[Mapping[str, Any]],
        *,
        timeout_ms: int | None = None,
        headers: Headers | None = None,
        response: ResponseMetadata | None = None,
    ) -> AsyncMessageStream[dict[str, Any]]:
        """Call a method that streams its replies with a dict, as ``call_json`` and ``stream`` do."""
        target = self._stream_method(service, method, request)
        call = self._stream_call(target, timeout_ms, headers, response)
        if "json" not in target.codecs:
            return self._late_stream(target, call, lambda described: described.exchange_json_stream(request))
        exchange = target.exchange_json_stream(request)
        return AsyncMessageStream(self._transport().stream(*prepare(call, exchange)), exchange.decoded)

    @property
    def llm(self) -> AsyncLLM:
        """Text generation: inference.v1.LLMService."""
        from quill.client.llm.async_llm import AsyncLLM

        return AsyncLLM(self)

    @functools.cached_property
    def tensors(self) -> AsyncTensors:
        """Inference over named tensors: inference.v1.TensorService."""
        from quill.client.tensors.async_tensors import AsyncTensors
        from quill.client.tensors.lanes import ClientLanes

        self._lanes = ClientLanes(self._address, self._options.tls)
        return AsyncTensors(self, self._lanes)

    async def health_check(self) -> bool:
        """Whether the server says that it is well, within 5 seconds. Sends no credentials and raises nothing."""
        if self._closed:
            return False
        try:
            wire = self._here().wire
            try:
                return health.is_serving(await wire.unary(health.check_call(), health.REQUEST))
            except RpcError as error:
                if not faults.is_unknown_method(error):  # it has no health service: its page is asked
                    return False
            return health.is_healthy_page(await wire.get_status(health.HTTP_PATH, health.TIMEOUT_MS))
        except Exception:  # noqa: BLE001 - a check that cannot be made is a check that failed
            return False

    async def close(self) -> None:
        """End all calls and close the connections. The client cannot be used any more. May be called again."""
        self._closed = True
        self._close_lanes()
        home, self._home = self._home, None
        if home is not None and home.process == os.getpid() and not home.loop.is_closed():
            await home.transport.aclose()

    async def _describe(self, method: Method, call: Call) -> tuple[Method, Call]:
        """Method and call with what the server says of the method, if it does."""
        start = asyncio.get_running_loop().time()
        descriptor = await self._reflection().find(call)
        if descriptor is not None:
            method = replace(method, descriptor=descriptor)
        spent_ms = int((asyncio.get_running_loop().time() - start) * 1000)
        return method, (replace(call, spent_ms=spent_ms) if spent_ms else call)

    def _late_stream(
        self, method: Method, call: Call, exchange_for: Callable[[Method], Exchange[Any, Any]]
    ) -> AsyncMessageStream[Any]:
        """A stream that asks the server for the method's descriptor before its first message."""

        async def open_call() -> tuple[AsyncByteStream, AsyncDecode]:
            described, shortened = await self._describe(method, call)
            exchange = exchange_for(described)
            return self._transport().stream(*prepare(shortened, exchange)), exchange.decoded

        late = LateAsyncStream(open_call, call.idle_timeout_ms)
        return AsyncMessageStream(late, late.decode)

    def _transport(self) -> AsyncTransport:
        return self._here().transport

    def _reflection(self) -> AsyncReflection:
        return self._here().reflection

    def _here(self) -> _Home:
        """The home on the running loop, made on first use."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            raise InvalidUsage("AsyncQuillClient is used inside a running event loop only") from None
        home = self._home
        if home is not None and home.process == os.getpid():
            if home.loop is loop:
                return home
            if not home.loop.is_closed():
                raise InvalidUsage("the client belongs to another event loop, which is still open: make one for each")
        self._check_open()
        wire = _connect(self._address, self._options)
        transport = self._around(wire)
        home = self._home = _Home(os.getpid(), loop, wire, transport, AsyncReflection(transport))
        return home

    def _around(self, wire: AsyncTransport) -> AsyncTransport:
        """The wire with retries around it, and the interceptors around those."""
        transport: AsyncTransport = RetryingAsyncTransport(wire, self._throttle, self._options.max_attempts)
        last_words = LastWords()
        for interceptor in reversed(self._interceptors):
            transport = InterceptedAsyncTransport(transport, interceptor, self._setting(), last_words)
        return transport

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()


def _connect(address: Address, options: ClientOptions) -> AsyncWire:
    """A transport for the address; the libraries load here."""
    if address.protocol == "grpc":
        from quill.client.grpc_async import GrpcAsyncTransport

        return GrpcAsyncTransport(address, options)
    from quill.client.connect_async import ConnectAsyncTransport

    return ConnectAsyncTransport(address, options)
