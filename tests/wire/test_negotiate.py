"""What an Accept-Encoding header allows; the cases are those of RFC 9110, section 12.5.3, worked out by hand."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quill.wire.negotiate import Accepted, accepted


@pytest.mark.parametrize(
    ("header", "encoding", "takes_identity"),
    [
        ("", "identity", True),
        ("gzip", "gzip", True),
        ("zstd", "zstd", True),
        ("gzip, zstd", "zstd", True),
        ("gzip, deflate, br", "gzip", True),
        ("br", "identity", True),
        ("gzip;q=1.0, zstd;q=0.5", "gzip", True),
        ("gzip;q=0.001", "gzip", True),
        ("gzip;q=0", "identity", True),
        ("gzip;q=0.000, zstd", "zstd", True),
        ("GZIP ; Q=1", "gzip", True),
        ("*", "zstd", True),
        ("*, zstd;q=0", "gzip", True),
        ("*;q=0", "identity", True),
        ("gzip, *;q=0", "gzip", False),
        ("gzip, identity;q=0", "gzip", False),
        ("identity;q=0", "identity", True),
        ("identity;q=0, br", "identity", True),
        ("identity, gzip;q=0.5", "identity", True),
        ("identity;q=0.5, gzip", "gzip", True),
        ("identity;q=0.5, *", "zstd", True),
        ("gzip;q=2", "identity", True),
        ("gzip;q=nan", "identity", True),
        ("gzip;level=9", "gzip", True),
        (",,gzip,,", "gzip", True),
        ("identity,gzip,zstd", "zstd", True),
    ],
)
def test_the_best_encoding_is_chosen(header, encoding, takes_identity):
    assert accepted(header) == Accepted(encoding, takes_identity=takes_identity)


def test_small_messages_stay_as_they_are_unless_that_is_refused():
    easy, strict = Accepted("gzip"), Accepted("gzip", takes_identity=False)
    assert [easy.of(size) for size in (0, 1, 1023, 1024)] == ["identity", "identity", "identity", "gzip"]
    assert [strict.of(size) for size in (0, 1, 1023, 1024)] == ["identity", "gzip", "gzip", "gzip"]
    assert Accepted().of(10**6) == "identity"


@settings(max_examples=300)
@given(st.text(alphabet="gzipstdency*;,=q0.1 ", max_size=60))
def test_any_header_is_understood_or_ignored(header):
    assert accepted(header).encoding in ("zstd", "gzip", "identity")


@settings(max_examples=200)
@given(st.permutations(["gzip;q=0.3", "zstd;q=0.7", "br", "identity;q=0.1"]))
def test_order_does_not_matter(elements):
    assert accepted(",".join(elements)) == Accepted("zstd")
