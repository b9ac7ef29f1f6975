"""Error details: google.rpc.Status, checked against its generated class."""

import pytest
from google.rpc import error_details_pb2, status_pb2
from hypothesis import given
from hypothesis import strategies as st

from quill.errors import ErrorDetail, InvalidArgument
from quill.wire.status import status_from_details_bin, status_to_details_bin

type_names = st.from_regex(r"[a-z]{1,5}(\.[A-Za-z]{1,5}){0,2}", fullmatch=True)
details = st.lists(st.builds(ErrorDetail, type_names, st.binary(max_size=20)), max_size=4).map(tuple)


@given(st.integers(0, 16), st.text(st.characters(codec="utf-8")), details)
def test_a_status_goes_both_ways_and_is_a_google_rpc_status(code, message, parts):
    data = status_to_details_bin(code, message, parts)
    status = status_pb2.Status.FromString(data)
    assert (status.code, status.message) == (code, message)
    assert [(part.TypeName(), part.value) for part in status.details] == [(p.type_name, p.value) for p in parts]
    assert status_from_details_bin(data) == (code, message, parts)


def test_details_packed_by_others_are_read():
    status = status_pb2.Status(code=8, message="quota")
    reason = error_details_pb2.ErrorInfo(reason="QUOTA", domain="example.org")
    status.details.add().Pack(reason, "example.org/types")
    expected = ErrorDetail("google.rpc.ErrorInfo", reason.SerializeToString())
    assert status_from_details_bin(status.SerializeToString()) == (8, "quota", (expected,))


def test_a_message_with_half_a_surrogate_pair_is_sent_with_a_question_mark():
    assert status_from_details_bin(status_to_details_bin(13, "a\udc80b", ()))[1] == "a?b"


def test_bytes_that_are_no_status_are_refused():
    with pytest.raises(InvalidArgument, match=r"2 bytes of error details are not a valid google.rpc.Status"):
        status_from_details_bin(b"\xff\xff")
