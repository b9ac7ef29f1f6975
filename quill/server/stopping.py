"""How a server stops: both ports at once, with one grace, and no handler left behind unseen."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import grpc.aio

    from quill.server.calls import Calls
    from quill.server.http_host import HttpHost

_log = logging.getLogger("quill.server")

_LULL_S = 0.05
"""A server that was asked nothing for so long is taken to be left."""
_LEAVING_S = 0.5
"""How long clients are waited for that do not leave."""
_SETTLE_S = 1.0
"""How long handlers may take to end once they are cancelled."""
_UNTIL_TOLD_S = 86_400.0
"""The grace of the gRPC server: longer than any, because the end of the grace is decided here."""


async def stop_hosts(
    calls: Calls, grpc_server: grpc.aio.Server | None, http_host: HttpHost | None, grace_over: asyncio.Event
) -> None:
    """Accept nothing more, wait for the calls or the end of the grace, end the calls that are left, then the ports.

    Calls are ended before their connections, so that their clients are told UNAVAILABLE. Each step but the grace
    itself is bounded.
    """
    calls.close()
    if http_host is not None:
        http_host.stop_accepting()
    if grpc_server is not None:
        await _let_clients_leave(calls, grace_over)
    closing = None if grpc_server is None else asyncio.create_task(grpc_server.stop(_UNTIL_TOLD_S))
    quiet = asyncio.create_task(_quiet(calls, http_host, closing))
    over = asyncio.create_task(grace_over.wait())
    try:
        await asyncio.wait([quiet, over], return_when=asyncio.FIRST_COMPLETED)
        calls.end()
        await asyncio.wait([quiet], timeout=_SETTLE_S)
    finally:
        quiet.cancel()
        over.cancel()
        await asyncio.wait([quiet, over])
    if http_host is not None:
        await http_host.close()
    if grpc_server is not None and closing is not None:
        await asyncio.wait([closing, asyncio.create_task(grpc_server.stop(None))], timeout=_SETTLE_S)
    if calls:
        _log.warning("%d calls did not end within %s s after they were cancelled", len(calls), _SETTLE_S)


async def _let_clients_leave(calls: Calls, grace_over: asyncio.Event) -> None:
    """Refuse calls for a moment, until none comes any more.

    Those that reach a grpc.aio server once it stops, before their client has seen its GOAWAY, end with CANCELLED, which
    tells nobody that they did not run. A refusal does, and health has said by now that this server is leaving.
    """
    loop = asyncio.get_running_loop()
    until_s = loop.time() + _LEAVING_S
    refused = -1
    while refused != (refused := calls.refused) and loop.time() < until_s and not grace_over.is_set():
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LULL_S):
                await grace_over.wait()


async def _quiet(calls: Calls, http_host: HttpHost | None, closing: asyncio.Task[None] | None) -> None:
    """Wait until everything has ended by itself."""
    await calls.wait()
    if http_host is not None:
        await http_host.wait()
    if closing is not None:
        await asyncio.shield(closing)
