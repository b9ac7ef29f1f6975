"""The lanes that a client has negotiated: which it has at hand, what it asks for, and what it was refused."""

from __future__ import annotations

import math
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeAlias

from quill.client.calls import Question
from quill.client.tls import tls_context
from quill.errors import InvalidUsage, Unavailable
from quill.lanes.dialing import dial
from quill.lanes.direct import DirectGuest
from quill.lanes.lane import INLINE_BYTES
from quill.lanes.shared import SharedGuest
from quill.lanes.shm import Region, neighbourhood

if TYPE_CHECKING:
    from collections.abc import Sequence

    from quill.client.address import Address
    from quill.client.tls import ClientTls
    from quill.proto import NegotiateLaneResponse

Guest: TypeAlias = SharedGuest | DirectGuest

NEGOTIATED = ("shm", "socket")
"""The lanes that need negotiating, the best first."""

_IDLE_S = 60.0
"""How long a lane is kept that no call uses."""
_REFUSED_S = 60.0
"""How long a server is not asked again that has said no."""
_MAX_CARRIED = 16
"""Calls at once whose elements a socket carries: each has a thread."""


class _Here:
    """The lanes of one process."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.idle: list[tuple[float, Guest]] = []
        """Since when on the monotonic clock, and which."""
        self.threads: ThreadPoolExecutor | None = None


class ClientLanes:
    """The lanes of one client. Threads may share it; a process that was forked begins anew.

    Args:
        address: Where the calls go.
        tls: Whom to trust and what to show there.
    """

    def __init__(self, address: Address, tls: ClientTls | None) -> None:
        self._address = address
        self._tls = tls
        self._refused_s: dict[str, float] = {}
        """Until when a kind is not asked for, on the monotonic clock."""
        self._wished_s = -math.inf
        """When a call last had no lane."""
        self._by_process: dict[int, _Here] = {}
        """What a parent process had open is its own: kept, so that nothing here closes it."""
        self._is_closed = False

    def kinds(self, wanted: str, size_bytes: int) -> tuple[str, ...]:
        """The lanes that a call may have which wants this one, or ``"auto"``; the best first.

        A server behind several addresses has none: the next call may reach another. A Unix socket has no host. By
        ``"auto"`` only large calls have a socket: the others gain too little to wait for a firewall that drops it.
        """
        address = self._address
        if address.balanced or address.more:
            return ()
        now_s = time.monotonic()
        return tuple(
            kind
            for kind in NEGOTIATED
            if wanted in {kind, "auto"}
            and not (kind == "socket" and address.unix_path is not None)
            and not (wanted == "auto" and self._refused_s.get(kind, 0.0) > now_s)
            and not (wanted == "auto" and kind == "socket" and size_bytes <= INLINE_BYTES)
        )

    def at_hand(self, kinds: Sequence[str], size_bytes: int) -> Guest | None:
        """The best lane that is there, large enough and in nobody's use; its user gives it to ``put_back``, or ends it.

        Those that have not been used for long, or whose server is gone, are closed.
        """
        here = self._here
        with here.lock:
            oldest_s = time.monotonic() - _IDLE_S
            over = [guest for since_s, guest in here.idle if since_s < oldest_s or not guest.is_usable]
            here.idle = [(since_s, guest) for since_s, guest in here.idle if guest not in over]
            fitting = [
                guest for _, guest in here.idle if guest.kind in kinds and guest.is_free and guest.holds(size_bytes)
            ]
            found = min(fitting, key=lambda guest: kinds.index(guest.kind), default=None)
            here.idle = [(since_s, guest) for since_s, guest in here.idle if guest is not found]
        for guest in over:
            guest.close()
        return found

    def are_worth_asking_for(self, size_bytes: int) -> bool:
        """Whether a call that has no lane should ask for one: a large one, and one that is not the first of late.

        What is not large gains less by its lane than asking takes, so that only several make up for it.
        """
        now_s = time.monotonic()
        is_first, self._wished_s = now_s - self._wished_s >= _IDLE_S, now_s
        return size_bytes > INLINE_BYTES or not is_first

    def asking(self, kinds: Sequence[str], size_bytes: int) -> Question[NegotiateLaneResponse]:
        """The call for a lane."""
        from quill.proto import LaneKind, NegotiateLaneRequest

        numbers = {"shm": LaneKind.LANE_KIND_SHARED_MEMORY, "socket": LaneKind.LANE_KIND_SOCKET}
        request = NegotiateLaneRequest(
            kinds=[numbers[kind] for kind in kinds], size_bytes=size_bytes, neighbourhood=neighbourhood()
        )
        return Question("NegotiateLane", request, lambda reply: reply)

    def opened(self, kinds: Sequence[str], reply: NegotiateLaneResponse, timeout_ms: int) -> Guest:
        """The lane that a server has granted. Waits for its connection.

        Raises:
            Unavailable: There is no way to it.
        """
        kind = "shm" if reply.HasField("shared_memory") else "socket"
        self.refused(kinds[: kinds.index(kind)] if kind in kinds else kinds)
        try:
            return self._shared(reply) if kind == "shm" else self._direct(reply, timeout_ms)
        except Unavailable:
            self.refused((kind,))
            raise

    def _shared(self, reply: NegotiateLaneResponse) -> SharedGuest:
        try:
            region = Region.attach(reply.shared_memory.name, reply.shared_memory.size_bytes)
        except InvalidUsage as error:
            raise Unavailable(f"no lane by shared memory: {error}") from None
        return SharedGuest(reply.handle, region)

    def _direct(self, reply: NegotiateLaneResponse, timeout_ms: int) -> DirectGuest:
        if not reply.HasField("socket"):
            raise Unavailable("the server opened a lane of a kind that is not known here")
        context = tls_context(self._tls) if self._address.tls else None
        connection = dial(self._address.host, reply.socket.port, reply.socket.token, context, timeout_ms / 1000)
        return DirectGuest(reply.handle, connection)

    def refused(self, kinds: Sequence[str]) -> None:
        """These cannot be had now: calls that leave the choice do not ask again soon."""
        for kind in kinds:
            self._refused_s[kind] = time.monotonic() + _REFUSED_S

    def put_back(self, guest: Guest) -> None:
        """A lane that is whole, for the next call."""
        here = self._here
        with here.lock:
            if not self._is_closed:
                here.idle.append((time.monotonic(), guest))
                return
        guest.close()

    @property
    def threads(self) -> ThreadPoolExecutor:
        """What carries elements over sockets while calls wait."""
        here = self._here
        with here.lock:
            if here.threads is None:
                here.threads = ThreadPoolExecutor(_MAX_CARRIED, "quill-lane")
            return here.threads

    def close(self) -> None:
        """End the lanes that no call uses."""
        here = self._here
        with here.lock:
            self._is_closed = True
            idle, here.idle = here.idle, []
            threads, here.threads = here.threads, None
        for _, guest in idle:
            guest.close()
        if threads is not None:
            threads.shutdown(wait=False)

    @property
    def _here(self) -> _Here:
        return self._by_process.setdefault(os.getpid(), _Here())
