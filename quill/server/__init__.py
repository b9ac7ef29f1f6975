"""Serving: grpc.aio servicers on a gRPC port and an HTTP port (`quill.Server`)."""

from quill.server.auth import Auth
from quill.server.server import Server
from quill.server.tls import Tls

__all__ = ["Auth", "Server", "Tls"]
