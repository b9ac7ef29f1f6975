"""How a call over HTTP ended, read from its reply as it is."""

import base64
import json
import re


def ending(headers, body):
    """How a call ended: the Connect code or gRPC number, and the message."""
    kind = headers.get("content-type", "nothing")
    if kind.startswith("application/grpc-web"):
        if "grpc-status" not in headers:
            body = content(headers, body)
            lines = body[body.rindex(b"\x80\0\0") + 5 :].decode().split("\r\n")
            headers = dict(line.partition(":")[::2] for line in lines if line)
        return headers["grpc-status"].strip(), headers.get("grpc-message", "")
    if kind.startswith("application/connect+"):
        error = json.loads(body[body.rindex(b"\x02\0\0") + 5 :]).get("error", {})
        return error.get("code", "ok"), error.get("message", "")
    if kind != "application/json":
        return ("ok" if kind == "application/proto" else kind), ""
    told = json.loads(body)
    return told.get("code", "?" if "error" in told else "ok"), told.get("message", "")


def content(headers, body):
    """The bytes of a reply; base64 has padding wherever its sender flushed."""
    if "text" not in headers.get("content-type", ""):
        return body
    return b"".join(map(base64.b64decode, re.findall(b"[^=]+=*", body)))
