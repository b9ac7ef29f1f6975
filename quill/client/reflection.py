"""Descriptors from the server itself: gRPC server reflection, version 1 and, where that is unknown, v1alpha.

Source: https://github.com/grpc/grpc/blob/master/doc/server-reflection.md. Its messages have a handful of fields, so
they are written and read here without generated classes. What the server tells goes into a pool of its own, where it
meets no generated module.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Generator, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from quill.client import faults
from quill.client.transport import AsyncTransport, Call, ResponseMetadata, SyncTransport
from quill.errors import Code, DeadlineExceeded, RpcError

if TYPE_CHECKING:
    from google.protobuf.descriptor import MethodDescriptor

_SERVICES = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")
_UNBOUNDED_MS = 30_000
"""How long the question may take for a call without a timeout."""

_METHOD = "ServerReflectionInfo"
_MAX_FILES = 4096

# Field numbers of ServerReflectionRequest, ServerReflectionResponse and FileDescriptorResponse.
_FILE_BY_NAME, _FILE_CONTAINING_SYMBOL = 3, 4
_FILES, _ERROR = 4, 7
_FILE = 1

_PASSED_ON = frozenset({Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.CANCELLED})
"""Failures that the call itself would meet too. With any other the server just does not say."""

_Steps = Generator[tuple[str, bytes], "bytes | RpcError", None]
"""Yields the service and the request to ask next, is sent the reply or the error."""


class _NotToldError(Exception):
    """The server does not know, or does not say."""


class _Descriptors:
    """What one server has said of its services so far; asks nobody itself."""

    def __init__(self) -> None:
        from google.protobuf.descriptor_pool import DescriptorPool

        self._pool = DescriptorPool()
        self._services = list(_SERVICES)
        """The versions of reflection that the server may offer; none once it has none."""
        self._known: set[str] = set()

    def has(self, service: str) -> bool:
        """Whether there is nothing to ask: the service is known, or the server offers no reflection."""
        return service in self._known or not self._services

    def find(self, service: str, method: str) -> MethodDescriptor | None:
        """The descriptor of a method; None where the server did not tell it."""
        from quill.wire.descriptors import find_method

        return find_method(service, method, self._pool) if service in self._known else None

    def steps(self, service: str) -> _Steps:
        """Learn about a service, and about every file that its own needs."""
        from google.protobuf.message import DecodeError

        files: dict[str, tuple[bytes, tuple[str, ...]]] = {}
        try:
            missing = yield from self._ask(files, _FILE_CONTAINING_SYMBOL, service)
            while missing:
                missing = yield from self._ask(files, _FILE_BY_NAME, missing[0])
            self._add(files)
        except (_NotToldError, DecodeError, TypeError, ValueError):  # TypeError: the pool refuses a file
            return
        self._known.add(service)

    def _ask(
        self, files: dict[str, tuple[bytes, tuple[str, ...]]], field: int, name: str
    ) -> Generator[tuple[str, bytes], bytes | RpcError, list[str]]:
        """Ask for files; returns the names of those that are still needed."""
        from google.protobuf.descriptor_pb2 import FileDescriptorProto

        while self._services:
            reply = yield self._services[0], _encode(field, name)
            if not isinstance(reply, RpcError):
                break
            if reply.code in _PASSED_ON:
                raise reply
            if not faults.is_unknown_method(reply):
                raise _NotToldError
            del self._services[0]
        else:
            raise _NotToldError
        before = len(files)
        for data in _files(reply):
            file = FileDescriptorProto.FromString(data)
            files[file.name] = data, tuple(file.dependency)
        if not before < len(files) <= _MAX_FILES:
            raise _NotToldError
        return [needed for _, needs in files.values() for needed in needs if needed not in files]

    def _add(self, files: dict[str, tuple[bytes, tuple[str, ...]]]) -> None:
        """Put files into the pool, each after those that it needs."""
        waiting, added = dict(files), set[str]()
        while waiting:
            ready = [name for name, (_, needs) in waiting.items() if added.issuperset(needs)]
            if not ready:
                raise _NotToldError  # they need each other
            for name in ready:
                self._pool.AddSerializedFile(waiting.pop(name)[0])
                added.add(name)


class SyncReflection:
    """The descriptors of one server, asked for once, from any thread."""

    def __init__(self, transport: SyncTransport) -> None:
        self._transport = transport
        self._descriptors = _Descriptors()
        self._lock = threading.Lock()

    def find(self, call: Call) -> MethodDescriptor | None:
        """The descriptor of the method of a call, within the call's timeout; None where the server does not tell.

        Raises:
            RpcError: The server cannot be reached, or does not answer in time.
        """
        if not self._descriptors.has(call.service):
            # A thread that comes meanwhile waits here, and finds it.
            if not self._lock.acquire(timeout=_timeout_ms(call) / 1000):
                raise _too_late(call)
            try:
                self._learn(call)
            finally:
                self._lock.release()
        return self._descriptors.find(call.service, call.method)

    def _learn(self, call: Call) -> None:
        if self._descriptors.has(call.service):
            return
        steps = self._descriptors.steps(call.service)
        step = next(steps, None)
        while step is not None:
            step = _advance(steps, self._ask(_question(call, step[0]), step[1]))

    def _ask(self, call: Call, request: bytes) -> bytes | RpcError:
        stream = self._transport.stream(call, request)
        try:
            return stream.next_message() or b""
        except RpcError as error:
            return error
        finally:
            stream.cancel()


class AsyncReflection:
    """The descriptors of one server, asked for once, on one event loop."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport
        self._descriptors = _Descriptors()
        self._lock = asyncio.Lock()

    async def find(self, call: Call) -> MethodDescriptor | None:
        """As ``find`` of SyncReflection."""
        if not self._descriptors.has(call.service):
            try:
                async with asyncio.timeout(_timeout_ms(call) / 1000), self._lock:
                    await self._learn(call)
            except TimeoutError:
                raise _too_late(call) from None
        return self._descriptors.find(call.service, call.method)

    async def _learn(self, call: Call) -> None:
        if self._descriptors.has(call.service):
            return
        steps = self._descriptors.steps(call.service)
        step = next(steps, None)
        while step is not None:
            step = _advance(steps, await self._ask(_question(call, step[0]), step[1]))

    async def _ask(self, call: Call, request: bytes) -> bytes | RpcError:
        stream = self._transport.stream(call, request)
        try:
            return await stream.next_message() or b""
        except RpcError as error:
            return error
        finally:
            stream.cancel()


def _advance(steps: _Steps, reply: bytes | RpcError) -> tuple[str, bytes] | None:
    try:
        return steps.send(reply)
    except StopIteration:
        return None


def _question(call: Call, service: str) -> Call:
    """The call that asks: with the caller's credentials, for reflection may need them, and within its timeout."""
    return replace(
        call, service=service, method=_METHOD, codec="proto", timeout_ms=_timeout_ms(call), response=ResponseMetadata()
    )


def _timeout_ms(call: Call) -> int:
    return call.timeout_ms or call.first_message_timeout_ms or _UNBOUNDED_MS


def _too_late(call: Call) -> DeadlineExceeded:
    return DeadlineExceeded(f"the server did not describe {call.service} within {_timeout_ms(call)} ms")


def _encode(field: int, text: str) -> bytes:
    """A ServerReflectionRequest with one string."""
    data = text.encode()
    return bytes([field << 3 | 2]) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:  # noqa: PLR2004 - seven bits a byte
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _files(reply: bytes) -> list[bytes]:
    """The files in a ServerReflectionResponse.

    Raises:
        _NotToldError: It has an error in their place, or is damaged.
    """
    parts = dict(_fields(reply))
    if _ERROR in parts or _FILES not in parts:
        raise _NotToldError
    return [data for field, data in _fields(parts[_FILES]) if field == _FILE]


def _fields(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The length-delimited fields of a message; others are passed over."""
    position = 0
    while position < len(data):
        key, position = _read_varint(data, position)
        size = 0
        match key & 7:
            case 0:
                _, position = _read_varint(data, position)
                continue
            case 1:
                size = 8
            case 5:
                size = 4
            case 2:
                size, position = _read_varint(data, position)
                if position + size <= len(data):
                    yield key >> 3, data[position : position + size]
            case _:
                raise _NotToldError
        position += size
    if position != len(data):
        raise _NotToldError


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 64, 7):
        if position >= len(data):
            break
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:  # noqa: PLR2004 - the last byte
            return value, position
    raise _NotToldError
