"""Base URLs: what each part means, and that the wrong ones are refused by name."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quill import InvalidType, InvalidUsage, QuillClient, QuillError
from quill.client.address import Address


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://localhost:8080", Address("connect", "localhost", 8080, tls=False)),
        ("http://localhost:8080/", Address("connect", "localhost", 8080, tls=False)),
        ("HTTP://Example.COM", Address("connect", "Example.COM", 80, tls=False)),
        ("https://example.com", Address("connect", "example.com", 443, tls=True)),
        ("https://example.com/api/v1/", Address("connect", "example.com", 443, tls=True, path="/api/v1")),
        ("grpc://10.0.0.1:50051", Address("grpc", "10.0.0.1", 50051, tls=False)),
        ("grpcs://example.com", Address("grpc", "example.com", 443, tls=True)),
        ("http://[::1]:8080", Address("connect", "::1", 8080, tls=False)),
        ("http://[2001:DB8::0]", Address("connect", "2001:db8::", 80, tls=False)),
        ("http://bücher.example", Address("connect", "xn--bcher-kva.example", 80, tls=False)),
        ("http://my_service:65535", Address("connect", "my_service", 65535, tls=False)),
        ("http+unix:///run/q.sock", Address("connect", "localhost", 80, tls=False, unix_path="/run/q.sock")),
        ("grpc+unix:///run/q.sock", Address("grpc", "localhost", 80, tls=False, unix_path="/run/q.sock")),
        ("unix:/run/q.sock", Address("grpc", "localhost", 80, tls=False, unix_path="/run/q.sock")),
        ("unix:///run/q.sock", Address("grpc", "localhost", 80, tls=False, unix_path="/run/q.sock")),
        ("grpc+dns://llm.prod:50051", Address("grpc", "llm.prod", 50051, tls=False, balanced=True)),
        ("grpcs+dns://llm.prod", Address("grpc", "llm.prod", 443, tls=True, balanced=True)),
        (
            "grpc+ipv4://10.0.0.1:5001,10.0.0.2",
            Address("grpc", "10.0.0.1", 5001, tls=False, balanced=True, more=("10.0.0.2:80",)),
        ),
    ],
)
def test_a_url_names_protocol_host_port_and_path(url, address):
    assert Address.parse(url) == address


def test_the_protocol_can_be_chosen_for_any_scheme():
    assert Address.parse("https://h/api/", "quill") == Address("quill", "h", 443, tls=True, path="/api")
    assert Address.parse("http://h:1", "grpc") == Address("grpc", "h", 1, tls=False)
    assert Address.parse("grpcs://h", "connect") == Address("connect", "h", 443, tls=True)


def test_a_scheme_of_grpc_alone_takes_no_other_protocol():
    with pytest.raises(InvalidUsage, match=r"grpc\+dns:// is gRPC's alone, protocol is 'connect'"):
        Address.parse("grpc+dns://h:1", "connect")
    assert Address.parse("unix:/q", "connect").protocol == "connect"


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("grpc://h:1", "h:1"),
        ("grpc+dns://h:1", "dns:///h:1"),
        ("grpc+dns://[::1]:1", "dns:///[::1]:1"),
        ("grpc+ipv4://127.0.0.1:1,127.0.0.1:2", "ipv4:127.0.0.1:1,127.0.0.1:2"),
        ("unix:/run/ä%.sock", "unix:/run/%C3%A4%25.sock"),
    ],
)
def test_grpc_is_told_the_target_in_its_own_syntax(url, target):
    assert Address.parse(url).grpc_target == target


def test_ipv6_stands_in_brackets_where_a_port_follows():
    address = Address.parse("http://[::1]:8080/api")
    assert address.authority == "[::1]:8080"
    assert address.http_url == "http://[::1]:8080/api"


@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("", "no scheme"),
        ("localhost:8080", "no scheme"),
        ("localhost", "no scheme"),
        ("//localhost", "no scheme"),
        ("http:localhost", "no scheme"),
        ("ftp://localhost", "'ftp' is not supported"),
        ("grpc+udp://localhost", "not supported; supported are http"),
        ("unix://tmp/socket", "unix:///path/of/socket"),
        ("unix:socket", "no scheme"),
        ("http+unix://localhost/tmp/socket", "no host"),
        ("http+unix:///", "no path before the service"),
        ("http+unix:///tmp/", "no path before the service"),
        ("http+unix:///" + "a" * 200, "201 bytes, at most 107"),
        ("https+unix:///tmp/socket", "not supported"),
        ("grpc+unix:///tmp/a b", "space"),
        ("unix:/tmp/a,b", "comma"),
        ("grpc+dns://localhost/api", "no path"),
        ("grpc+dns://", "no host"),
        ("grpc+ipv4://localhost:1", "IPv4"),
        ("grpc+ipv4://127.0.0.1:1,", "no host"),
        ("grpc+ipv4://127.0.0.1:1,[::1]:2", "IPv4"),
        ("grpc+ipv4://127.0.0.1:1,127.0.0.1:0", "port"),
        ("grpcs+ipv4://127.0.0.1:1", "not supported"),
        ("://localhost", "not supported"),
        ("http://", "no host"),
        ("http://:8080", "no host"),
        ("http:///path", "no host"),
        ("http://localhost:0", "port"),
        ("http://localhost:65536", "65535, got 65536"),
        ("http://localhost:99999999", "port"),
        ("http://localhost:-1", "port"),
        ("http://localhost:http", "port"),
        ("http://localhost:", "port"),
        ("http://localhost:\uff18\uff10", "port"),
        ("http://local host", "space"),
        (" http://localhost", "not supported"),
        ("http://localhost\n", "control character"),
        ("http://localhost\\evil", "backslash"),
        ("http://localhost?x=1", "query"),
        ("http://localhost/#x", "fragment"),
        ("http://::1:8080", "brackets"),
        ("http://[::1", "brackets"),
        ("http://[::g]", "IPv6"),
        ("http://[]", "IPv6"),
        ("http://256.1.1.1", "IPv4"),
        ("http://1.2.3", "IPv4"),
        ("http://a..b", "host name"),
        ("http://-a", "host name"),
        ("http://a%20b", "host name"),
        ("http://" + "a" * 300, "host name"),
        ("http://h/a//b", "path"),
        ("http://h/ä", "path"),
        ("grpc://localhost/api", "no path"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused_by_name(url, named):
    with pytest.raises(InvalidUsage, match=named):
        QuillClient(url)


@pytest.mark.parametrize(
    "url",
    [
        "http://user:s3cret@localhost",
        "http://s3cret@localhost",
        "user:s3cret@localhost",
        "s3cret://localhost/s3cret s3cret",
        "http://localhost?key=s3cret",
        "http://localhost#s3cret",
        "http://localhost /s3cret",
    ],
)
def test_what_may_be_a_secret_is_not_shown(url):
    with pytest.raises(InvalidUsage) as caught:
        QuillClient(url.replace("s3cret://", "s3cret s3cret://"))
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("url", [None, 7, b"http://localhost"])
def test_a_url_must_be_a_string(url):
    with pytest.raises(InvalidType, match="base_url"):
        QuillClient(url)


@pytest.mark.parametrize(("protocol", "kind"), [("thrift", InvalidUsage), (7, InvalidType)])
def test_a_protocol_that_is_not_there_is_refused(protocol, kind):
    with pytest.raises(kind, match="protocol"):
        QuillClient("http://localhost", protocol=protocol)


@pytest.mark.parametrize(
    ("url", "keeps"),
    [
        ("http://localhost", True),
        ("http://127.0.0.1", True),
        ("http://127.255.255.254", True),
        ("http://[::1]", True),
        ("https://example.com", True),
        ("http://example.com", False),
        ("http://localhost.example.com", False),
        ("http://10.0.0.1", False),
        ("http://0.0.0.0", False),
        ("http://[fe80::1]", False),
        ("http+unix:///run/q.sock", True),
        ("unix:/run/q.sock", True),
        ("grpc+dns://llm.prod", False),
        ("grpcs+dns://llm.prod", True),
        ("grpc+ipv4://127.0.0.1:1,127.0.0.2:1", True),
        ("grpc+ipv4://127.0.0.1:1,10.0.0.1:1", False),
    ],
)
def test_only_tls_and_this_machine_keep_secrets(url, keeps):
    assert Address.parse(url).keeps_secrets is keeps


@given(st.text(max_size=40))
@settings(max_examples=300, deadline=None)
def test_any_text_is_parsed_or_refused(text):
    for url in (text, f"http://{text}", f"grpc://h:{text}"):
        try:
            address = Address.parse(url)
        except QuillError:
            continue
        assert address == Address.parse(address.http_url, address.protocol)
