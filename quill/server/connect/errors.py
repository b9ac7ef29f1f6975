"""Quill's errors in connectrpc's terms."""

from __future__ import annotations

import contextlib

import grpc
from connectrpc.code import Code as ConnectCode
from connectrpc.errors import ConnectError
from connectrpc.errors import ErrorDetail as ConnectDetail
from protobuf.wkt import Any as ConnectAny

from quill.errors import Code, ErrorDetail, InvalidArgument, Metadata, RpcError
from quill.server.failure import DETAILS_KEY, sendable
from quill.wire.status import status_from_details_bin


def connect_error(error: RpcError) -> ConnectError:
    """The Connect error with the status, message and details of an error; its trailers are the caller's matter."""
    details = [
        ConnectDetail(ConnectAny(type_url=f"type.googleapis.com/{detail.type_name}", value=detail.value))
        for detail in error.details
    ]
    return ConnectError(ConnectCode(error.code.connect_name), sendable(error.message), details)


def rpc_error(error: ConnectError) -> RpcError:
    """What connectrpc found wrong with a stream of requests, for the handler that reads it."""
    return RpcError.of(Code.from_connect(error.code.value), error.message)


def status_error(status: grpc.StatusCode, message: str, trailers: Metadata) -> RpcError:
    """The error of a status as a servicer set it, with the details of a google.rpc.Status among its trailers."""
    code = Code.from_grpc(status.value[0])
    details: tuple[ErrorDetail, ...] = ()
    for key, value in trailers:
        if key == DETAILS_KEY and isinstance(value, bytes):
            with contextlib.suppress(InvalidArgument):  # not a Status: the servicer's own, and nothing for a client
                details = status_from_details_bin(value)[2]
    return RpcError.of(code, message, details=details)
