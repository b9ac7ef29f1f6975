"""What the blocking and the asyncio client have in common: everything but waiting."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeGuard

from quill.client.address import Address
from quill.client.exchange import Method
from quill.client.headers import Headers, HeaderStore
from quill.client.interceptors import AsyncInterceptor, Setting, check_interceptors
from quill.client.options import MAX_ATTEMPTS, ClientOptions, Compression, check_attempts, check_timeout
from quill.client.requests import are_several
from quill.client.retry import Throttle
from quill.client.tls import ClientTls
from quill.client.transport import Call, Codec, ResponseMetadata
from quill.errors import InvalidType, InvalidUsage, Metadata
from quill.wire.compression import MIN_COMPRESS_BYTES
from quill.wire.frames import MAX_PAYLOAD_BYTES

if TYPE_CHECKING:
    from quill.client.tensors.lanes import ClientLanes

_CODECS: dict[str, frozenset[Codec]] = {
    "connect": frozenset({"proto", "json"}),
    "grpc": frozenset({"proto"}),
    "grpc-web": frozenset({"proto"}),
    "quill": frozenset({"proto"}),
}

_COMPRESSIONS: dict[str, Compression] = {"grpc": "gzip", "quill": "zstd"}
"""The one way to compress that a protocol knows; the others know all."""

_MAX_KEPT_METHODS = 1024

DEFAULT_API_KEY_HEADER = "X-API-Key"


class ClientBase:
    """The settings of a client and the headers that it sends. Constructing one does no I/O.

    Args:
        base_url: ``http://`` and ``https://`` speak Connect, ``grpc://`` and ``grpcs://`` speak gRPC. Without a port
            it is 80, and 443 over TLS. Over Connect a path may follow, which all methods stand under.
            ``http+unix:///PATH`` and ``unix:///PATH`` are Unix sockets, for Connect and for gRPC. ``grpc+dns://`` and
            ``grpcs+dns://`` spread calls over all addresses of a name that are well, ``grpc+ipv4://A:PORT,B:PORT``
            over those of the list.
        timeout_ms: How long a unary call may take, and how long a stream's first message; None for no bound, of which
            nothing is told to the server. A call may have its own.
        enable_compression: Compress requests of 1 KiB and more: zstd over Connect, gzip over gRPC and gRPC-Web. A
            server that does not know it is asked once more without. Compressed replies are always understood. Over
            ``"quill"`` it is zstd too, which released servers do not understand.
        protocol: ``"connect"``, ``"grpc"``, ``"grpc-web"`` or ``"quill"``, the Quill framework's own: what to speak
            whatever the scheme says, on the same host and port.
        idle_timeout_ms: How long the gap between two messages of a stream may be; None for no bound.
        max_message_bytes: How large a request or a reply may be, after decompression.
        allow_insecure_auth: Send credentials in clear text over a network too. Without it they go only over TLS and
            to this machine itself.
        headers: Headers to begin with, as ``set_header`` takes them.
        http2: Speak HTTP/2 and nothing else: over ``http://`` with prior knowledge, as ``quill serve --http2``
            takes it. gRPC always does, and needs no telling.
        keepalive_ms: Over gRPC, after how much silence to ask the server whether it is still there, as often as it
            takes. A server sends away clients that ask more often than it allows: Quill's every 5 s, grpc's own every
            five minutes. None: after 30 s, twice at most while nothing is sent, which every server allows. Over HTTP
            the kernel asks, after 30 s.
        keepalive_timeout_ms: How long the answer to that may take over gRPC; then calls end with UNAVAILABLE.
        use_get: Over Connect, call unary methods that their contract marks NO_SIDE_EFFECTS by GET, so that caches on
            the way may answer. The contract is that of imported generated modules. What would not fit into 4 KiB of
            URL goes by POST.
        compression: Compress requests with ``"gzip"`` or ``"zstd"``, which the server is known to understand: those of
            iterators too, and nothing is sent a second time. gRPC knows gzip only.
        compress_from_bytes: How large a request has to be for either.
        tls: Whom to trust and which certificate to show, where the URL asks for TLS.
        max_attempts: How often a call may be sent, within its timeout: again only where it provably did not run, or
            where the contract says that it may run twice; a stream only before its first message. 1 to 5.
        interceptors: Generator functions that see every call and may change its headers and timeout, the first given
            outermost; see CallInfo. Health checks go without them.

    Raises:
        InvalidUsage: A value cannot be used; the message says which and why.
        InvalidType: A value is of the wrong type.
    """

    def __init__(
        self,
        base_url: str,
        timeout_ms: int | None = 30_000,
        enable_compression: bool = False,
        *,
        protocol: str | None = None,
        idle_timeout_ms: int | None = 300_000,
        max_message_bytes: int = 64 * 1024 * 1024,
        allow_insecure_auth: bool = False,
        headers: Headers | None = None,
        http2: bool = False,
        keepalive_ms: int | None = None,
        keepalive_timeout_ms: int = 10_000,
        use_get: bool = False,
        compression: Compression | None = None,
        compress_from_bytes: int = MIN_COMPRESS_BYTES,
        tls: ClientTls | None = None,
        max_attempts: int = MAX_ATTEMPTS,
        interceptors: Sequence[AsyncInterceptor] = (),
    ) -> None:
        self._address = Address.parse(base_url, protocol)
        self._base_url = base_url
        self._options = ClientOptions(
            timeout_ms=timeout_ms,
            idle_timeout_ms=idle_timeout_ms,
            enable_compression=enable_compression,
            compression=compression,
            compress_from_bytes=compress_from_bytes,
            use_get=use_get,
            max_message_bytes=max_message_bytes,
            http2=http2,
            keepalive_ms=keepalive_ms,
            keepalive_timeout_ms=keepalive_timeout_ms,
            tls=tls,
            max_attempts=max_attempts,
        )
        if http2 and self._address.protocol == "grpc":
            raise InvalidUsage("http2 is for protocols over HTTP; gRPC always speaks HTTP/2: leave it out")
        known = _COMPRESSIONS.get(self._address.protocol)
        if known is not None and compression not in (None, known):
            raise InvalidUsage(f"{self._address.protocol} knows {known} only, got compression={compression!r}")
        if use_get and self._address.protocol != "connect":
            raise InvalidUsage(f"use_get is for Connect; {self._address.protocol} has no calls by GET")
        if tls is not None and not self._address.tls:
            raise InvalidUsage(f"tls is given, and {self._address.place} is clear text; use https:// or grpcs://")
        self._throttle = Throttle()
        self._interceptors = check_interceptors(interceptors, takes_async=self._takes_async_iterators)
        if not isinstance(allow_insecure_auth, bool):
            raise InvalidType(f"allow_insecure_auth must be a bool, got {type(allow_insecure_auth).__name__}")
        self._allow_insecure_auth = allow_insecure_auth
        self._headers = HeaderStore(headers)
        self._methods: dict[tuple[str, str, bool, bool], Method] = {}
        self._closed = False
        self._lanes: ClientLanes | None = None
        """How the typed half for tensors goes past the calls; None before it is used."""
        self._prepare()

    def _prepare(self) -> None:
        """Set up what the kind of client needs besides."""
        raise NotImplementedError

    @property
    def base_url(self) -> str:
        """The URL that the client was made with."""
        return self._base_url

    @property
    def protocol(self) -> str:
        """What the client speaks: ``"connect"``, ``"grpc"``, ``"grpc-web"`` or ``"quill"``."""
        return self._address.protocol

    @property
    def timeout_ms(self) -> int | None:
        """How long a unary call may take, and how long a stream's first message; None for no bound."""
        return self._options.timeout_ms

    @property
    def idle_timeout_ms(self) -> int | None:
        """How long the gap between two messages of a stream may be; None for no bound."""
        return self._options.idle_timeout_ms

    @property
    def max_message_bytes(self) -> int:
        """How large a request or a reply may be, after decompression."""
        return self._options.max_message_bytes

    @property
    def compression_enabled(self) -> bool:
        """Whether requests are compressed."""
        return self._options.enable_compression or self._options.compression is not None

    def set_bearer_token(self, token: str) -> None:
        """Send ``Authorization: Bearer TOKEN`` with every call from now on.

        Raises:
            InvalidUsage: The token has characters that no header can carry; the message does not show it.
        """
        if not isinstance(token, str):
            raise InvalidType(f"token must be a string, got {type(token).__name__}")
        if not token:
            raise InvalidUsage("token is empty; remove_header('Authorization') takes it away")
        self._headers.set("Authorization", f"Bearer {token}")

    def set_api_key(self, key: str, header_name: str | None = None) -> None:
        """Send an API key with every call from now on, in ``X-API-Key`` or the header of the given name.

        Raises:
            InvalidUsage: The key has characters that no header can carry, or the name is reserved.
        """
        self._headers.set_api_key(key, DEFAULT_API_KEY_HEADER if header_name is None else header_name)

    def set_header(self, name: str, value: str | bytes) -> None:
        """Send a header with every call from now on, in place of one of the same name.

        Args:
            name: In any case. The names that the protocols speak for themselves with are refused.
            value: Printable ASCII; bytes where the name ends in ``-bin``.

        Raises:
            InvalidUsage: Name or value cannot be sent; the message does not show the value.
            InvalidType: The value is not of the type that the name asks for.
        """
        self._headers.set(name, value)

    def remove_header(self, name: str) -> None:
        """Send this header no more; none of that name is no error."""
        self._headers.remove(name)

    def get_headers(self) -> dict[str, str | bytes]:
        """All headers as they were set, secrets included; a new dict."""
        return self._headers.visible()

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self._base_url!r}, protocol={self._address.protocol!r}, "
            f"timeout_ms={self._options.timeout_ms})"
        )

    def _method(self, service: str, method: str, *, streaming: bool = False, several: bool = False) -> Method:
        """The method of these names, checked once and kept."""
        key = service, method, streaming, several
        try:
            return self._methods[key]
        except (KeyError, TypeError):  # TypeError: no string, as Method says
            found = Method(
                service,
                method,
                streaming,
                _CODECS[self._address.protocol],
                self._options.max_message_bytes,
                several,
                MAX_PAYLOAD_BYTES if self._address.protocol == "quill" else None,
            )
        if len(self._methods) < _MAX_KEPT_METHODS:
            self._methods[key] = found
        return found

    _takes_async_iterators = False

    def _are_several(self, request: object) -> TypeGuard[Iterable[Any]]:
        """Whether it is an iterator of requests."""
        several = are_several(request)
        if several and not (self._takes_async_iterators or isinstance(request, Iterable)):
            raise InvalidType(f"an asynchronous iterator needs AsyncQuillClient, got a {type(request).__name__}")
        return several

    def _stream_method(self, service: str, method: str, request: object) -> Method:
        return self._method(service, method, streaming=True, several=self._are_several(request))

    def _unary_call(
        self,
        method: Method,
        timeout_ms: int | None,
        headers: Headers | None,
        response: ResponseMetadata | None,
    ) -> Call:
        """A call that ends within its own timeout, or the client's."""
        return Call(
            service=method.service,
            method=method.name,
            metadata=self._metadata(headers),
            timeout_ms=self.timeout_ms if timeout_ms is None else check_timeout("timeout_ms", timeout_ms),
            response=_fresh(response),
        )

    def _stream_call(
        self,
        method: Method,
        timeout_ms: int | None,
        headers: Headers | None,
        response: ResponseMetadata | None,
        *,
        first_message_timeout_ms: int | None = None,
        max_attempts: int | None = None,
    ) -> Call:
        """A call whose first message comes within the client's timeout, or that ends within its own."""
        total = None if timeout_ms is None else check_timeout("timeout_ms", timeout_ms)
        first = self.timeout_ms if total is None else None
        if first_message_timeout_ms is not None:
            first = check_timeout("first_message_timeout_ms", first_message_timeout_ms)
        return Call(
            service=method.service,
            method=method.name,
            metadata=self._metadata(headers),
            timeout_ms=total,
            first_message_timeout_ms=first,
            idle_timeout_ms=self._options.idle_timeout_ms,
            max_attempts=None if max_attempts is None else check_attempts(max_attempts),
            response=_fresh(response),
        )

    def _metadata(self, headers: Headers | None) -> tuple[tuple[str, str | bytes], ...]:
        self._check_open()
        allow = self._allow_insecure_auth
        return tuple(self._headers.for_call(headers, self._address, allow_insecure_auth=allow))

    def _setting(self) -> Setting:
        """What interceptors need to know."""

        def check(headers: Headers) -> Metadata:
            allow = self._allow_insecure_auth
            return self._headers.check({}, headers, self._address, allow_insecure_auth=allow)

        return Setting(self._address, check)

    def _close_lanes(self) -> None:
        if self._lanes is not None:
            self._lanes.close()

    def _check_open(self) -> None:
        if self._closed:
            raise InvalidUsage("the client is closed")


def _fresh(response: ResponseMetadata | None) -> ResponseMetadata:
    """What the call fills in, emptied of an earlier one."""
    if response is None:
        return ResponseMetadata()
    if not isinstance(response, ResponseMetadata):
        raise InvalidType(f"response must be a ResponseMetadata, got {type(response).__name__}")
    response.headers = response.trailers = ()
    response.attempts = 0
    return response
