"""``quill call``: any method of any server, with JSON in and JSON out."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from quill.cli.connection import Connection, connecting
from quill.cli.terminal import read, write_json
from quill.client.sync_client import QuillClient
from quill.errors import InvalidArgument, InvalidUsage
from quill.wire.descriptors import find_method
from quill.wire.transcode import parse_json


@connecting
def call(
    url: Annotated[str, typer.Argument(help="The server: http(s):// speaks Connect, grpc(s):// speaks gRPC.")],
    method: Annotated[str, typer.Argument(metavar="SERVICE/METHOD", help="inference.v1.LLMService/Generate")],
    request: Annotated[str, typer.Argument(metavar="JSON", help="The request; - reads standard input.")] = "{}",
    *,
    connection: Connection,
    stream: Annotated[bool, typer.Option(help="The method streams its answers; known for known methods.")] = False,
) -> None:
    """Call a method and print each answer as one line of JSON."""
    service, _, name = method.partition("/")
    if not service or not name:
        raise InvalidUsage(f"the method is written SERVICE/METHOD, got {method!r}")
    body = _parse(read() if request == "-" else request)
    descriptor = find_method(service, name)
    streams = stream or (descriptor is not None and descriptor.server_streaming)
    with QuillClient(url, **connection.options()) as client:
        if not streams:
            write_json(client.call_json(service, name, body))
            return
        with client.stream_json(service, name, body) as answers:
            for answer in answers:
                write_json(answer)


def _parse(text: str) -> dict[str, Any]:
    """The request as a dict."""
    try:
        value = parse_json(text)
    except InvalidArgument as error:
        raise InvalidUsage(f"the request is not JSON that can be sent: {error.message}") from None
    if not isinstance(value, dict):
        raise InvalidUsage(f"the request must be a JSON object, got {text[:40]!r}")
    return value
