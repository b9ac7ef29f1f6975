"""Metadata: what may be said, how it travels, what comes back."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quill.errors import InvalidArgument, InvalidType, InvalidUsage
from quill.wire.metadata import (
    check_key,
    check_value,
    decode_binary,
    encode_binary,
    from_http,
    header_bytes,
    to_http,
)

names = st.from_regex(r"x-[0-9a-z_.-]{0,10}", fullmatch=True)
texts = st.from_regex(r"([!-~]([ -~]{0,10}[!-~])?)?", fullmatch=True)
entries = st.tuples(names.filter(lambda name: not name.endswith("-bin")), texts) | st.tuples(
    names.map(lambda name: name + "-bin"), st.binary(max_size=20)
)


@given(st.lists(entries.filter(lambda entry: not entry[0].startswith(("x-grpc-web", "x-user-agent")))))
def test_metadata_comes_back_from_http_as_it_was(metadata):
    assert from_http(to_http(metadata)) == tuple(metadata)


def test_keys_are_lower_cased():
    assert check_key("X-Trace_Id.v1") == "x-trace_id.v1"
    assert to_http([("Authorization", "Bearer a")]) == [("authorization", "Bearer a")]


@pytest.mark.parametrize("key", ["authorization", "cookie", "x-api-key", "traceparent", "a", "content-language"])
def test_usual_keys_are_allowed(key):
    assert check_key(key) == key


@pytest.mark.parametrize("key", ["", ":path", "a b", "a\r\nb", "a:", "é", "a/b", "a\0", "K\u0130", "a\n"])
def test_keys_of_other_characters_are_refused(key):
    with pytest.raises(InvalidUsage, match="must be of letters"):
        check_key(key)


@pytest.mark.parametrize(
    "key",
    [
        "grpc-timeout", "Grpc-Status", "grpc-status-details-bin", "connect-timeout-ms", "content-type",
        "Content-Length", "content-encoding", "accept-encoding", "te", "Host", "connection", "transfer-encoding",
        "keep-alive", "upgrade", "trailer", "trailer-x", "user-agent", "date", "server", "access-control-allow-origin",
        "proxy-authorization", "x-grpc-web",
    ],
)  # fmt: skip
def test_keys_of_the_protocols_are_refused(key):
    with pytest.raises(InvalidUsage, match="is reserved for the protocol"):
        check_key(key)
    if key != "user-agent":
        assert from_http([(key, "x")]) == ()


def test_a_key_must_be_a_string():
    with pytest.raises(InvalidType, match="must be a string, got bytes"):
        check_key(b"a")


@pytest.mark.parametrize("value", ["", "a", "a b", "~", "Bearer x.y=="])
def test_printable_ascii_is_allowed(value):
    assert check_value("a", value) == value


@pytest.mark.parametrize("value", ["se\r\ncret", "secret\n", "\0secret", "sécret", " secret", "secret ", "sec\tret"])
def test_other_values_are_refused_without_being_shown(value):
    with pytest.raises(InvalidUsage) as caught:
        check_value("authorization", value)
    assert "authorization" in str(caught.value)
    assert "cret" not in str(caught.value)


def test_the_type_of_a_value_follows_from_its_key():
    assert check_value("a-bin", b"\0\xff") == b"\0\xff"
    with pytest.raises(InvalidType, match=r'the value of "a-bin" must be bytes, got str'):
        check_value("a-bin", "secret")
    with pytest.raises(InvalidType, match=r'must be a string, got bytes; the keys of bytes end in "-bin"'):
        check_value("a", b"secret")
    with pytest.raises(InvalidType, match="got int"):
        check_value("a", 5)


def test_no_header_is_made_of_bad_metadata():
    with pytest.raises(InvalidUsage):
        to_http([("a", "x\r\nset-cookie: y")])
    with pytest.raises(InvalidUsage):
        to_http([("grpc-status", "0")])


@given(st.binary())
def test_binary_values_are_base64_without_padding(value):
    text = encode_binary(value)
    assert text == base64.b64encode(value).decode().rstrip("=")
    assert decode_binary(text) == value
    assert decode_binary(base64.b64encode(value).decode()) == value


@pytest.mark.parametrize("text", ["A", "AA=", "A===", "AA==A", "A A", "-_8", "é", "AAA="[:2] + "\n"])
def test_bad_base64_is_refused(text):
    with pytest.raises(InvalidArgument):
        decode_binary(text)


def test_a_bad_binary_header_is_refused_by_its_key():
    with pytest.raises(InvalidArgument, match=r'the value of "trace-bin" is not valid base64') as caught:
        from_http([("Trace-Bin", "s€cret")])
    assert "cret" not in str(caught.value)


def test_joined_binary_values_come_apart_and_text_stays_whole():
    assert from_http([("a-bin", "AA, AQ==,,Ag"), ("b", "1, 2")]) == (
        ("a-bin", b"\0"),
        ("a-bin", b"\1"),
        ("a-bin", b""),
        ("a-bin", b"\2"),
        ("b", "1, 2"),
    )


def test_headers_keep_their_order_and_lose_what_grpc_could_not_carry():
    headers = [
        ("Host", "h"), ("X-B", " 2\t"), ("x-a", "1"), ("x-b", "3"), ("User-Agent", "curl"), ("x!y", "1"),
        ("x-latin", "caf\xe9"), ("Content-Type", "application/json"), (":path", "/"),
    ]  # fmt: skip
    assert from_http(headers) == (("x-b", "2"), ("x-a", "1"), ("x-b", "3"), ("user-agent", "curl"))


def test_sizes_are_counted_as_rfc_7541_counts_them():
    # The sizes that appendix C tells for these entries.
    assert header_bytes([(b"cache-control", b"no-cache")]) == 53  # C.3.2
    assert header_bytes([(b"custom-key", b"custom-value")]) == 54  # C.3.3
    assert header_bytes([(b"a-bin", b"AAA"), (b"b", b"")]) == (5 + 3 + 32) + (1 + 32)
    assert header_bytes([]) == 0
