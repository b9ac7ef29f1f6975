"""RPC metadata: which keys and values there may be, and how they travel as HTTP headers.

The rules are gRPC's, on every protocol, so that the same metadata means the same everywhere:
https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md. Keys are lower case; values are printable ASCII,
or bytes where the key ends in ``-bin``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING

from quill.errors import InvalidArgument, InvalidType, InvalidUsage
from quill.wire.base64 import decode_base64, encode_base64

if TYPE_CHECKING:
    from quill.errors import Metadata

_KEY = re.compile(r"[0-9a-z_.-]+")
_TEXT = re.compile(r"(?:[!-~](?:[ -~]*[!-~])?)?")
_HEADER_OVERHEAD_BYTES = 32

# What the protocols, HTTP itself and its proxies say with headers: never the metadata of a call.
_RESERVED_PREFIXES = ("access-control-", "connect-", "grpc-", "proxy-", "trailer-")
_RESERVED_KEYS = frozenset(
    {
        "accept",
        "accept-encoding",
        "accept-post",
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "date",
        "host",
        "http2-settings",
        "keep-alive",
        "server",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "vary",
        "x-grpc-web",
        "x-user-agent",
    }
)


def check_key(key: str) -> str:
    """A key that a call or a reply may carry, in lower case.

    Reserved are the names with which the protocols and HTTP speak for themselves, ``user-agent`` among them: Quill
    tells its own.

    Raises:
        InvalidType: The key is not a string.
        InvalidUsage: It is empty, has other characters than letters, digits, ``_``, ``.`` and ``-``, or is reserved.
    """
    if not isinstance(key, str):
        raise InvalidType(f"a metadata key must be a string, got {type(key).__name__}")
    lowered = key.lower()
    if not _KEY.fullmatch(lowered):
        # What follows the name may be a secret: "Authorization: Bearer ...", given as the name by mistake.
        shown = _KEY.match(lowered)
        raise InvalidUsage(
            "a metadata key must be of letters, digits, '_', '.' and '-'"
            f"{f', after {shown[0][:64]!r} comes something else' if shown else ''}"
        )
    if lowered == "user-agent" or _is_reserved(lowered):
        raise InvalidUsage(f'the metadata key "{key[:64]}" is reserved for the protocol')
    return lowered


def check_value(key: str, value: str | bytes) -> str | bytes:
    """A value that this key, in lower case, may have; the value itself never appears in an error.

    Text is printable ASCII without spaces at its ends, which HTTP would strip; it may be empty.

    Raises:
        InvalidType: The value of a ``-bin`` key is not bytes, or that of another key not a string.
        InvalidUsage: Text has other characters.
    """
    if key.endswith("-bin"):
        if not isinstance(value, bytes):
            raise InvalidType(f'the value of "{key}" must be bytes, got {type(value).__name__}')
        return value
    if not isinstance(value, str):
        raise InvalidType(
            f'the value of "{key}" must be a string, got {type(value).__name__}; the keys of bytes end in "-bin"'
        )
    if not _TEXT.fullmatch(value):
        raise InvalidUsage(f'the value of "{key}" must be printable ASCII without spaces at its ends')
    return value


def encode_binary(value: bytes) -> str:
    """Bytes as a header carries them: base64 without padding."""
    return encode_base64(value)


def decode_binary(text: str, key: str = "-bin") -> bytes:
    """The bytes of one header value, in base64 with its padding or without. The key is for the error's message.

    Raises:
        InvalidArgument: It is not base64.
    """
    try:
        return decode_base64(text)
    except ValueError:
        raise InvalidArgument(f'the value of "{key}" is not valid base64') from None


def to_http(metadata: Metadata) -> list[tuple[str, str]]:
    """The headers that carry this metadata, checked key by key and value by value, in order.

    Raises:
        InvalidType: As check_key and check_value.
        InvalidUsage: As check_key and check_value.
    """
    return [(key := check_key(name), _as_text(check_value(key, value))) for name, value in metadata]


def from_http(headers: Iterable[tuple[str, str]]) -> Metadata:
    """The metadata among the headers of a request or reply, in order.

    Left out are the reserved names, and what gRPC could not carry: keys and text with other characters than
    check_key and check_value allow. ``user-agent`` stays: servicers see it over gRPC too. Several values of one
    ``-bin`` key may have been joined with commas on the way; they come apart again.

    Raises:
        InvalidArgument: A value of a ``-bin`` key is not base64.
    """
    metadata: list[tuple[str, str | bytes]] = []
    for name, value in headers:
        key = _key_of(name)
        if key is None:
            continue
        if key.endswith("-bin"):
            metadata += [(key, decode_binary(part.strip(" \t"), key)) for part in value.split(",")]
        elif _TEXT.fullmatch(text := value.strip(" \t")):
            metadata.append((key, text))
    return tuple(metadata)


def header_bytes(headers: Iterable[tuple[bytes, bytes]]) -> int:
    """The size of headers as HTTP/2 and gRPC count it: name, value as it travels, and 32 bytes for each.

    Source: RFC 9113, section 6.5.2.
    """
    return sum(len(name) + len(value) + _HEADER_OVERHEAD_BYTES for name, value in headers)


@lru_cache(maxsize=256)
def _key_of(header: str) -> str | None:
    """The key that a header of this name carries; None for one that is no metadata. The same names come again."""
    key = header.lower()
    return None if _is_reserved(key) or not _KEY.fullmatch(key) else key


def _is_reserved(key: str) -> bool:
    return key in _RESERVED_KEYS or key.startswith(_RESERVED_PREFIXES)


def _as_text(value: str | bytes) -> str:
    return encode_binary(value) if isinstance(value, bytes) else value
