"""A connection through a ChaosProxy: two sockets, and a pipe for each direction that does what the faults say."""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
import struct
from collections import deque
from collections.abc import Callable
from random import Random

from quill.testing.faults import Cut, Direction, Faults, Way

_READ_BYTES = 64 * 1024
_HELD_BYTES = 256 * 1024
"""What a pipe holds at most: while it does, the sender's own buffers fill, as with a slow network."""
_SLOW_STEPS_PER_S = 50
"""In how many pieces a second's worth of throttled bytes is passed on."""
_DRAIN_S = 2.0
"""How long a connection that was closed may take to hang up."""
_RESET = struct.pack("ii", 1, 0)


class Connection:
    """One client's connection and the one to the target that belongs to it.

    Args:
        index: Which connection of the proxy this is; the first is 0.
        client: The accepted socket.
        server: The socket to the target.
        seed: What chance begins with.
        faults: What to do, at any moment.
    """

    def __init__(
        self, index: int, client: socket.socket, server: socket.socket, seed: int, faults: Callable[[], Faults]
    ) -> None:
        self.index = index
        self.was_cut = False
        self._sockets = (client, server)
        self._faults = faults
        self.pipes: dict[Direction, Pipe] = {
            "up": Pipe(self, client, server, f"{seed}/{index}/up", lambda: faults().up),
            "down": Pipe(self, server, client, f"{seed}/{index}/down", lambda: faults().down),
        }
        self._changed = asyncio.Event()
        self._ended: asyncio.Future[Cut | None] = asyncio.get_running_loop().create_future()

    async def run(self) -> None:
        """Pass bytes on until both directions have ended or the connection is cut."""
        tasks = [asyncio.create_task(part) for pipe in self.pipes.values() for part in (pipe.read(), pipe.write())]
        whole = asyncio.create_task(self._end_after(tasks))
        try:
            await asyncio.wait([self._ended])
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait([whole, *tasks])
            try:
                if self._ended.done() and self._ended.result() == "fin":
                    await self._close_gently()
            finally:
                self._close(reset=self._ended.done() and self._ended.result() == "rst")

    def changed(self) -> None:
        """The faults have changed: whoever waits looks again."""
        self._changed.set()
        self._changed = asyncio.Event()

    def cut(self, how: Cut) -> bool:
        """End the connection now, with what is held lost; false where it had ended."""
        if self._ended.done():
            return False
        self.was_cut = True
        self._ended.set_result(how)
        if how == "rst":  # at once, so that whoever ordered it sees it done
            self._close(reset=True)
        return True

    def lost(self) -> None:
        """One of the peers has reset the connection, and the other is told."""
        if not self._ended.done():
            self._ended.set_result("rst")

    async def pause(self, seconds: float | None) -> None:
        """Wait, at most until the faults change."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._changed.wait()

    async def passable(self) -> None:
        """Wait until the network is no black hole."""
        while self._faults().black_hole:
            await self.pause(None)

    def cut_with(self) -> None:
        """Cut as the faults say."""
        self.cut(self._faults().cut_with)

    async def _end_after(self, tasks: list[asyncio.Task[None]]) -> None:
        await asyncio.wait(tasks)
        if not self._ended.done():
            self._ended.set_result(None)

    async def _close_gently(self) -> None:
        """Say the end to both peers, and throw away what they still send, which would become a reset."""
        for sock in self._sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_WR)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DRAIN_S):
                await asyncio.gather(*(_drain(sock) for sock in self._sockets))

    def _close(self, *, reset: bool) -> None:
        for sock in self._sockets:
            if sock.fileno() < 0:
                continue
            # A socket that somebody waits for may be closed only after the loop has forgotten it.
            for forget in (asyncio.get_running_loop().remove_reader, asyncio.get_running_loop().remove_writer):
                forget(sock)
            if reset:
                with contextlib.suppress(OSError):
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            sock.close()


class Pipe:
    """Bytes that go one way.

    Args:
        connection: Whose direction this is.
        source: Where they come from.
        sink: Where they go.
        seed: What chance begins with.
        way: What happens to them, at any moment.
    """

    def __init__(
        self, connection: Connection, source: socket.socket, sink: socket.socket, seed: str, way: Callable[[], Way]
    ) -> None:
        self.passed_bytes = 0
        self.flipped_bytes = 0
        self._connection = connection
        self._source = source
        self._sink = sink
        # One for each purpose: how often jitter is drawn depends on how the bytes come.
        self._jitter = Random(f"{seed}/jitter")
        self._cutting = Random(f"{seed}/cut")
        self._flipping = Random(f"{seed}/flip")
        self._way = way
        self._held: deque[tuple[float, float, bytes]] = deque()
        """(when it came, its share of the jitter, bytes); no bytes are the end."""
        self._held_bytes = 0
        self._moved = asyncio.Event()
        """Something was put in or taken out."""
        self._is_ended = False
        self._cuts: dict[tuple[int, int], int] = {}
        self._flip: tuple[float, float] = (0.0, math.inf)
        """A probability, and the next position that it strikes."""

    def end(self) -> bool:
        """Tell the sink that nothing more comes, and throw away what does; false where it knew."""
        if self._is_ended:
            return False
        self._is_ended = True
        with contextlib.suppress(OSError):
            self._sink.shutdown(socket.SHUT_WR)
        return True

    async def read(self) -> None:
        """Take what comes, as long as not too much is held."""
        loop = asyncio.get_running_loop()
        data = b"more"
        while data:
            await self._connection.passable()
            while self._held_bytes >= _HELD_BYTES:
                await self._move()
            try:
                data = await loop.sock_recv(self._source, _READ_BYTES)
            except OSError:
                await self._connection.passable()
                self._connection.lost()
                return
            self._held.append((loop.time(), self._jitter.random() if self._way().jitter_s else 0.0, data))
            self._held_bytes += len(data)
            self._moved.set()

    async def write(self) -> None:
        """Pass on what is held when its time has come."""
        while True:
            while not self._held:
                await self._move()
            came_s, share, data = self._held[0]
            await self._until_due(came_s, share)
            if not data:
                self.end()
                return
            try:
                await self._pass_on(self._flipped(data))
            except OSError:
                self._connection.lost()
                return
            self._held.popleft()
            self._held_bytes -= len(data)
            self._moved.set()

    async def _move(self) -> None:
        self._moved.clear()
        await self._moved.wait()

    async def _until_due(self, came_s: float, share: float) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._connection.passable()
            way = self._way()
            late_s = came_s + way.delay_s + share * way.jitter_s - loop.time()
            if late_s <= 0:
                return
            await self._connection.pause(late_s)

    async def _pass_on(self, data: bytes) -> None:
        """Pass bytes on in pieces: each is small enough for the faults of the moment.

        Raises:
            OSError: The sink has gone.
        """
        view = memoryview(data)
        while view and not self._is_ended:
            await self._connection.passable()
            way = self._way()
            size = self._until_cut(way, len(view))
            if size == 0:
                self._connection.cut_with()
                await asyncio.Event().wait()  # until the connection ends this task
            if way.bytes_per_s is not None:
                size = min(size, max(1, int(way.bytes_per_s / _SLOW_STEPS_PER_S)))
            sent = await self._send(view[:size])
            self.passed_bytes += sent
            view = view[sent:]
            if self._until_cut(way, 1) == 0:
                self._connection.cut_with()
            if way.bytes_per_s is not None:
                await self._connection.pause(sent / way.bytes_per_s)

    def _until_cut(self, way: Way, size: int) -> int:
        """How many of so many bytes may still pass."""
        if (between := way.cut_range) is None:
            return size
        if between not in self._cuts:
            self._cuts[between] = self._cutting.randint(*between)
        return max(0, min(size, self._cuts[between] - self.passed_bytes))

    def _flipped(self, data: bytes) -> bytes:
        """What comes next, with those bytes changed that are to be."""
        way = self._way()
        begin, end = self.passed_bytes, self.passed_bytes + len(data)
        if way.flip_probability != self._flip[0]:
            self._flip = (way.flip_probability, begin + self._gap(way.flip_probability))
        struck = {}
        while self._flip[1] < end:
            struck[int(self._flip[1])] = self._flipping.randint(1, 255)
            self._flip = (way.flip_probability, self._flip[1] + 1 + self._gap(way.flip_probability))
        if way.flip_at is not None and begin <= way.flip_at < end:
            struck.setdefault(way.flip_at, 1)
        if not struck:
            return data
        changed = bytearray(data)
        for position, mask in struck.items():
            changed[position - begin] ^= mask
        self.flipped_bytes += len(struck)
        return bytes(changed)

    def _gap(self, probability: float) -> float:
        """How many bytes are spared before the next one is struck: geometrically distributed."""
        if probability <= 0:
            return math.inf
        if probability >= 1:
            return 0
        return math.floor(math.log(1.0 - self._flipping.random()) / math.log1p(-probability))

    async def _send(self, view: memoryview) -> int:
        loop = asyncio.get_running_loop()
        while True:
            try:
                return self._sink.send(view)
            except BlockingIOError:
                pass
            ready = loop.create_future()
            loop.add_writer(self._sink, _wake, ready)
            try:
                await ready
            finally:
                if self._sink.fileno() >= 0:
                    loop.remove_writer(self._sink)


def _wake(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


async def _drain(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while await asyncio.get_running_loop().sock_recv(sock, _READ_BYTES):
            pass
