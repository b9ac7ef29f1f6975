"""Compressed messages made to hurt, written by hand from RFC 1952 (gzip) and RFC 8878 (Zstandard).

Each says what becomes of it where it is read: it is too ``LARGE``, or it is ``DAMAGED``.
"""

import functools
import zlib
from dataclasses import dataclass

import zstandard

MIB = 1024 * 1024
LIMIT_BYTES = 4 * MIB
"""Of the servers and clients under test."""
ALLOWED_MIB = LIMIT_BYTES // MIB + 32
"""How much a process may grow over a bomb."""
CONTENT_MIB = 256
"""What a bomb becomes."""
LARGE, DAMAGED = "large", "damaged"


@dataclass(frozen=True)
class Payload:
    name: str
    encoding: str
    data: bytes
    outcome: str

    def __str__(self):
        return f"{self.encoding}, {self.name}"


@functools.cache
def _zeros_deflated():
    """1 MiB of zeros as deflate blocks that refer to nothing before them, and the end of a deflate stream."""
    encoder = zlib.compressobj(9, wbits=-15)
    return encoder.compress(bytes(MIB)) + encoder.flush(zlib.Z_FULL_FLUSH), encoder.flush()


@functools.cache
def _crc_of_zeros(size_mib):
    return functools.reduce(lambda crc, _: zlib.crc32(bytes(MIB), crc), range(size_mib), 0)


def gzip_of_zeros(size_mib, *, told_bytes=None, name=b""):
    """A gzip member of zeros; its last field may tell another size."""
    piece, end = _zeros_deflated()
    head = b"\x1f\x8b\x08" + (b"\x08" if name else b"\0") + b"\0\0\0\0\x02\xff" + (name + b"\0" if name else b"")
    size = size_mib * MIB if told_bytes is None else told_bytes
    tail = _crc_of_zeros(size_mib).to_bytes(4, "little") + (size % 2**32).to_bytes(4, "little")
    return head + piece * size_mib + end + tail


def deflate_of_zeros(size_mib, *, checksum=None):
    """The same in zlib's format, gRPC's ``deflate``."""
    piece, end = _zeros_deflated()
    # Adler-32 of n zeros: the first sum stays 1, the second counts them (RFC 1950).
    adler = size_mib * MIB % 65521 << 16 | 1 if checksum is None else checksum
    return b"\x78\xda" + piece * size_mib + end + adler.to_bytes(4, "big")


def zstd_of_zeros(size_mib, *, claimed_bytes=None, window_log=17, dictionary=0, single=False, before=b"", end=b""):
    """A Zstandard frame of repeated zeros, 4 bytes for 128 KiB, the densest there is.

    Args:
        size_mib: How much is really there.
        claimed_bytes: What the header tells of it; None for nothing.
        window_log: The window that it asks for, as a power of two.
        dictionary: The id of a dictionary; 0 for none.
        single: Ask for one segment as large as the claim, instead of a window.
        before: Blocks before the zeros.
        end: The last block.
    """
    descriptor = (3 << 6 if claimed_bytes is not None else 0) | single << 5 | (3 if dictionary else 0)
    head = b"\x28\xb5\x2f\xfd" + bytes([descriptor])
    head += b"" if single else bytes([window_log - 10 << 3])
    head += dictionary.to_bytes(4, "little") if dictionary else b""
    head += b"" if claimed_bytes is None else claimed_bytes.to_bytes(8, "little")
    return head + before + b"\x02\0\x10\0" * (8 * size_mib) + (end or b"\x01\0\0")


def _by_the_library(size_mib, *, told):
    """What zstd itself writes."""
    encoder = zstandard.ZstdCompressor(write_checksum=True).compressobj(size=size_mib * MIB if told else -1)
    return b"".join(encoder.compress(bytes(MIB)) for _ in range(size_mib)) + encoder.flush()


_ABC = b"\x19\0\0abc"
"""A last block of three bytes."""


@functools.cache
def payloads(size_mib=CONTENT_MIB):
    """All of them."""
    table = {
        ("gzip", LARGE): {
            "true size": gzip_of_zeros(size_mib),
            "tells 3 bytes": gzip_of_zeros(size_mib, told_bytes=3),
            "tells 4 GiB": gzip_of_zeros(size_mib, told_bytes=2**32 - 1),
            "many members": gzip_of_zeros(1) * size_mib,
            "empty members": gzip_of_zeros(0) * 1030 + gzip_of_zeros(1),
            "after a long name": gzip_of_zeros(size_mib, name=b"n" * 500),
        },
        ("gzip", DAMAGED): {
            "small, tells 4 GiB": gzip_of_zeros(1, told_bytes=2**32 - 1),
            "members, then a wrong size": gzip_of_zeros(0) * 100 + gzip_of_zeros(1, told_bytes=3),
        },
        ("zstd", LARGE): {
            "true size": _by_the_library(size_mib, told=True),
            "no size": _by_the_library(size_mib, told=False),
            "no size, densest": zstd_of_zeros(size_mib),
            "claims 4 EiB": zstd_of_zeros(0, claimed_bytes=2**62, end=_ABC),
            "one segment": zstd_of_zeros(size_mib, claimed_bytes=size_mib * MIB, single=True),
            "after empty blocks": zstd_of_zeros(size_mib, before=b"\0\0\0" * 3000),
            "window of 1 GiB": zstd_of_zeros(size_mib, window_log=30),
        },
        ("zstd", DAMAGED): {
            "window of 2 TiB, which no decoder has": zstd_of_zeros(0, window_log=41, end=_ABC),
            "claims 1000 bytes": zstd_of_zeros(size_mib, claimed_bytes=1000),
            "claims nothing is there": zstd_of_zeros(size_mib, claimed_bytes=0),
            "claims the limit": zstd_of_zeros(0, claimed_bytes=LIMIT_BYTES, end=_ABC),
            "many frames": zstd_of_zeros(1, claimed_bytes=MIB) * size_mib,
            "empty frames": zstd_of_zeros(0) * 1000 + zstd_of_zeros(size_mib),
            "skippable frames": b"\x50\x2a\x4d\x18\0\0\0\0" * 1000 + zstd_of_zeros(size_mib),
            "needs a dictionary": zstd_of_zeros(size_mib, dictionary=0x1234567),
            "needs a dictionary, claims 1 MiB": zstd_of_zeros(size_mib, claimed_bytes=MIB, dictionary=0x1234567),
        },
    }
    return [
        Payload(name, encoding, data, outcome)
        for (encoding, outcome), named in table.items()
        for name, data in named.items()
    ]


def grpc_payloads(size_mib=CONTENT_MIB):
    """Those of gRPC, which knows gzip and deflate."""
    return [payload for payload in payloads(size_mib) if payload.encoding == "gzip"] + [
        Payload("true size", "deflate", deflate_of_zeros(size_mib), LARGE),
        Payload("a wrong checksum", "deflate", deflate_of_zeros(size_mib, checksum=7), LARGE),
        Payload("many streams", "deflate", deflate_of_zeros(1) * size_mib, DAMAGED),
        Payload("which gRPC does not know", "zstd", zstd_of_zeros(size_mib), DAMAGED),
    ]


def sound(encoding, data):
    """A small message, compressed as it should be."""
    if encoding == "zstd":
        return zstandard.ZstdCompressor(write_checksum=True).compress(data)
    encoder = zlib.compressobj(9, wbits=31 if encoding == "gzip" else 15)
    return encoder.compress(data) + encoder.flush()
