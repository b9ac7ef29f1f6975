"""Compressed bombs on the gRPC port, in a server process whose memory the system measures.

The client is HTTP/2 by hand: grpcio would have to hold the bomb uncompressed.
"""

import asyncio
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import grpc
import pytest

from support.processes import first_line

LIMIT_BYTES = 1024 * 1024
MIB = 1024 * 1024
BOMB_MIB = 60
"""What fits, compressed, into the 64 KiB that a peer may send before it is asked for more."""
SERVER = f"""
import asyncio
from quill.limits import Limits
from support.probe import Answer, serving

async def unary(request, context):
    return Answer(count=len(request.blob))

async def main():
    async with serving(limits=Limits(max_message_bytes={LIMIT_BYTES}), unary=unary) as server:
        print(server.grpc_address, flush=True)
        await server.wait_for_termination()

asyncio.run(main())
"""


@pytest.fixture
def server():
    """A server process: (pid, port)."""
    root = Path(__file__).resolve().parents[2]
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={"PYTHONPATH": f"{root}:{root / 'tests'}", "GRPC_VERBOSITY": "NONE"},
    )
    try:
        yield process.pid, int(first_line(process).rpartition(":")[2])
    finally:
        process.kill()
        process.communicate(timeout=30)


def peak_mib(pid):
    """The most memory that a process ever held."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM"))


def squeeze(encoding, size):
    """So many zero bytes, compressed."""
    compressor = zlib.compressobj(9, wbits=31 if encoding == "gzip" else 15)
    return b"".join(compressor.compress(bytes(MIB)) for _ in range(size // MIB)) + compressor.flush()


def frame(kind, flags, stream, payload):
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def request(message, encoding):
    """The bytes of a connection with one compressed unary call."""
    headers = {
        ":method": "POST",
        ":scheme": "http",
        ":path": "/probe.v1.Probe/Unary",
        ":authority": "test",
        "content-type": "application/grpc",
        "te": "trailers",
        "grpc-encoding": encoding,
    }
    block = b"".join(
        b"\0" + bytes([len(key)]) + key.encode() + bytes([len(value)]) + value.encode()
        for key, value in headers.items()
    )
    body = b"\1" + struct.pack(">I", len(message)) + message
    assert len(body) < 65536
    pieces = [body[start : start + 16384] for start in range(0, len(body), 16384)]
    data = b"".join(frame(0, int(number == len(pieces)), 1, piece) for number, piece in enumerate(pieces, 1))
    return b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b"") + frame(1, 4, 1, block) + data


async def status(port, data):
    """What the server says about the call: some of its bytes tell the status."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    said = b""
    async with asyncio.timeout(60):
        while b"grpc-status" not in said:
            said += await reader.read(65536)
    writer.close()
    return said.partition(b"grpc-status")[2][1:3].decode().strip("\0")


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
async def test_a_bomb_is_refused_within_the_limit_and_32_mib(server, encoding):
    pid, port = server
    small = squeeze(encoding, 0)
    understood = await status(port, request(small, encoding)) == "0"
    # Old releases of grpcio would decompress without a bound: there Quill takes no compressed requests at all.
    assert understood == (tuple(map(int, grpc.__version__.split(".")[:2])) >= (1, 84))
    before_mib = peak_mib(pid)
    bomb = request(squeeze(encoding, BOMB_MIB * MIB), encoding)
    ended = await asyncio.gather(*(status(port, bomb) for _ in range(4)))
    refused = grpc.StatusCode.RESOURCE_EXHAUSTED if understood else grpc.StatusCode.UNIMPLEMENTED
    assert {int("".join(filter(str.isdigit, end))) for end in ended} == {refused.value[0]}
    assert peak_mib(pid) - before_mib < LIMIT_BYTES // MIB + 32
