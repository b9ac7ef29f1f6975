"""The lanes that a server has granted: to whom, how many, how large, and until when."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from quill.errors import InvalidArgument, ResourceExhausted, Unavailable, Unimplemented
from quill.lanes.dialing import HANDSHAKE_S, Listener, MakeTls
from quill.lanes.direct import DirectHost
from quill.lanes.lane import LANE_KEY, LOST
from quill.lanes.rooms import rooms
from quill.lanes.shared import SharedHost, region_bytes
from quill.lanes.shm import Region, neighbourhood, remove_left
from quill.proto import LaneKind, NegotiateLaneRequest, NegotiateLaneResponse, SharedMemoryLane, SocketLane

if TYPE_CHECKING:
    from quill.lanes.pool import ReceivePool
    from quill.lanes.socket import Connection
    from quill.limits import Limits
    from quill.principal import Principal

_IDLE_S = 300.0
"""How long a lane is kept that nobody uses."""
_MAX_KINDS = 16
"""How many a caller may ask for: more than there are."""


@dataclass(eq=False, slots=True)
class Grant:
    """One lane, and whose it is."""

    principal: Principal
    size_bytes: int
    """The memory that is shared by it."""
    handle: str = field(default_factory=lambda: secrets.token_hex(16))
    host: SharedHost | DirectHost | None = None
    """The server's end; None for as long as nobody has connected."""
    since_s: float = field(default_factory=time.monotonic)
    """When it was granted, or used last, on the monotonic clock."""
    is_taken: bool = False
    """Whether a call uses it now."""

    @property
    def is_over(self) -> bool:
        """Whether nobody will use it: its caller has never come, is gone, or has not used it for long."""
        idle_s = time.monotonic() - self.since_s
        if self.is_taken:
            return False
        if self.host is None:
            return idle_s > HANDSHAKE_S
        return idle_s > _IDLE_S or self.host.is_left(idle_s)


class GrantedLanes:
    """All lanes of one servicer. Threads may share it.

    Args:
        limits: How many there may be, and how large.
        pool: Where inputs go that come by sockets.
        socket_host: The address on which connections are listened for; None for no socket lanes.
        tls: What these are encrypted with.
    """

    def __init__(self, limits: Limits, pool: ReceivePool, *, socket_host: str | None, tls: MakeTls | None) -> None:
        self._limits = limits
        self._pool = pool
        self._socket_host = socket_host
        self._tls = tls
        self._neighbourhood = neighbourhood()
        self._grants: dict[str, Grant] = {}
        self._listener: Listener | None = None
        self._listening = threading.Lock()
        """Held while the listener is made, which looks up a name; the other is wanted on event loops."""
        self._lock = threading.Lock()
        self._is_closed = False
        remove_left()

    def __len__(self) -> int:
        return len(self._grants)

    def negotiate(self, request: NegotiateLaneRequest, principal: Principal) -> NegotiateLaneResponse:
        """Grant the first lane of those asked for that can be had. Memory is allocated, which may take a while.

        Raises:
            InvalidArgument: So many are asked for that some are the same.
            ResourceExhausted: There are too many, or no memory.
            Unimplemented: The server has none of them.
            Unavailable: The server stops.
        """
        if len(request.kinds) > _MAX_KINDS:
            raise InvalidArgument(f"{len(request.kinds)} kinds of lanes are asked for, at most {_MAX_KINDS} may be")
        self.sweep()
        remove_left()
        exhausted: ResourceExhausted | None = None
        for kind in request.kinds:
            try:
                if kind == LaneKind.LANE_KIND_SHARED_MEMORY and request.neighbourhood == self._neighbourhood != "":
                    return self._share(request.size_bytes, principal)
                if kind == LaneKind.LANE_KIND_SOCKET and self._socket_host is not None:
                    return self._listen(self._socket_host, principal)
            except ResourceExhausted as error:
                exhausted = error
        raise exhausted or Unimplemented("this server has none of the lanes asked for; send chunks")

    @contextmanager
    def taken(self, handle: str, principal: Principal) -> Iterator[tuple[Grant, SharedHost | DirectHost]]:
        """The lane of a call, and the server's end of it, for that call alone. One that fails ends it.

        Raises:
            InvalidArgument: There is none of that handle for this caller, nobody is connected, or another call has it.
                Its trailers say that the lane is lost, and that no model was run.
        """
        with self._lock:
            grant = self._grants.get(handle)
            if grant is None or grant.principal != principal:
                own = sum(one.principal == principal for one in self._grants.values())
                raise lost(f"there is no lane {handle[:100]!r} for {principal.name}, which has {own}")
            if grant.is_taken:
                raise lost(f"lane {handle} is in use by another call; a lane serves one at a time")
            host = grant.host
            if host is None:
                raise lost(f"lane {handle} was granted, and nobody has connected")
            grant.is_taken = True
        try:
            _check_usable(handle, host)
            yield grant, host
        except BaseException:
            self.drop(grant)
            raise
        finally:
            grant.size_bytes = host.size_bytes
            grant.since_s = time.monotonic()
            grant.is_taken = False

    def drop(self, grant: Grant) -> None:
        """End a lane, and wake who waits for it."""
        with self._lock:
            self._grants.pop(grant.handle, None)
        if grant.host is not None:
            grant.host.close()

    def sweep(self) -> None:
        """End the lanes that nobody will use."""
        with self._lock:  # or a call could take one meanwhile
            over = [grant for grant in self._grants.values() if grant.is_over]
            for grant in over:
                del self._grants[grant.handle]
        for grant in over:
            self.drop(grant)

    def close(self) -> None:
        """End all lanes, and listen no more."""
        with self._lock:
            self._is_closed = True
        with self._listening:
            listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()
        for grant in list(self._grants.values()):
            self.drop(grant)

    def _share(self, wanted_bytes: int, principal: Principal) -> NegotiateLaneResponse:
        size_bytes = region_bytes(wanted_bytes)
        grant = self._reserve(principal, size_bytes)
        try:
            region = Region.create(size_bytes)
        except BaseException:
            self.drop(grant)
            raise
        grant.host = SharedHost(region, partial(self._grow, grant))
        return NegotiateLaneResponse(
            handle=grant.handle, shared_memory=SharedMemoryLane(name=region.name, size_bytes=size_bytes)
        )

    def _grow(self, grant: Grant, size_bytes: int) -> Region:
        """A larger region for a lane."""
        with self._lock:
            self._check(grant.principal, size_bytes)
            grant.size_bytes += size_bytes  # the smaller one lives for as long as the call views it
        try:
            return Region.create(size_bytes)
        except BaseException:
            grant.size_bytes -= size_bytes
            raise

    def _listen(self, socket_host: str, principal: Principal) -> NegotiateLaneResponse:
        grant = self._reserve(principal, 0)
        try:
            with self._listening:
                self._check_open()
                if self._listener is None:
                    self._listener = Listener(socket_host, self._tls)
                listener = self._listener
            token = listener.token(partial(self._connected, grant))
        except BaseException:
            self.drop(grant)
            raise
        return NegotiateLaneResponse(handle=grant.handle, socket=SocketLane(port=listener.port, token=token))

    def _connected(self, grant: Grant, connection: Connection) -> None:
        """The client has shown the token of a lane."""
        host = DirectHost(connection, lambda spans: rooms([span.meta for span in spans], self._pool))
        with self._lock:
            is_there = grant.handle in self._grants and not self._is_closed
            if is_there:
                grant.host = host
        if not is_there:
            connection.close()

    def _reserve(self, principal: Principal, size_bytes: int) -> Grant:
        with self._lock:
            self._check_open()
            self._check(principal, size_bytes, lanes=1)
            grant = Grant(principal, size_bytes)
            self._grants[grant.handle] = grant
            return grant

    def _check_open(self) -> None:
        if self._is_closed:
            raise Unavailable("the server stops, and opens no lane")

    def _check(self, principal: Principal, size_bytes: int, lanes: int = 0) -> None:
        """Make sure that there may be so much more."""
        limits = self._limits
        everybodys = list(self._grants.values())
        own = [grant for grant in everybodys if grant.principal == principal]
        own_most = limits.max_lanes_per_principal, limits.max_lane_bytes_per_principal
        for grants, whose, bound, (most_lanes, most_bytes) in (
            (own, principal.name, "_per_principal", own_most),
            (everybodys, "all callers together", "", (limits.max_lanes, limits.max_lane_bytes)),
        ):
            count, shared_bytes = len(grants) + lanes, sum(grant.size_bytes for grant in grants) + size_bytes
            if count > most_lanes:
                raise ResourceExhausted(f"{whose} would have {count} lanes and max_lanes{bound} is {most_lanes}")
            if shared_bytes > most_bytes:
                raise ResourceExhausted(
                    f"{whose} would share {shared_bytes} bytes and max_lane_bytes{bound} is {most_bytes}"
                )


def _check_usable(handle: str, host: SharedHost | DirectHost) -> None:
    if not host.is_usable:
        raise lost(f"lane {handle} is not usable: its other end is gone, or a model keeps what it brought")


def lost(message: str) -> InvalidArgument:
    """For a call whose lane does not bring its inputs: no model was run, so they may be sent again by another."""
    return InvalidArgument(message, trailers=((LANE_KEY, LOST),))
