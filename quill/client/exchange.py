"""How the messages of a call look to the caller and on the wire: bytes, messages or dicts; protobuf or JSON."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterable, Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from quill.client import faults
from quill.client.requests import Requests, each
from quill.client.transport import Call, Codec
from quill.errors import Internal, InvalidArgument, InvalidType, InvalidUsage
from quill.wire.large import (
    INLINE_DICT_BYTES,
    INLINE_JSON_BYTES,
    INLINE_PROTO_BYTES,
    offload,
    parse_float,
    parse_int,
    parse_object,
)

if TYPE_CHECKING:
    from google.protobuf.descriptor import MethodDescriptor
    from google.protobuf.message import Message

    Request = bytes | bytearray | memoryview | Message

T = TypeVar("T")
R = TypeVar("R", bytes, Requests)
"""What goes out: one request, or several."""

_SERVICE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*")
_METHOD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, slots=True)
class Exchange(Generic[T, R]):
    """What goes over the wire for a request, or for several, and what a reply becomes."""

    method: Method
    codec: Codec
    request: R
    decode: Callable[[bytes], T]
    """Raises Internal where a reply cannot be read."""
    inline_bytes: int | None = None
    """How large a reply an event loop decodes itself; None for any, where a thread would change nothing."""

    async def decoded(self, reply: bytes) -> T:
        """As ``decode``, on an event loop: a large reply in a thread."""
        if self.inline_bytes is None:
            return self.decode(reply)
        return await offload(len(reply), self.inline_bytes, self.decode, reply)


@dataclass(frozen=True, slots=True)
class Method:
    """A method by name, how it is called, and what its protocol can carry.

    Raises:
        InvalidType: A name is no string.
        InvalidUsage: It is no name.
    """

    service: str
    name: str
    streaming: bool
    """Whether the caller expects a stream of replies."""
    codecs: frozenset[Codec]
    """What travels as it is. Without "json", JSON is transcoded."""
    max_message_bytes: int
    """How large a request may be."""
    several: bool = False
    """Whether the caller gives an iterator of requests."""
    max_frame_bytes: int | None = None
    """How large a request of a stream may be by the rules of the protocol; None for any size."""
    descriptor: MethodDescriptor | None = None
    """What the server says of the method; else the imported generated modules are asked."""

    def __post_init__(self) -> None:
        for what, value, pattern in (("service", self.service, _SERVICE), ("method", self.name, _METHOD)):
            if not isinstance(value, str):
                raise InvalidType(f"{what} must be a string, got {type(value).__name__}")
            if not pattern.fullmatch(value):
                raise InvalidUsage(
                    f"{what} {value[:64]!r} is no name; write it as in inference.v1.LLMService, Generate"
                )

    @property
    def no_side_effects(self) -> bool | None:
        """Whether the server says that the method may run twice; None where it was not asked."""
        if self.descriptor is None:
            return None
        from quill.wire.descriptors import promises_no_side_effects

        return promises_no_side_effects(self.descriptor)

    def transcodes(self, request: object, codec: Codec | None, *, sniff: bool) -> bool:
        """Whether ``exchange`` would turn JSON into protobuf, and so needs a descriptor."""
        if "json" in self.codecs:
            return False
        if codec is not None or not sniff:
            return codec == "json"
        return isinstance(request, bytes | bytearray | memoryview) and _is_json_object(bytes(request))

    def exchange(self, request: Any, codec: Codec | None, *, sniff: bool) -> Exchange[Any, bytes]:
        """What is given as bytes comes back as bytes, a message as a message.

        Args:
            request: A message; or bytes: a serialized message, or a JSON object.
            codec: What bytes are; None for protobuf.
            sniff: With no codec, take bytes that are a JSON object, from the first byte to the last, for JSON.
        """
        if isinstance(request, bytes | bytearray | memoryview):
            return self._exchange_bytes(bytes(request), codec, sniff=sniff)
        return self._exchange_message(request, codec)

    def exchange_several(
        self, requests: Iterable[Any] | AsyncIterable[Any], codec: Codec | None
    ) -> Exchange[Any, Requests]:
        """As ``exchange`` for each request, when its turn comes. The replies are what the first request was."""
        self._check_kind(self._known_descriptor())
        kind = _Kind(self, codec)
        on_wire: Codec = "json" if codec == "json" and "json" in self.codecs else "proto"
        inline_bytes = INLINE_PROTO_BYTES if codec == "json" and on_wire == "proto" else None
        return Exchange(self, on_wire, each(requests, kind.encode), kind.decode, inline_bytes)

    def exchange_dicts(self, requests: Iterable[Any] | AsyncIterable[Any]) -> Exchange[dict[str, Any], Requests]:
        """As ``exchange_dict`` for each request, when its turn comes."""
        if "json" in self.codecs:
            self._check_kind(self._known_descriptor())
            return Exchange(self, "json", each(requests, self._dict_to_wire), _from_document, INLINE_JSON_BYTES)
        self._descriptor("JSON as protobuf")
        return Exchange(self, "proto", each(requests, self._dict_to_wire), self._to_dict, INLINE_DICT_BYTES)

    def _dict_to_wire(self, request: Mapping[str, Any]) -> bytes:
        return self.bounded(self.exchange_dict(request).request)

    def bounded(self, request: bytes) -> bytes:
        """The same request, which is not larger than may be.

        Raises:
            ResourceExhausted: It is.
        """
        size, frame = len(request), self.max_frame_bytes
        if size > self.max_message_bytes:
            raise faults.request_too_large(size, self.max_message_bytes, several=self.several)
        if self.streaming and frame is not None and size > frame:
            bound = "the largest frame of the protocol"
            raise faults.request_too_large(size, frame, bound=bound, several=self.several)
        return request

    def _exchange_bytes(self, request: bytes, codec: Codec | None, *, sniff: bool) -> Exchange[bytes, bytes]:
        if codec not in (None, "proto", "json"):
            raise InvalidUsage(f"codec must be 'proto', 'json' or None, got {codec!r}")
        if codec == "proto" or (codec is None and not (sniff and _is_json_object(request))):
            return Exchange(self, "proto", request, _unchanged)
        if "json" in self.codecs:
            return Exchange(self, "json", request, _unchanged)
        return self._transcoded(request, self._to_json, INLINE_PROTO_BYTES)

    def exchange_stream(self, request: Any, codec: Codec | None) -> Exchange[Any, Any]:
        """What ``stream`` sends: a request, or the requests of an iterator."""
        return self.exchange_several(request, codec) if self.several else self.exchange(request, codec, sniff=False)

    def exchange_json_stream(self, request: Any) -> Exchange[dict[str, Any], Any]:
        """What ``stream_json`` sends: a dict, or the dicts of an iterator."""
        return self.exchange_dicts(request) if self.several else self.exchange_dict(request)

    def exchange_dict(self, request: Any) -> Exchange[dict[str, Any], bytes]:
        """A dict goes out and a dict comes back, both as canonical ProtoJSON."""
        document = _to_document(request)
        if "json" in self.codecs:
            return Exchange(self, "json", document, _from_document, INLINE_JSON_BYTES)
        return self._transcoded(document, self._to_dict, INLINE_DICT_BYTES)

    def _exchange_message(self, request: Message, codec: Codec | None) -> Exchange[Any, bytes]:
        from google.protobuf.message import EncodeError, Message

        if not isinstance(request, Message):
            raise InvalidType(
                f"a request must be bytes or a protobuf message, got {type(request).__name__}; "
                "dicts are for call_json and stream_json"
            )
        if codec not in (None, "proto"):
            raise InvalidUsage(f"codec is for requests in bytes, got codec={codec!r} and a {type(request).__name__}")
        descriptor = self._descriptor(f"a {type(request).__name__}")
        if request.DESCRIPTOR.full_name != descriptor.input_type.full_name:
            raise InvalidType(
                f"{self.service}/{self.name} takes {descriptor.input_type.full_name}, "
                f"got {request.DESCRIPTOR.full_name}"
            )
        try:
            return Exchange(self, "proto", request.SerializeToString(deterministic=True), self._to_message)
        except EncodeError:
            raise InvalidUsage(f"the {type(request).__name__} lacks required fields") from None

    def _transcoded(self, document: bytes, decode: Callable[[bytes], T], inline_bytes: int) -> Exchange[T, bytes]:
        """JSON for the caller, protobuf on the wire."""
        from quill.wire.descriptors import refuses_unknown_fields
        from quill.wire.transcode import json_to_proto

        lenient = not refuses_unknown_fields(self.service)
        input_type = self._descriptor("JSON as protobuf").input_type
        request = json_to_proto(input_type, document, ignore_unknown_fields=lenient)
        return Exchange(self, "proto", request, decode, inline_bytes)

    def _to_json(self, reply: bytes) -> bytes:
        from quill.wire.transcode import proto_to_json

        return self._readable(proto_to_json, reply)

    def _to_dict(self, reply: bytes) -> dict[str, Any]:
        from quill.wire.transcode import proto_to_dict

        return self._readable(proto_to_dict, reply)

    def _to_message(self, reply: bytes) -> Any:
        from google.protobuf.message import DecodeError
        from google.protobuf.message_factory import GetMessageClass

        output_type = self._descriptor("a message").output_type
        try:
            return GetMessageClass(output_type).FromString(reply)
        except DecodeError:
            raise Internal(f"the reply is no valid {output_type.full_name} ({len(reply)} bytes)") from None

    def _readable(self, convert: Callable[[Any, bytes], T], reply: bytes) -> T:
        try:
            return convert(self._descriptor("JSON as protobuf").output_type, reply)
        except InvalidArgument as error:
            raise Internal(f"the reply cannot be read: {error.message}") from None

    def _descriptor(self, what: str) -> MethodDescriptor:
        """The method's descriptor."""
        descriptor = self._known_descriptor()
        if descriptor is None:
            raise InvalidUsage(
                f"{what} needs the descriptor of {self.service}/{self.name}: the server's reflection does not tell it, "
                "and no imported module has it; import the generated _pb2 module of that service, or pass bytes, or "
                "use call_json over http:// (Connect)"
            )
        self._check_kind(descriptor)
        return descriptor

    def _known_descriptor(self) -> MethodDescriptor | None:
        from quill.wire.descriptors import find_method

        return self.descriptor or find_method(self.service, self.name)

    def _check_kind(self, descriptor: MethodDescriptor | None) -> None:
        """Refuse a call of another kind than the method, where that is known."""
        if descriptor is None:
            return
        if descriptor.client_streaming != self.several:
            hint = (
                "takes one request: pass it itself, without an iterator"
                if self.several
                else "takes a stream of requests: use stream with an iterator, such as [request]"
            )
            raise InvalidUsage(f"{self.service}/{self.name} {hint}")
        # The one reply to a stream of requests is a stream of one.
        if descriptor.server_streaming != self.streaming and not self.several:
            hint = "answers once: use call" if self.streaming else "streams its replies: use stream"
            raise InvalidUsage(f"{self.service}/{self.name} {hint}")


def prepare(call: Call, exchange: Exchange[Any, R]) -> tuple[Call, R]:
    """What a transport needs for an exchange.

    Raises:
        ResourceExhausted: The request is larger than may be.
    """
    if isinstance(exchange.request, bytes):
        exchange.method.bounded(exchange.request)
    known = exchange.method.no_side_effects
    if (call.codec, call.no_side_effects) != (exchange.codec, known):
        call = replace(call, codec=exchange.codec, no_side_effects=known)
    return call, exchange.request


class _Kind:
    """What the requests of a stream are, which the first one decides: bytes or messages."""

    def __init__(self, method: Method, codec: Codec | None) -> None:
        self._method = method
        self._codec = codec
        self._first: Exchange[Any, bytes] | None = None
        self._type: type = bytes

    def encode(self, request: Any) -> bytes:
        exchange = self._method.exchange(request, self._codec, sniff=False)
        kind = bytes if isinstance(request, bytes | bytearray | memoryview) else type(request)
        if self._first is None:
            self._first, self._type = exchange, kind
        elif kind is not self._type:
            raise InvalidType(
                f"the requests of a stream are of one kind, got {self._type.__name__} and {kind.__name__}"
            )
        return self._method.bounded(exchange.request)

    def decode(self, reply: bytes) -> Any:
        return reply if self._first is None else self._first.decode(reply)


def _unchanged(reply: bytes) -> bytes:
    return reply


def _is_json_object(request: bytes) -> bool:
    """Whether the first byte is ``{``, which no message of proto3 begins with, and all of it parses as an object."""
    if request[:1] != b"{":
        return False
    try:
        return isinstance(json.loads(request), dict)
    except (ValueError, RecursionError):
        return False


def _to_document(request: Mapping[str, Any]) -> bytes:
    """A dict as JSON text."""
    if not isinstance(request, Mapping):
        raise InvalidType(f"a JSON request must be a dict, got {type(request).__name__}")
    try:
        text = json.dumps(dict(request), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return text.encode()
    except TypeError:
        raise InvalidType(
            "the request holds a value or a key of a type that JSON has not; bytes go as base64"
        ) from None
    except RecursionError:
        raise InvalidUsage("the request is nested too deep for JSON") from None
    except ValueError:
        raise InvalidUsage(
            "the request holds what JSON cannot express: NaN or an infinity (write them as strings), half of a "
            "surrogate pair, or itself"
        ) from None


def _from_document(reply: bytes) -> dict[str, Any]:
    """JSON text as a dict."""
    try:
        if len(reply) <= INLINE_JSON_BYTES:
            value = json.loads(reply)
        else:
            value = json.loads(reply, object_pairs_hook=parse_object, parse_int=parse_int, parse_float=parse_float)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise Internal(f"the reply is no JSON object ({len(reply)} bytes)")
    return value
