"""Connect GET: a call in a URL, turned into the POST that it stands for.

Source: https://connectrpc.com/docs/protocol#unary-get-request. Only methods that declare ``NO_SIDE_EFFECTS`` are
called so; ``curl`` needs no header for it, and caches may keep the reply where the servicer says so.
"""

from __future__ import annotations

import re
from collections.abc import MutableMapping
from typing import Any
from urllib.parse import unquote_to_bytes

from quill.errors import InvalidArgument
from quill.server.connect.errors import connect_error
from quill.server.http_host import Message, Receive, Send
from quill.wire.base64 import decode_base64

_NAME = re.compile(rb"[a-z0-9._-]{1,32}")
_URL_SAFE = bytes.maketrans(b"-_", b"+/")
_OF_A_BODY = frozenset(
    {b"content-type", b"content-encoding", b"content-length", b"transfer-encoding", b"connect-protocol-version"}
)


def as_post(scope: MutableMapping[str, Any], receive: Receive) -> tuple[MutableMapping[str, Any], Receive]:
    """The scope and the body of the POST that says what the GET says.

    What is wrong with the message is told when the body is read: after the guard has let the call in.
    """
    parameters = _parameters(scope.get("query_string", b""))
    headers = [header for header in scope["headers"] if header[0] not in _OF_A_BODY]
    headers.append((b"content-type", b"application/" + _name(parameters.get("encoding"))))
    if compression := _name(parameters.get("compression")):
        headers.append((b"content-encoding", compression))
    sent = False

    async def receive_post() -> Message:
        nonlocal sent
        if sent:
            # A GET has an empty body of its own; connectrpc waits for the disconnect that follows it.
            return await receive()
        sent = True
        try:
            return {"type": "http.request", "body": _message(parameters), "more_body": False}
        except InvalidArgument as error:
            raise connect_error(error) from None

    return {**scope, "method": "POST", "headers": headers}, receive_post


def cacheable_by_permission(send: Send) -> Send:
    """A ``send`` whose replies no cache may keep, unless the call succeeded and its servicer set ``cache-control``."""

    async def send_marked(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = list(message["headers"])
            if message["status"] != 200:  # noqa: PLR2004 - OK
                headers = [header for header in headers if header[0] != b"cache-control"]
            if not any(name == b"cache-control" for name, _ in headers):
                headers.append((b"cache-control", b"no-store"))
            message = {**message, "headers": headers}
        await send(message)

    return send_marked


def _parameters(query: bytes) -> dict[str, bytes]:
    """The parameters of a query, as bytes; of several with one name the first."""
    parameters: dict[str, bytes] = {}
    for part in query.split(b"&"):
        name, _, value = part.partition(b"=")
        parameters.setdefault(name.decode("latin-1"), unquote_to_bytes(value.replace(b"+", b" ")))
    return parameters


def _name(value: bytes | None) -> bytes:
    """A value that becomes part of a header; one that is no name becomes none that is known."""
    return value if value is not None and _NAME.fullmatch(value) else b"?" if value else b""


def _message(parameters: dict[str, bytes]) -> bytes:
    if parameters.get("connect", b"v1") != b"v1":
        raise InvalidArgument("the parameter 'connect' must be 'v1'")
    if "message" not in parameters:
        raise InvalidArgument("a GET request carries its message in the parameter 'message'")
    message = parameters["message"]
    if parameters.get("base64") != b"1":
        return message
    try:
        return decode_base64(message.translate(_URL_SAFE).decode("ascii"))
    except ValueError:
        raise InvalidArgument("the parameter 'message' is not valid base64") from None
