"""What a server serves: the registered handlers, found by the path of the method."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import grpc

from quill.errors import Unimplemented

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"

_MAX_SHOWN = 200
"""Characters of a name that an error repeats."""


@dataclass(slots=True)
class CallDetails:
    """What an interceptor sees of a call: a grpc.HandlerCallDetails."""

    method: str
    """``/package.Service/Method``."""
    invocation_metadata: tuple[tuple[str, str | bytes], ...]
    """The request's metadata."""


class Registry:
    """The handlers of a server, in the order in which grpc.aio would ask them.

    Both ports look handlers up here, so a method exists on both or on neither.
    """

    def __init__(self) -> None:
        self._methods: dict[str, Handler] = {}
        self._generic: list[grpc.GenericRpcHandler] = []
        self._services: dict[str, None] = {}

    @property
    def services(self) -> tuple[str, ...]:
        """Full names of the registered services; a generic handler that names no service is not among them."""
        return tuple(self._services)

    def add_generic(self, handlers: Iterable[grpc.GenericRpcHandler]) -> None:
        """Take handlers as ``grpc.aio.Server.add_generic_rpc_handlers`` does."""
        for handler in handlers:
            self._generic.append(handler)
            if isinstance(handler, grpc.ServiceRpcHandler):
                self._services[handler.service_name()] = None

    def add_methods(self, service: str, handlers: Mapping[str, Handler]) -> None:
        """Take handlers as ``grpc.aio.Server.add_registered_method_handlers`` does."""
        self._services[service] = None
        self._methods.update({f"/{service}/{method}": handler for method, handler in handlers.items()})

    def find(self, details: grpc.HandlerCallDetails) -> Handler | None:
        """The handler of a method. What a generic handler of the user's raises passes through."""
        if (handler := self._methods.get(details.method)) is not None:
            return handler
        for generic in self._generic:
            if (handler := generic.service(details)) is not None:
                return handler
        return None

    def unimplemented(self, path: str) -> Unimplemented:
        """The error for a method that no handler serves; it tells an unknown service from an unknown method."""
        service, _, method = path.removeprefix("/").rpartition("/")
        if not service:
            return Unimplemented(f"{_cut(path)!r} names no method: a path is /package.Service/Method")
        if service in self._services:
            return Unimplemented(f"service {service} has no method {_cut(method)!r}")
        return Unimplemented(f"this server has no service {_cut(service)!r}")


def takes_turns(handler: Handler) -> bool:
    """Whether both sides of a bidirectional method go on only after they have heard the other.

    Its servicer names such methods in an attribute, ``full_duplex = frozenset({"Session"})``; grpc.aio has no place
    for it.
    """
    behaviour = handler.stream_stream
    servicer = getattr(behaviour, "__self__", None)
    return behaviour is not None and getattr(behaviour, "__name__", "") in getattr(servicer, "full_duplex", ())


def _cut(name: str) -> str:
    return name if len(name) <= _MAX_SHOWN else name[:_MAX_SHOWN] + "…"
