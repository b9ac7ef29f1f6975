"""The one door: every call on every port is resolved here, and ends here."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Sequence
from typing import Any

import grpc
import grpc.aio

from quill.errors import Cancelled
from quill.server.admission import Admission
from quill.server.behaviour import Uniform, UniformHandler, refusal
from quill.server.certificates import AuthContext
from quill.server.deferred import deferred
from quill.server.failure import as_rpc_error
from quill.server.one_request import OneRequest
from quill.server.registry import Handler, Registry

_MAX_CACHED_METHODS = 1024


class Guard(grpc.aio.ServerInterceptor):
    """Lets a call in (`Admission`), finds its handler behind the user's interceptors, and makes it uniform (`Uniform`).

    On the gRPC port it is the only interceptor of a server without handlers; the HTTP port calls `resolve`. So the
    user's interceptors run for every call of either port, around handlers as they were registered.
    """

    def __init__(
        self,
        registry: Registry,
        interceptors: Sequence[grpc.aio.ServerInterceptor],
        uniform: Uniform,
        admission: Admission,
    ) -> None:
        self.admission = admission
        self._registry = registry
        self._interceptors = tuple(interceptors)
        self._uniform = uniform
        self._cache: dict[str, tuple[Handler, UniformHandler]] = {}

    async def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Any], handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler:  # type: ignore[type-arg]  # not generic when it runs
        """The handler of a call on the gRPC port."""
        if self.admission.reads_certificates:
            # grpc.aio shows them to handlers only.
            return deferred(lambda peer: self.resolve(handler_call_details, peer))
        handler = await self.resolve(handler_call_details, {})
        return handler if handler.request_streaming else OneRequest(handler)

    async def resolve(self, details: grpc.HandlerCallDetails, peer: AuthContext) -> UniformHandler:
        """The uniform handler of a call; a `refusal` where it is not let in, there is none or an interceptor raised."""
        try:
            self.admission.admit(details, peer)
            handler = await self._intercept(0, details) if self._interceptors else self._registry.find(details)
            if handler is None:
                return refusal(self._registry.unimplemented(details.method))
            return self._made_uniform(details.method, handler)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            return refusal(Cancelled("an interceptor cancelled the call"))
        except Exception as error:  # noqa: BLE001 - whatever an interceptor raises must become a status
            return refusal(as_rpc_error(error))

    async def _intercept(self, index: int, details: grpc.HandlerCallDetails) -> Handler | None:
        if index == len(self._interceptors):
            return self._registry.find(details)
        continuation = functools.partial(self._intercept, index + 1)
        return await self._interceptors[index].intercept_service(continuation, details)

    def _made_uniform(self, method: str, handler: Handler) -> UniformHandler:
        """The uniform form, kept while a method is served by one and the same handler."""
        kept = self._cache.get(method)
        if kept is not None and kept[0] is handler:
            return kept[1]
        uniform = self._uniform(handler)
        if kept is not None or len(self._cache) < _MAX_CACHED_METHODS:
            self._cache[method] = handler, uniform
        return uniform
