"""The exceptions that Quill raises, and the one table of status codes.

    QuillError
    ├── RpcError (also RuntimeError)          the call ended with a status
    │   ├── Cancelled                         CANCELLED
    │   ├── InvalidArgument                   INVALID_ARGUMENT
    │   ├── DeadlineExceeded                  DEADLINE_EXCEEDED, also TimeoutError
    │   ├── NotFound                          NOT_FOUND
    │   ├── AlreadyExists                     ALREADY_EXISTS
    │   ├── PermissionDenied                  PERMISSION_DENIED
    │   ├── ResourceExhausted                 RESOURCE_EXHAUSTED
    │   ├── FailedPrecondition                FAILED_PRECONDITION
    │   ├── Aborted                           ABORTED
    │   ├── OutOfRange                        OUT_OF_RANGE
    │   ├── Unimplemented                     UNIMPLEMENTED
    │   ├── Internal                          INTERNAL
    │   ├── Unavailable                       UNAVAILABLE, also ConnectionError
    │   ├── DataLoss                          DATA_LOSS
    │   ├── Unauthenticated                   UNAUTHENTICATED
    │   └── StreamInterrupted                 a generation ended before it was complete (quill.generation)
    └── LocalError                            nothing was sent
        ├── InvalidUsage                      also ValueError
        └── InvalidType                       also TypeError

A status without a class of its own (UNKNOWN) is an RpcError. The same classes serve on both sides: a servicer
or backend that raises one ends its call with that status, message and details; the caller catches it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar, Self

Metadata = Sequence[tuple[str, str | bytes]]
"""Keys in lower case and their values, in order; values of keys that end in ``-bin`` are bytes."""


class Code(Enum):
    """The status codes, as gRPC numbers, Connect names and HTTP statuses.

    Sources: https://grpc.io/docs/guides/status-codes/ and https://connectrpc.com/docs/protocol#error-codes.
    """

    grpc_number: int
    connect_name: str
    http_status: int

    def __new__(cls, grpc_number: int, connect_name: str, http_status: int) -> Self:
        """One row of the table; the value of a member is its gRPC number."""
        code = object.__new__(cls)
        code._value_ = grpc_number
        code.grpc_number = grpc_number
        code.connect_name = connect_name
        code.http_status = http_status
        return code

    OK = 0, "ok", 200
    CANCELLED = 1, "canceled", 499
    UNKNOWN = 2, "unknown", 500
    INVALID_ARGUMENT = 3, "invalid_argument", 400
    DEADLINE_EXCEEDED = 4, "deadline_exceeded", 504
    NOT_FOUND = 5, "not_found", 404
    ALREADY_EXISTS = 6, "already_exists", 409
    PERMISSION_DENIED = 7, "permission_denied", 403
    RESOURCE_EXHAUSTED = 8, "resource_exhausted", 429
    FAILED_PRECONDITION = 9, "failed_precondition", 400
    ABORTED = 10, "aborted", 409
    OUT_OF_RANGE = 11, "out_of_range", 400
    UNIMPLEMENTED = 12, "unimplemented", 501
    INTERNAL = 13, "internal", 500
    UNAVAILABLE = 14, "unavailable", 503
    DATA_LOSS = 15, "data_loss", 500
    UNAUTHENTICATED = 16, "unauthenticated", 401

    @classmethod
    def from_grpc(cls, number: int) -> Code:
        """The code of a gRPC status number; UNKNOWN where there is none."""
        return _BY_NUMBER.get(number, cls.UNKNOWN)

    @classmethod
    def from_connect(cls, name: str, otherwise: Code | None = None) -> Code:
        """The code of a Connect error name; where there is none the one given, or UNKNOWN."""
        return _BY_NAME.get(name, otherwise or cls.UNKNOWN)


_BY_NUMBER = {code.grpc_number: code for code in Code}
_BY_NAME = {code.connect_name: code for code in Code}


@dataclass(frozen=True, slots=True)
class ErrorDetail:
    """A machine-readable part of an error: a serialized protobuf message and the name of its type.

    Travels as a google.protobuf.Any in a google.rpc.Status over gRPC, and in the ``details`` of a Connect error.
    """

    type_name: str
    """Fully qualified, without a leading URL: ``google.rpc.RetryInfo``."""
    value: bytes
    """The serialized message."""


class QuillError(Exception):
    """Everything that Quill raises on its own account."""


class LocalError(QuillError):
    """The call was wrong before anything was sent."""


class InvalidUsage(LocalError, ValueError):
    """A value that cannot be used: a bad URL, header, timeout, name, size."""


class InvalidType(LocalError, TypeError):
    """A value of a type that cannot be used."""


class RpcError(QuillError, RuntimeError):
    """A call ended with a status other than OK.

    ``RpcError.of(code, message)`` makes an instance of the class for that code.
    """

    code: Code = Code.UNKNOWN
    _classes: ClassVar[dict[Code, type[RpcError]]] = {}

    def __init__(
        self,
        message: str,
        *,
        details: Sequence[ErrorDetail] = (),
        metadata: Metadata = (),
        trailers: Metadata = (),
    ) -> None:
        super().__init__(message)
        self.message = message
        """What went wrong, for people."""
        self.details = tuple(details)
        """Machine-readable details."""
        self.metadata = tuple(metadata)
        """The response's initial metadata, where it arrived."""
        self.trailers = tuple(trailers)
        """The response's trailing metadata."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "code" in cls.__dict__:
            RpcError._classes[cls.code] = cls

    def __str__(self) -> str:
        return f"{self.code.name}: {self.message}"

    @staticmethod
    def of(
        code: Code,
        message: str,
        *,
        details: Sequence[ErrorDetail] = (),
        metadata: Metadata = (),
        trailers: Metadata = (),
    ) -> RpcError:
        """The exception for a status: an instance of the code's own class where it has one.

        Raises:
            InvalidUsage: The code is OK, which is no error.
        """
        if code is Code.OK:
            raise InvalidUsage("OK is no error: there is no exception for it")
        kind = RpcError._classes.get(code, RpcError)
        return kind(message, details=details, metadata=metadata, trailers=trailers)


class Cancelled(RpcError):
    """The call was cancelled, by the caller or by the server."""

    code = Code.CANCELLED


class InvalidArgument(RpcError):
    """The request is wrong, whatever the state of the server."""

    code = Code.INVALID_ARGUMENT


class DeadlineExceeded(RpcError, TimeoutError):
    """The time for the call, for its first message or between messages ran out."""

    code = Code.DEADLINE_EXCEEDED


class NotFound(RpcError):
    """What the request names does not exist."""

    code = Code.NOT_FOUND


class AlreadyExists(RpcError):
    """What the request would create exists already."""

    code = Code.ALREADY_EXISTS


class PermissionDenied(RpcError):
    """The caller is known and may not do this."""

    code = Code.PERMISSION_DENIED


class ResourceExhausted(RpcError):
    """A limit was reached: a size, a count, a quota."""

    code = Code.RESOURCE_EXHAUSTED


class FailedPrecondition(RpcError):
    """The server is not in the state that the request needs."""

    code = Code.FAILED_PRECONDITION


class Aborted(RpcError):
    """The operation was given up, often for a conflict with another."""

    code = Code.ABORTED


class OutOfRange(RpcError):
    """The request reaches past what there is."""

    code = Code.OUT_OF_RANGE


class Unimplemented(RpcError):
    """The server has no such service, method or feature."""

    code = Code.UNIMPLEMENTED


class Internal(RpcError):
    """Something broke that should not. The message carries a reference into the server's log."""

    code = Code.INTERNAL


class Unavailable(RpcError, ConnectionError):
    """The server cannot be reached or cannot serve now; the same call may succeed later."""

    code = Code.UNAVAILABLE


class DataLoss(RpcError):
    """Data was lost or damaged for good."""

    code = Code.DATA_LOSS


class Unauthenticated(RpcError):
    """The call carries no valid credentials."""

    code = Code.UNAUTHENTICATED
