"""Serving: grpc.aio servicers on a gRPC port and an HTTP port (`quill.Server`)."""

from quill.server.server import Server

__all__ = ["Server"]
