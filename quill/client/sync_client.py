"""The blocking client."""

from __future__ import annotations

import functools
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self, overload

from quill.client import faults, health
from quill.client.address import Address
from quill.client.base import ClientBase
from quill.client.exchange import Exchange, Method, prepare
from quill.client.headers import Headers
from quill.client.intercept_sync import InterceptedSyncTransport
from quill.client.late import LateSyncStream
from quill.client.options import ClientOptions
from quill.client.reflection import SyncReflection
from quill.client.retry_sync import RetryingSyncTransport
from quill.client.streams import MessageStream, only
from quill.client.transport import Call, Codec, ResponseMetadata, SyncByteStream, SyncTransport, SyncWire
from quill.errors import RpcError

if TYPE_CHECKING:
    from types import TracebackType

    from google.protobuf.message import Message

    from quill.client.exchange import Request
    from quill.client.llm.sync_llm import LLM
    from quill.client.tensors.sync_tensors import Tensors


class _Home:
    """The transport of one process: made with the first call."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.wire: SyncWire | None = None
        """The protocol alone, without retries."""
        self.transport: SyncTransport | None = None
        self.reflection: SyncReflection | None = None


class QuillClient(ClientBase):
    """Calls any method of any gRPC or Connect server. May be used from many threads, and on after a fork.

        with QuillClient("http://127.0.0.1:8080") as client:
            print(client.call_json("inference.v1.LLMService", "Generate", {"prompt": "Hello"})["text"])
            for delta in client.llm.stream("Hello"):
                print(delta.text, end="")

    A blocked call ends at its timeout, when the client is closed, and on Ctrl-C.

    Every call may raise, beside RpcError with the status that it ended with: InvalidUsage and InvalidType, before
    anything is sent, where an argument cannot be used, a credential would cross a network in clear text, or the
    client is closed.

    Arguments and settings are those of ClientBase.
    """

    def _prepare(self) -> None:
        self._homes: dict[int, _Home] = {}
        """By process id. What a parent process had open is its own: kept, so that nothing here closes it."""

    @overload
    def call(
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
    def call(
        self,
        service: str,
        method: str,
        request: Message | Iterable[Request],
        *,
        timeout_ms: int | None = None,
        headers: Headers | None = None,
        codec: Codec | None = None,
        response: ResponseMetadata | None = None,
    ) -> Any: ...

    def call(
        self,
        service: str,
        method: str,
        request: Request | Iterable[Request],
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
            return only(
                self.stream(
                    service, method, request, timeout_ms=timeout_ms, headers=headers, codec=codec, response=response
                )
            )
        target = self._method(service, method)
        call = self._unary_call(target, timeout_ms, headers, response)
        if target.transcodes(request, codec, sniff=True):
            target, call = self._describe(target, call)
        exchange = target.exchange(request, codec, sniff=True)
        return exchange.decode(self._transport().unary(*prepare(call, exchange)))

    def call_json(
        self,
        service: str,
        method: str,
        request: Mapping[str, Any] | Iterable[Mapping[str, Any]],
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
            return only(
                self.stream_json(service, method, request, timeout_ms=timeout_ms, headers=headers, response=response)
            )
        target = self._method(service, method)
        call = self._unary_call(target, timeout_ms, headers, response)
        if "json" not in target.codecs:
            target, call = self._describe(target, call)
        exchange = target.exchange_dict(request)
        return exchange.decode(self._transport().unary(*prepare(call, exchange)))

    def stream(
        self,
        service: str,
        method: str,
        request: Request | Iterable[Request],
        *,
        timeout_ms: int | None = None,
        first_message_timeout_ms: int | None = None,
        max_attempts: int | None = None,
        headers: Headers | None = None,
        codec: Codec | None = None,
        response: ResponseMetadata | None = None,
    ) -> MessageStream[Any]:
        """Call a method that streams its replies. Nothing is sent before the first message is asked for.

        Args:
            service: Fully qualified: ``inference.v1.LLMService``.
            method: ``StreamGenerate``.
            request: A protobuf message; or bytes, which are a serialized message unless ``codec`` says JSON. For a
                method that takes a stream of requests, an iterator of them, all of one kind: it is pulled as the
                server takes them, in a thread of its own over gRPC and in the reader's over Connect, what it raises
                cancels the call and comes out of the stream, and the end of the call closes it. Over Connect and
                gRPC-Web nobody reads while the iterator works: a dialogue, whose next request waits for a reply, needs
                gRPC.
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
        return MessageStream(self._transport().stream(*prepare(call, exchange)), exchange.decode)

    def stream_json(
        self,
        service: str,
        method: str,
        request: Mapping[str, Any] | Iterable[Mapping[str, Any]],
        *,
        timeout_ms: int | None = None,
        headers: Headers | None = None,
        response: ResponseMetadata | None = None,
    ) -> MessageStream[dict[str, Any]]:
        """Call a method that streams its replies with a dict, as ``call_json`` and ``stream`` do."""
        target = self._stream_method(service, method, request)
        call = self._stream_call(target, timeout_ms, headers, response)
        if "json" not in target.codecs:
            return self._late_stream(target, call, lambda described: described.exchange_json_stream(request))
        exchange = target.exchange_json_stream(request)
        return MessageStream(self._transport().stream(*prepare(call, exchange)), exchange.decode)

    @property
    def llm(self) -> LLM:
        """Text generation: inference.v1.LLMService."""
        from quill.client.llm.sync_llm import LLM

        return LLM(self)

    @functools.cached_property
    def tensors(self) -> Tensors:
        """Inference over named tensors: inference.v1.TensorService."""
        from quill.client.tensors.lanes import ClientLanes
        from quill.client.tensors.sync_tensors import Tensors

        self._lanes = ClientLanes(self._address, self._options.tls)
        return Tensors(self, self._lanes)

    def health_check(self) -> bool:
        """Whether the server says that it is well, within 5 seconds. Sends no credentials and raises nothing."""
        if self._closed:
            return False
        try:
            self._transport()
            wire = self._homes[os.getpid()].wire
            assert wire is not None  # noqa: S101 - made with the transport
            try:
                return health.is_serving(wire.unary(health.check_call(), health.REQUEST))
            except RpcError as error:
                if not faults.is_unknown_method(error):  # it has no health service: its page is asked
                    return False
            return health.is_healthy_page(wire.get_status(health.HTTP_PATH, health.TIMEOUT_MS))
        except Exception:  # noqa: BLE001 - a check that cannot be made is a check that failed
            return False

    def close(self) -> None:
        """End all calls and close the connections. The client cannot be used any more. May be called again."""
        self._closed = True
        self._close_lanes()
        home = self._homes.get(os.getpid())
        if home is not None:
            with home.lock:
                transport, home.transport = home.transport, None
            if transport is not None:
                transport.close()

    def _describe(self, method: Method, call: Call) -> tuple[Method, Call]:
        """Method and call with what the server says of the method, if it does."""
        start = time.monotonic()
        descriptor = self._reflection().find(call)
        spent_ms = int((time.monotonic() - start) * 1000)
        return replace(method, descriptor=descriptor), replace(call, spent_ms=spent_ms)

    def _late_stream(
        self, method: Method, call: Call, exchange_for: Callable[[Method], Exchange[Any, Any]]
    ) -> MessageStream[Any]:
        """A stream that asks the server for the method's descriptor before its first message."""

        def open_call() -> tuple[SyncByteStream, Callable[[bytes], Any]]:
            described, shortened = self._describe(method, call)
            exchange = exchange_for(described)
            return self._transport().stream(*prepare(shortened, exchange)), exchange.decode

        late = LateSyncStream(open_call, call.idle_timeout_ms)
        return MessageStream(late, late.decode)

    def _reflection(self) -> SyncReflection:
        transport = self._transport()
        home = self._homes[os.getpid()]
        with home.lock:
            reflection = home.reflection = home.reflection or SyncReflection(transport)
        return reflection

    def _transport(self) -> SyncTransport:
        """This process's transport, made on first use."""
        # setdefault is atomic: of two threads that come first, one makes the home. No lock crosses a fork.
        home = self._homes.get(os.getpid()) or self._homes.setdefault(os.getpid(), _Home())
        transport = home.transport
        if transport is None:
            with home.lock:
                self._check_open()
                if home.transport is None:
                    home.wire = _connect(self._address, self._options)
                    home.transport = self._around(home.wire)
                transport = home.transport
        return transport

    def _around(self, wire: SyncTransport) -> SyncTransport:
        """The wire with retries around it, and the interceptors around those."""
        transport: SyncTransport = RetryingSyncTransport(wire, self._throttle, self._options.max_attempts)
        for interceptor in reversed(self._interceptors):
            transport = InterceptedSyncTransport(transport, interceptor, self._setting())
        return transport

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _connect(address: Address, options: ClientOptions) -> SyncWire:
    """A transport for the address; the libraries load here."""
    if address.protocol == "grpc":
        from quill.client.grpc_sync import GrpcSyncTransport

        return GrpcSyncTransport(address, options)
    from quill.client.connect_sync import ConnectSyncTransport

    return ConnectSyncTransport(address, options)
