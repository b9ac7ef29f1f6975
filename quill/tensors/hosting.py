"""Calls whose tensors lie in a lane: their inputs taken from it, and their outputs put into it."""

from __future__ import annotations

import asyncio
import math
import time
import traceback
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from quill.errors import DeadlineExceeded, Unavailable
from quill.lanes.granted import Grant, GrantedLanes, lost
from quill.lanes.inline import fields_of, parcel_of
from quill.lanes.lane import ENDS_KEY, INLINE_BYTES, LANE_KEY
from quill.lanes.placing import spans
from quill.principal import current_principal
from quill.wire.large import offload

if TYPE_CHECKING:
    from quill.boundary import Context
    from quill.lanes.direct import DirectHost
    from quill.lanes.parcel import Parcel
    from quill.lanes.shared import SharedHost
    from quill.limits import Limits
    from quill.proto import NegotiateLaneRequest, NegotiateLaneResponse
    from quill.wire.tensor_fields import InferFields

P = ParamSpec("P")
T = TypeVar("T")

_PAUSES_S = (0, 0, 0.001, 0.01)
_SWEEP_S = 1.0
"""How often lanes are looked at whose callers may be gone."""


class LaneHosting:
    """The lanes of one servicer, on one event loop.

    Args:
        granted: Whose they are.
        limits: What is accepted.
    """

    def __init__(self, granted: GrantedLanes, limits: Limits) -> None:
        self._granted = granted
        self._limits = limits
        # One for each lane, so that no caller who is slow makes others wait.
        self._threads = ThreadPoolExecutor(limits.max_lanes, "quill-lane")
        self._timer: asyncio.TimerHandle | None = None

    async def aclose(self) -> None:
        """End all lanes. May be called again."""
        if self._timer is not None:
            self._timer.cancel()
        await asyncio.to_thread(self._granted.close)
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def negotiate(self, request: NegotiateLaneRequest) -> NegotiateLaneResponse:
        """Grant a lane. Raises as ``GrantedLanes.negotiate``."""
        reply = await asyncio.to_thread(self._granted.negotiate, request, current_principal.get())
        if self._timer is None:
            self._watch()
        return reply

    async def infer(
        self, fields: InferFields, handle: str, context: Context, run: Callable[[Parcel], Awaitable[Parcel]]
    ) -> bytes:
        """The serialized reply to a request whose tensors lie in a lane.

        Args:
            fields: The request.
            handle: The lane's.
            context: The call's.
            run: What runs the model.

        Raises:
            InvalidArgument: The lane does not bring what the request says.
            Unavailable: It does not take the reply.
            Exception: What ``run`` raises.
        """
        left_s = context.time_remaining()
        deadline_s = math.inf if left_s is None else time.monotonic() + left_s
        with self._granted.taken(handle, current_principal.get()) as (grant, host):
            try:
                message = await self._answer(grant, host, fields, deadline_s, run)
            except BaseException as error:
                _let_go(error)
                raise
            finally:
                for tensor in fields.tensors:
                    tensor.data = b""
            told = [*(context.trailing_metadata() or ()), (LANE_KEY, host.kind), *host.trailers]
            if await _is_kept(host):
                self._granted.drop(grant)
                told.append((ENDS_KEY, "kept"))
            context.set_trailing_metadata(tuple(told))
            return message

    async def _answer(
        self,
        grant: Grant,
        host: SharedHost | DirectHost,
        fields: InferFields,
        deadline_s: float,
        run: Callable[[Parcel], Awaitable[Parcel]],
    ) -> bytes:
        await self._receive(grant, host, fields, deadline_s)
        size_bytes = sum(len(tensor.data) for tensor in fields.tensors)
        parcel = await offload(size_bytes, INLINE_BYTES, parcel_of, fields, self._limits)
        reply = fields_of(await run(parcel))
        if host.takes_at_once(reply):
            return host.reply(reply, grant.handle, deadline_s)
        return await self._in_thread(grant, host.reply, reply, grant.handle, deadline_s)

    async def _receive(
        self, grant: Grant, host: SharedHost | DirectHost, fields: InferFields, deadline_s: float
    ) -> None:
        several = list(spans(fields, self._limits))
        if host.brings_at_once:
            host.receive(several, deadline_s)
            return
        try:
            await self._in_thread(grant, host.receive, several, deadline_s)
        except (Unavailable, DeadlineExceeded) as error:
            raise lost(f"the lane did not bring the inputs: {error.message}") from None

    async def _in_thread(self, grant: Grant, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What takes long, or waits for the caller; a call that is cancelled wakes it by ending the lane."""
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._threads, lambda: work(*args, **kwargs))
        except asyncio.CancelledError:
            self._granted.drop(grant)
            raise

    def _watch(self) -> None:
        """End the lanes that nobody will use, and look again for as long as there are some."""
        self._granted.sweep()
        self._timer = asyncio.get_running_loop().call_later(_SWEEP_S, self._watch) if len(self._granted) else None


async def _is_kept(host: SharedHost | DirectHost) -> bool:
    """Whether a model keeps inputs after it has returned. A thread that has just ended may have them for a moment."""
    for pause_s in _PAUSES_S:
        if not host.is_kept:
            return False
        await asyncio.sleep(pause_s)
    return host.is_kept


def _let_go(error: BaseException | None) -> None:
    """Empty the functions that an error has passed through.

    Else what they had lives until garbage is collected, and with it what it views of a lane.
    """
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__
