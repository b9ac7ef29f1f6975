"""The gRPC port: a real grpc.aio server that knows one interceptor and no handler."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc
import grpc.aio

from quill.errors import InvalidUsage
from quill.limits import Limits
from quill.server import unix_socket
from quill.server.guard import Guard

_LOWEST_LEVEL = 1
"""GRPC_COMPRESS_LEVEL_LOW; the level 0 compresses nothing."""


def create_grpc_server(
    guard: Guard, limits: Limits, options: Sequence[tuple[str, Any]], *, compression: bool
) -> grpc.aio.Server:
    """A grpc.aio server without ports. Must be called in the loop that it will run in.

    With `compression`, C-core tries gzip on every reply to a client that accepts it and keeps what is smaller.
    """
    # An algorithm would be for every client; a level is for what the client accepts, and the lowest means gzip.
    level = {"grpc.default_compression_level": _LOWEST_LEVEL} if compression else {}
    return grpc.aio.server(
        interceptors=[guard],
        options=tuple({**_options(limits), **level, **dict(options)}.items()),
    )


def bind(server: grpc.aio.Server, address: str, credentials: grpc.ServerCredentials | None = None) -> int:
    """Open a port.

    Returns:
        The number of the port.

    Raises:
        InvalidUsage: The address cannot be listened on.
    """
    if (path := unix_socket.path_of(address)) is not None:
        unix_socket.clear(path)  # C-core would take the socket of a server that runs
    try:
        if credentials is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, credentials)
    except RuntimeError:
        raise InvalidUsage(
            f"cannot listen on {address!r} for gRPC: the port is in use, or this is no HOST:PORT of this machine"
        ) from None


def with_port(address: str, port: int) -> str:
    """An address with the number of the port that was opened for it; a socket path has none."""
    if address.startswith("unix"):
        return address
    host, _, tail = address.rpartition(":")
    return f"{host}:{port}" if tail.isdigit() else f"{address}:{port}"


def _options(limits: Limits) -> dict[str, Any]:
    """Channel arguments (grpc/impl/channel_arg_names.h)."""
    return {
        "grpc.max_receive_message_length": limits.max_message_bytes,
        "grpc.max_send_message_length": limits.max_message_bytes,
        # Between the two C-core refuses at random.
        "grpc.max_metadata_size": limits.max_metadata_bytes,
        "grpc.absolute_max_metadata_size": limits.max_metadata_bytes,
        # Without these, thousands of simultaneous opens lose calls.
        "grpc.server.max_pending_requests": limits.max_pending_requests,
        "grpc.server.max_pending_requests_hard_limit": limits.max_pending_requests,
        "grpc.max_allowed_incoming_connections": limits.max_connections,
        "grpc.server_handshake_timeout_ms": round(limits.handshake_timeout_s * 1000),
        "grpc.max_connection_idle_ms": round(limits.connection_idle_timeout_s * 1000),
        # A port in use must fail, not share the load with a stranger.
        "grpc.so_reuseport": 0,
        # A dead peer is noticed after both times; the keepalive timeout alone never fires in grpcio.
        "grpc.keepalive_time_ms": round(limits.keepalive_interval_s * 1000),
        "grpc.keepalive_timeout_ms": round(limits.keepalive_timeout_s * 1000),
        "grpc.http2.ping_timeout_ms": round(limits.keepalive_timeout_s * 1000),
        "grpc.http2.max_pings_without_data": 0,
        # Clients may ping this often, also without calls; a default server sends them away ("too many pings").
        "grpc.http2.min_ping_interval_without_data_ms": round(limits.min_ping_interval_s * 1000),
        "grpc.keepalive_permit_without_calls": 1,
    }
