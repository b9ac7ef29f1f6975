"""Where a servicer of Quill's meets grpc: the one place that turns its exceptions into statuses.

``quill.Server`` would do it itself; a plain ``grpc.aio.server()`` answers UNKNOWN with the text of the exception.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from functools import wraps
from typing import Any, NoReturn, TypeAlias, TypeVar

import grpc

from quill.errors import Code, Internal, RpcError
from quill.wire.status import status_to_details_bin

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]
Servicer = TypeVar("Servicer")
Request = TypeVar("Request")
Reply = TypeVar("Reply")

_log = logging.getLogger("quill.servicer")

_STATUS = {status.value[0]: status for status in grpc.StatusCode}


def unary(
    method: Callable[[Servicer, Request, Context], Awaitable[Reply]],
) -> Callable[[Servicer, Request, Context], Awaitable[Reply]]:
    """A unary method whose exceptions end the call with their status."""

    @wraps(method)
    async def call(self: Servicer, request: Request, context: Context) -> Reply:
        try:
            return await method(self, request, context)
        except Exception as error:  # noqa: BLE001  # every failure becomes a status
            status = let_go(status_of(error))
        del request  # grpc keeps the frames of an aborted call until a collection
        return await _abort(context, status)

    return call


def streaming(
    method: Callable[[Servicer, Request, Context], AsyncGenerator[Reply, None]],
) -> Callable[[Servicer, Request, Context], AsyncIterator[Reply]]:
    """A method with streamed replies whose exceptions end the call with their status."""

    @wraps(method)
    async def call(self: Servicer, request: Request, context: Context) -> AsyncIterator[Reply]:
        try:
            async with aclosing(method(self, request, context)) as messages:
                async for message in messages:
                    yield message
        except Exception as error:  # noqa: BLE001  # every failure becomes a status
            status = let_go(status_of(error))
        else:
            return
        await _abort(context, status)

    return call


def let_go(status: RpcError) -> RpcError:
    """A status without the frames that it came through: they would hold requests, with all tensors, for long."""
    status.__context__ = status.__cause__ = None
    return status.with_traceback(None)


async def _abort(context: Context, error: RpcError) -> NoReturn:
    """End the call with the status of an error. Always raises."""
    trailers = list(error.trailers)
    if error.details:
        details = status_to_details_bin(error.code.grpc_number, error.message, error.details)
        trailers.append(("grpc-status-details-bin", details))
    await context.abort(_STATUS[error.code.grpc_number], error.message, tuple(trailers))


def status_of(error: BaseException) -> RpcError:
    """The status that an exception ends a call with.

    An RpcError is its own status. Anything else nobody foresaw, and is INTERNAL: its text may hold what callers must
    not see, so it goes into the log under a reference, and the caller gets the reference.
    """
    if isinstance(error, RpcError) and error.code is not Code.OK:
        return error
    reference = secrets.token_hex(6)
    _log.error("internal error; reference %s", reference, exc_info=error)
    return Internal(f"internal error; reference {reference}")
