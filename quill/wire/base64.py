"""Base64 (RFC 4648, section 4), strict about its characters and easy about its padding."""

from __future__ import annotations

import binascii


def encode_base64(data: bytes) -> str:
    """Bytes as text in the standard alphabet, without padding."""
    return binascii.b2a_base64(data, newline=False).decode("ascii").rstrip("=")


def decode_base64(text: str) -> bytes:
    """The bytes of a text in the standard alphabet, with its padding or without.

    Raises:
        ValueError: It has other characters, or a length that no bytes encode to.
    """
    if not text.endswith("="):
        text += "=" * (-len(text) % 4)
    return binascii.a2b_base64(text, strict_mode=True)
