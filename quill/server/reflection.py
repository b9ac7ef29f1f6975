"""Server reflection: grpc.reflection v1 and v1alpha, for grpcurl, Postman and clients that have no stubs.

Source: https://github.com/grpc/grpc/blob/master/doc/server-reflection.md. Both versions have the same messages.
Told are the registered services, and the files that describe them with everything these import; not whatever else the
process has loaded.
"""

from __future__ import annotations

import contextlib
import itertools
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

import grpc
import grpc.aio
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.descriptor import Descriptor, FileDescriptor
from grpc_reflection.v1alpha import reflection_pb2 as messages  # type: ignore[import-untyped]  # no py.typed

_METHOD = "ServerReflectionInfo"
V1ALPHA = "grpc.reflection.v1alpha.ServerReflection"
V1 = "grpc.reflection.v1.ServerReflection"


def handlers(services: Callable[[], Iterable[str]]) -> dict[str, dict[str, grpc.RpcMethodHandler[Any, Any]]]:
    """The method handlers of both services.

    Args:
        services: Gives the full names of the services to tell.
    """
    handler = grpc.stream_stream_rpc_method_handler(
        Reflection(services).ServerReflectionInfo,
        request_deserializer=messages.ServerReflectionRequest.FromString,
        response_serializer=messages.ServerReflectionResponse.SerializeToString,
    )
    return {service: {_METHOD: handler} for service in (V1, V1ALPHA)}


class Reflection:
    """Answers what clients ask about services.

    Args:
        services: Gives the full names of the services to tell.
    """

    def __init__(self, services: Callable[[], Iterable[str]]) -> None:
        self._services = services
        self._pools = (descriptor_pool.Default(), _pool_of_v1())

    async def ServerReflectionInfo(  # noqa: N802 - the name in the contract
        self, requests: AsyncIterator[Any], _context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[Any]:
        """One reply for each question."""
        files = self._files()
        async for request in requests:
            reply = messages.ServerReflectionResponse(valid_host=request.host, original_request=request)
            try:
                self._answer(request, reply, files)
            except KeyError:
                reply.error_response.error_code = grpc.StatusCode.NOT_FOUND.value[0]
                reply.error_response.error_message = "this server describes nothing of that name"
            yield reply

    def _answer(self, request: Any, reply: Any, files: dict[str, FileDescriptor]) -> None:
        """Fill in the reply.

        Raises:
            KeyError: What is asked for is not there, or describes nothing that is registered.
        """
        match request.WhichOneof("message_request"):
            case "list_services":
                for name in sorted(self._services()):
                    reply.list_services_response.service.add(name=name)
            case "file_by_filename":
                _add(reply, files[request.file_by_filename])
            case "file_containing_symbol":
                _add(reply, files[self._file_of(request.file_containing_symbol).name])
            case "file_containing_extension":
                asked = request.file_containing_extension
                pool, extended = self._message(asked.containing_type)
                _add(reply, files[pool.FindExtensionByNumber(extended, asked.extension_number).file.name])
            case "all_extension_numbers_of_type":
                pool, extended = self._message(request.all_extension_numbers_of_type)
                told = reply.all_extension_numbers_response
                told.base_type_name = files[extended.file.name] and extended.full_name
                found = [extension for extension in pool.FindAllExtensions(extended) if extension.file.name in files]
                told.extension_number.extend(sorted(extension.number for extension in found))
            case _:
                reply.error_response.error_code = grpc.StatusCode.INVALID_ARGUMENT.value[0]
                reply.error_response.error_message = "the request asks nothing"

    def _files(self) -> dict[str, FileDescriptor]:
        """The files of the registered services and what they import, by name; services may have no descriptor."""
        own: list[FileDescriptor] = []
        for service in self._services():
            with contextlib.suppress(KeyError):
                own.append(self._file_of(service))
        return {file.name: file for file in _with_imports(own)}

    def _file_of(self, symbol: str) -> FileDescriptor:
        """The file that defines a symbol; of a method, that of its service."""
        service = symbol.rpartition(".")[0]
        for name, pool in itertools.product((symbol, service), self._pools):
            with contextlib.suppress(KeyError):
                return pool.FindFileContainingSymbol(name)
        raise KeyError(symbol)

    def _message(self, name: str) -> tuple[Any, Descriptor]:
        """The pool and the descriptor of a message type."""
        for pool in self._pools:
            with contextlib.suppress(KeyError):
                return pool, pool.FindMessageTypeByName(name)
        raise KeyError(name)


def _add(reply: Any, file: FileDescriptor) -> None:
    """A file, and after it what it imports."""
    for found in _with_imports([file]):
        proto = descriptor_pb2.FileDescriptorProto()
        found.CopyToProto(proto)
        reply.file_descriptor_response.file_descriptor_proto.append(proto.SerializeToString())


def _with_imports(files: Iterable[FileDescriptor]) -> list[FileDescriptor]:
    """Files and everything that they import, each once."""
    found: dict[str, FileDescriptor] = {}
    waiting = deque(files)
    while waiting:
        file = waiting.popleft()
        if file.name not in found:
            found[file.name] = file
            waiting.extend(file.dependencies)
    return list(found.values())


def _pool_of_v1() -> descriptor_pool.DescriptorPool:
    """A pool that describes v1: v1alpha under its other name.

    A pool apart, because a generated module for v1 that is imported later must find the default pool free of it.
    """
    file = descriptor_pb2.FileDescriptorProto()
    messages.DESCRIPTOR.CopyToProto(file)
    file.name = "grpc/reflection/v1/reflection.proto"
    file.package = "grpc.reflection.v1"
    file.ClearField("options")
    method = file.service[0].method[0]
    types = [field for message in file.message_type for field in message.field if field.type_name]
    for field in types:
        field.type_name = field.type_name.replace(".v1alpha.", ".v1.")
    method.input_type = method.input_type.replace(".v1alpha.", ".v1.")
    method.output_type = method.output_type.replace(".v1alpha.", ".v1.")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return pool
