"""gRPC-Web in text: the same bytes in base64, for clients that read replies as text while they arrive.

Source: https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-WEB.md. Base64 is padded wherever its sender flushed,
so padding may stand in the middle of a body.
"""

from __future__ import annotations

import binascii
import re

from quill.errors import InvalidArgument
from quill.server.connect.errors import connect_error
from quill.server.http_host import Message, Receive, Send

_QUANTUM = 4
_PIECE = re.compile(rb"(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?")


class TextDecoder:
    """Decodes base64 that arrives in pieces cut anywhere."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, text: bytes) -> bytes:
        """The bytes that are complete by now.

        Raises:
            InvalidArgument: This is no base64.
        """
        text = self._rest + text
        whole = len(text) - len(text) % _QUANTUM
        text, self._rest = text[:whole], text[whole:]
        decoded = bytearray()
        position = 0
        while position < whole:
            piece = _PIECE.match(text, position)
            if piece is None or not piece[0]:
                raise InvalidArgument("the request is not valid base64")
            decoded += binascii.a2b_base64(piece[0])
            position = piece.end()
        return bytes(decoded)

    def end(self) -> None:
        """The text is complete.

        Raises:
            InvalidArgument: It was cut off.
        """
        if self._rest:
            raise InvalidArgument("the base64 of the request is cut off")


def receive_text(receive: Receive) -> Receive:
    """A ``receive`` of the bytes that the text stands for."""
    decoder = TextDecoder()

    async def receive_bytes() -> Message:
        message = await receive()
        if message["type"] != "http.request":
            return message
        try:
            body = decoder.feed(message.get("body", b""))
            if not message.get("more_body", False):
                decoder.end()
        except InvalidArgument as error:
            raise connect_error(error) from None
        return {**message, "body": body}

    return receive_bytes


def send_text(send: Send) -> Send:
    """A ``send`` that writes bytes as text, each part of the body on its own."""

    async def send_bytes(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = [header for header in message["headers"] if header[0] != b"content-length"]
            message = {**message, "headers": [(name, _named(name, value)) for name, value in headers]}
        elif message["type"] == "http.response.body":
            message = {**message, "body": binascii.b2a_base64(message.get("body", b""), newline=False)}
        await send(message)

    return send_bytes


def _named(name: bytes, value: bytes) -> bytes:
    return value.replace(b"grpc-web", b"grpc-web-text") if name == b"content-type" else value
