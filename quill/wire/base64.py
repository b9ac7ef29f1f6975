"""Base64 (RFC 4648, section 4), strict about its characters and easy about its padding."""

from __future__ import annotations

import binascii


def encode_base64(data: bytes, *, pad: bool = True) -> str:
    """Bytes as text in the standard alphabet, padded to a multiple of four characters unless told otherwise."""
    text = binascii.b2a_base64(data, newline=False).decode("ascii")
    return text if pad else text.rstrip("=")


def decode_base64(text: str) -> bytes:
    """The bytes of a text in the standard alphabet, with its padding or without.

    Raises:
        ValueError: It has other characters, or a length that no bytes encode to.
    """
    if not text.endswith("="):
        text += "=" * (-len(text) % 4)
    return binascii.a2b_base64(text, strict_mode=True)
