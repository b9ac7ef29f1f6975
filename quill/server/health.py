"""Health: grpc.health.v1 on both ports, and what /healthz and /readyz say.

Source: https://github.com/grpc/grpc/blob/master/doc/health-checking.md
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]  # no py.typed

from quill.errors import NotFound

SERVICE = "grpc.health.v1.Health"

_MAX_SHOWN = 200
"""Characters of a name that an error repeats."""


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # untyped
    """The health of a server and of each service; open to everybody, and says nothing but the status.

    Unlike grpcio's own servicer it can end its watchers, which would otherwise hold every graceful stop for the
    whole of its grace.

    Args:
        lists_services: Whether List names the services; where callers need credentials, their names are not for all.
    """

    def __init__(self, *, lists_services: bool = True) -> None:
        self._lists_services = lists_services
        self._serving: dict[str, bool] = {}
        self._changed = asyncio.Event()
        self._draining = False
        self._closed = False

    def serve(self, services: Iterable[str]) -> None:
        """The server and these services are SERVING."""
        self._serving = dict.fromkeys(("", *services), True)
        self._notify()

    def set_serving(self, serving: bool) -> None:
        """The server as a whole and all services are SERVING, or NOT_SERVING; not while it drains."""
        if not self._draining and serving != self.is_serving:
            self._serving = dict.fromkeys(self._serving, serving)
            self._notify()

    def drain(self) -> None:
        """Everything is NOT_SERVING, for good."""
        self._draining = True
        self._serving = dict.fromkeys(self._serving, False)
        self._notify()

    def close(self) -> None:
        """End the watchers, after they have told the last status."""
        self._closed = True
        self._notify()

    @property
    def is_serving(self) -> bool:
        """Whether the server as a whole is SERVING."""
        return self._serving.get("", False)

    async def Check(  # noqa: N802 - the name in the contract
        self, request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> health_pb2.HealthCheckResponse:
        """The status of a service; NOT_FOUND for one that is not registered."""
        if request.service not in self._serving:
            raise NotFound(f"this server has no service {request.service[:_MAX_SHOWN]!r}")
        return health_pb2.HealthCheckResponse(status=self._status(request.service))

    async def Watch(  # noqa: N802 - the name in the contract
        self, request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> None:
        """The status of a service now, and whenever it changes."""
        last = None
        while True:
            changed = self._changed
            status = self._status(request.service)
            if status != last:
                last = status
                await context.write(health_pb2.HealthCheckResponse(status=status))
                continue
            if self._closed:
                return
            await changed.wait()

    async def List(  # noqa: N802 - the name in the contract
        self, request: health_pb2.HealthListRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> health_pb2.HealthListResponse:
        """The status of the server, under the empty name, and of each service where these may be named."""
        names = self._serving if self._lists_services else [""]
        statuses = {name: health_pb2.HealthCheckResponse(status=self._status(name)) for name in names}
        return health_pb2.HealthListResponse(statuses=statuses)

    def _status(self, service: str) -> Any:
        serving = self._serving.get(service)
        if serving is None:
            return health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        return health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING

    def _notify(self) -> None:
        """Wake every watcher once."""
        self._changed.set()
        self._changed = asyncio.Event()
