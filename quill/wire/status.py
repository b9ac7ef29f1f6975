"""Rich error statuses: google.rpc.Status, as the trailer ``grpc-status-details-bin`` carries it.

Source: https://github.com/googleapis/googleapis/blob/master/google/rpc/status.proto.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from quill.errors import ErrorDetail, InvalidArgument

_TYPE_URL_PREFIX = "type.googleapis.com/"


def status_from_details_bin(data: bytes) -> tuple[int, str, tuple[ErrorDetail, ...]]:
    """The gRPC status number, the message and the details of a serialized google.rpc.Status.

    Raises:
        InvalidArgument: The bytes are no such message.
    """
    from google.protobuf.message import DecodeError

    try:
        status = _status_class().FromString(data)
    except DecodeError:
        raise InvalidArgument(f"{len(data)} bytes of error details are not a valid google.rpc.Status") from None
    details = tuple(ErrorDetail(detail.type_url.rpartition("/")[2], detail.value) for detail in status.details)
    return status.code, status.message, details


def status_to_details_bin(code_number: int, message: str, details: Sequence[ErrorDetail]) -> bytes:
    """A serialized google.rpc.Status.

    Args:
        code_number: The gRPC status number.
        message: For people; halves of surrogate pairs, which protobuf cannot hold, become question marks.
        details: Each becomes a google.protobuf.Any.
    """
    status = _status_class()(code=code_number, message=message.encode(errors="replace").decode())
    for detail in details:
        status.details.add(type_url=_TYPE_URL_PREFIX + detail.type_name, value=detail.value)
    return bytes(status.SerializeToString())


def _status_class() -> Any:
    """The generated class, loaded when the first error with details comes."""
    from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]  # it has stubs, but no py.typed

    return Status
