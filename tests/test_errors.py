import pickle

import grpc
import pytest
from connectrpc.code import Code as ConnectCode

from quill import errors
from quill.errors import Code, ErrorDetail, InvalidType, InvalidUsage, LocalError, QuillError, RpcError

# Copied by hand from https://connectrpc.com/docs/protocol#error-codes.
HTTP_STATUS = {
    "canceled": 499,
    "unknown": 500,
    "invalid_argument": 400,
    "deadline_exceeded": 504,
    "not_found": 404,
    "already_exists": 409,
    "permission_denied": 403,
    "resource_exhausted": 429,
    "failed_precondition": 400,
    "aborted": 409,
    "out_of_range": 400,
    "unimplemented": 501,
    "internal": 500,
    "unavailable": 503,
    "data_loss": 500,
    "unauthenticated": 401,
}

CLASSES = {
    Code.CANCELLED: errors.Cancelled,
    Code.INVALID_ARGUMENT: errors.InvalidArgument,
    Code.DEADLINE_EXCEEDED: errors.DeadlineExceeded,
    Code.NOT_FOUND: errors.NotFound,
    Code.ALREADY_EXISTS: errors.AlreadyExists,
    Code.PERMISSION_DENIED: errors.PermissionDenied,
    Code.RESOURCE_EXHAUSTED: errors.ResourceExhausted,
    Code.FAILED_PRECONDITION: errors.FailedPrecondition,
    Code.ABORTED: errors.Aborted,
    Code.OUT_OF_RANGE: errors.OutOfRange,
    Code.UNIMPLEMENTED: errors.Unimplemented,
    Code.INTERNAL: errors.Internal,
    Code.UNAVAILABLE: errors.Unavailable,
    Code.DATA_LOSS: errors.DataLoss,
    Code.UNAUTHENTICATED: errors.Unauthenticated,
}

every_code = pytest.mark.parametrize("code", [code for code in Code if code is not Code.OK])


def test_names_and_numbers_are_those_of_grpc():
    assert {code.name: code.grpc_number for code in Code} == {
        status.name: status.value[0] for status in grpc.StatusCode
    }


def test_connect_names_are_those_of_the_connect_library():
    # They differ in the spelling of one name only: CANCELLED here, CANCELED there.
    theirs = {code.name.replace("CANCELED", "CANCELLED"): code.value for code in ConnectCode}
    assert {code.name: code.connect_name for code in Code if code is not Code.OK} == theirs


def test_http_statuses_are_those_of_the_connect_protocol():
    assert {code.connect_name: code.http_status for code in Code if code is not Code.OK} == HTTP_STATUS
    assert Code.OK.http_status == 200


@pytest.mark.parametrize("code", Code)
def test_a_code_is_found_by_number_and_by_name(code):
    assert Code.from_grpc(code.grpc_number) is code
    assert Code.from_connect(code.connect_name) is code


def test_an_unknown_number_or_name_is_unknown():
    assert Code.from_grpc(17) is Code.from_grpc(-1) is Code.UNKNOWN
    assert Code.from_connect("cancelled") is Code.from_connect("") is Code.UNKNOWN


@every_code
def test_of_makes_the_class_of_the_code(code):
    error = RpcError.of(code, "what went wrong")
    assert type(error) is CLASSES.get(code, RpcError)
    assert error.code is code
    assert error.message == "what went wrong"
    assert str(error) == f"{code.name}: what went wrong"


def test_an_error_carries_details_metadata_and_trailers():
    detail = ErrorDetail("google.rpc.RetryInfo", b"\x0a\x00")
    error = RpcError.of(Code.UNAVAILABLE, "busy", details=[detail], metadata=[("a", "b")], trailers=[("c-bin", b"d")])
    assert error.details == (detail,)
    assert error.metadata == (("a", "b"),)
    assert error.trailers == (("c-bin", b"d"),)
    assert (RpcError("x").details, RpcError("x").metadata, RpcError("x").trailers) == ((), (), ())


@every_code
def test_a_status_error_is_a_runtime_error(code):
    assert issubclass(CLASSES.get(code, RpcError), RpcError)
    assert issubclass(RpcError, RuntimeError)
    assert issubclass(RpcError, QuillError)


def test_deadlines_are_timeouts_and_the_unreachable_are_connection_errors():
    assert {code for code, kind in CLASSES.items() if issubclass(kind, TimeoutError)} == {Code.DEADLINE_EXCEEDED}
    assert {code for code, kind in CLASSES.items() if issubclass(kind, ConnectionError)} == {Code.UNAVAILABLE}


def test_local_errors_are_value_and_type_errors_and_no_status():
    assert issubclass(InvalidUsage, ValueError)
    assert issubclass(InvalidType, TypeError)
    for kind in (InvalidUsage, InvalidType):
        assert issubclass(kind, LocalError)
        assert issubclass(kind, QuillError)
        assert not issubclass(kind, RpcError)


@every_code
def test_an_error_survives_pickle(code):
    error = RpcError.of(code, "text", details=[ErrorDetail("t", b"v")], metadata=[("a", "b")], trailers=[("c", "d")])
    back = pickle.loads(pickle.dumps(error))  # noqa: S301  # its own bytes
    assert type(back) is type(error)
    assert (str(back), back.code, back.details) == (str(error), code, error.details)
    assert (back.metadata, back.trailers) == (error.metadata, error.trailers)


def test_the_tree_in_the_docstring_names_every_class():
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, QuillError)]
    assert len(kinds) == 20
    for kind in kinds:
        assert kind.__name__ in errors.__doc__
