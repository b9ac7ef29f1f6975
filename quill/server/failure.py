"""How a call ends when its handler does not end well: every exception becomes a status that leaks nothing."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Sequence
from typing import Any

import grpc
import grpc.aio
from grpc._cython import cygrpc  # type: ignore[attr-defined]  # two of its errors have no public name

from quill.errors import Cancelled, Code, Internal, LocalError, Metadata, RpcError, Unavailable
from quill.server.calls import Calls
from quill.wire.metadata import check_key, check_value
from quill.wire.pushback import PUSHBACK_KEY
from quill.wire.status import status_to_details_bin

_log = logging.getLogger("quill.server")

DETAILS_KEY = "grpc-status-details-bin"
"""The trailer that carries a google.rpc.Status (gRFC A16 names it)."""

_MAX_MESSAGE_BYTES = 3 * 1024
"""Of a status, as gRPC encodes it. With details it travels twice, and they need room beside it."""

_STATUS = {Code.from_grpc(status.value[0]): status for status in grpc.StatusCode}


def as_rpc_error(error: BaseException) -> RpcError:
    """What to tell the client: an RpcError as it is, anything else is INTERNAL with a reference into the log."""
    if isinstance(error, RpcError) and error.code is not Code.OK:
        return error
    reference = secrets.token_hex(6)
    _log.error("internal error; reference %s", reference, exc_info=error)
    return Internal(f"internal error; reference {reference}")


async def abort(context: grpc.aio.ServicerContext[Any, Any], error: RpcError) -> None:
    """End a call with the status of an error: always raises ``grpc.aio.AbortError``.

    Trailers that the handler set before stay; those of the error follow.
    """
    try:
        mine = _checked(error.trailers)
    except LocalError as unusable:
        # grpc.aio would quote the whole metadata to the client.
        error, mine = as_rpc_error(unusable), []
    trailers = [*_trailers(context), *mine]
    message = sendable(error.message)
    if error.details:
        trailers.append((DETAILS_KEY, status_to_details_bin(error.code.grpc_number, message, error.details)))
    await context.abort(_STATUS[error.code], message, tuple(trailers))


async def end_call(
    context: grpc.aio.ServicerContext[Any, Any], error: BaseException, task: asyncio.Task[object], calls: Calls
) -> None:
    """End the call of `task`, whose handler raised `error`.

    Raises whatever the host of the call expects: AbortError once a status is set, CancelledError when the call was
    really cancelled. Returns only where the handler had already ended the call itself.
    """
    match error:
        case asyncio.CancelledError():
            await _end_cancelled(context, error, task, calls)
        case grpc.aio.AbortError() if context.done():
            raise error
        case cygrpc.ExecuteBatchError():
            # The peer is gone. grpc.aio would log it with its stack, as often as peers hang up on a writing handler.
            raise asyncio.CancelledError from None
        case cygrpc._ServerStoppedError():  # noqa: SLF001 - see the import
            raise error  # the port is gone; grpc.aio logs it and tells nobody
        case Exception():
            await _end_failed(context, error)
        case _:
            raise error


async def _end_cancelled(
    context: grpc.aio.ServicerContext[Any, Any],
    error: asyncio.CancelledError,
    task: asyncio.Task[object],
    calls: Calls,
) -> None:
    if calls.was_ended(task):
        task.uncancel()
        if context.done():
            return  # the stop came behind the handler's own status
        await abort(context, Unavailable("the server is shutting down"))
    if task.cancelling():
        raise error
    # Nobody cancelled the task: without a status the client would wait until its deadline.
    await abort(context, Cancelled("the handler cancelled the call"))


async def _end_failed(context: grpc.aio.ServicerContext[Any, Any], error: Exception) -> None:
    status = context.code()
    if isinstance(error, NotImplementedError) and status is grpc.StatusCode.UNIMPLEMENTED:
        # How generated servicers say that nobody has written the method: whoever calls it would fill the log.
        await context.abort(status, context.details() or "")
    failure = as_rpc_error(error)
    if context.done():
        return
    if failure is not error and status not in OK:
        # grpc.aio keeps a status that the handler set before it raised; the text is the handler's own.
        await context.abort(status, context.details() or "", _trailers(context))
    await abort(context, failure)


def sendable(message: str) -> str:
    """A message as every client can take it.

    Halves of surrogate pairs fit no encoding, and grpc.aio would leave the client without any status. What is too
    long is cut: a grpcio client refuses trailers above 8 KiB, now and then from there on, and loses the status with
    them. Over gRPC it travels percent-encoded: three bytes for each that is not printable ASCII.
    """
    message = message.encode(errors="replace").decode()
    size = 0
    for place, character in enumerate(message):
        size += 1 if " " <= character <= "~" and character != "%" else 3 * len(character.encode())
        if size > _MAX_MESSAGE_BYTES:
            return message[:place] + "…"
    return message


def _checked(trailers: Metadata) -> list[tuple[str, str | bytes]]:
    """An error's trailers, checked; those of gRPC's own, as an upstream call brings them, are not passed on.

    The pushback is: no client of Quill's shows that of an upstream server, so it is the servicer's own word.
    """
    pushback = [(PUSHBACK_KEY, str(value)) for key, value in trailers if key == PUSHBACK_KEY]
    own = [(check_key(key), value) for key, value in trailers if not str(key).startswith("grpc-")]
    return [*((key, check_value(key, value)) for key, value in own), *pushback]


def _trailers(context: grpc.aio.ServicerContext[Any, Any]) -> Sequence[tuple[str, str | bytes]]:
    return tuple(context.trailing_metadata() or ())


OK = (None, grpc.StatusCode.OK, 0)
"""What ``ServicerContext.code()`` says while a call is well."""
