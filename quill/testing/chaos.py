"""ChaosProxy: a TCP or Unix proxy in front of a server that makes its network bad."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import re
import socket
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from quill.errors import InvalidUsage
from quill.testing.faults import Counts, Cut, Direction, Faults
from quill.testing.pipes import Connection

T = TypeVar("T")

_BACKLOG = 1024
_CONNECT_S = 10.0
_ANSWER_S = 20.0
"""How long the proxy's own thread may take for anything."""
_TARGET = re.compile(r"(?P<scheme>[a-z0-9+]+://)?(?P<host>\[[^]]+]|[^:/@]+):(?P<port>\d+)/?")
_UNIX_TARGET = re.compile(r"(?P<scheme>(?:[a-z]+\+)?unix:(?://)?)(?P<path>/.+)")


class ChaosProxy:
    """Stands between clients and a server, passes bytes on, and does to them what a bad network does.

        with ChaosProxy(server.http_url) as proxy, quill.QuillClient(proxy.url) as client:
            proxy.set(down=Way(delay_s=0.05, jitter_s=0.02))
            ...
            proxy.cut()

    It runs in a thread of its own: `async with` does the same, and every method may be called from any thread and
    from any event loop. A switch that has been set counts for all bytes that have not been passed on yet. It works
    below TLS and below every protocol. What is drawn (positions of cuts and of changed bytes) depends on the seed and
    on the number of the connection alone, and not on time; jitter depends on how the bytes come in pieces, too.

    The kernel of the proxy's machine acknowledges what it receives, also in a black hole: probes of TCP itself
    (keepalive, TCP_USER_TIMEOUT) find both peers alive; those of HTTP/2 and every deadline see the silence.

    Args:
        target: Where to: HOST:PORT, ``unix:PATH``, or a URL as a client takes it.
        seed: What chance begins with.
        faults: What it does from the start.
        per_connection: What it does to single connections instead: called with the number of each new connection, it
            gives the faults that this one keeps, or None. Runs in the proxy's thread and must not block. ``refuse`` is
            for the proxy as a whole.

    Raises:
        InvalidUsage: The target is none.
    """

    def __init__(
        self,
        target: str,
        *,
        seed: int = 0,
        faults: Faults | None = None,
        per_connection: Callable[[int], Faults | None] | None = None,
    ) -> None:
        self._scheme, self._target = _parse(target)
        self._seed = seed
        self._faults = faults or Faults()
        self._per_connection = per_connection
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._address: Any = None
        self._placeholder: socket.socket | None = None
        self._listener: socket.socket | None = None
        self._healed = asyncio.Event()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._accepted = 0
        self._live: dict[asyncio.Task[None], Connection | None] = {}
        self._past = Counts()

    @property
    def url(self) -> str:
        """What clients take in place of the target: the same scheme, and this proxy's address."""
        return f"{self._scheme}{self.address}"

    @property
    def address(self) -> str:
        """HOST:PORT of this proxy, or the path of its Unix socket."""
        if self._address is None:
            raise InvalidUsage("the proxy is not started: use it in a with block, or call start()")
        return self._address if isinstance(self._address, str) else f"{self._address[0]}:{self._address[1]}"

    @property
    def faults(self) -> Faults:
        """What it does now."""
        return self._faults

    def set(self, **changes: Any) -> None:
        """Change some of the `Faults`; they count when this returns.

        Args:
            changes: Fields of `Faults`, as ``black_hole=True`` or ``down=Way(bytes_per_s=1000)``.

        Raises:
            TypeError: There is no such field.
        """
        faults = dataclasses.replace(self._faults, **changes)
        self._run(lambda: self._change(faults))

    def heal(self) -> None:
        """Do nothing more: what is held goes on, what is cut stays so."""
        self._run(lambda: self._change(Faults()))

    def cut(self, how: Cut = "rst", *, connection: int | None = None) -> int:
        """Cut connections now. A Unix socket knows no reset: its peers read the end.

        Args:
            how: ``rst``: reset, what is held is lost; ``fin``: closed in order.
            connection: The number of one connection; None for all that are open.

        Returns:
            How many were cut.
        """
        return self._run(lambda: sum(one.cut(how) for one in self._connections(connection)))

    def half_close(self, direction: Direction, *, connection: int | None = None) -> int:
        """End one direction of connections: its receiver reads the end, the other direction goes on.

        Returns:
            In how many connections it had not ended before.
        """
        return self._run(lambda: self._half_close(direction, connection))

    @property
    def counts(self) -> Counts:
        """What it has done so far."""
        return self._run(self._count) if self._loop is not None else self._past

    def start(self) -> Self:
        """Listen, in a thread of its own.

        Raises:
            InvalidUsage: It was started before.
        """
        if self._thread is not None:
            raise InvalidUsage("the proxy was started before; make a new one")
        started: Future[asyncio.AbstractEventLoop] = Future()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve(started)), name="chaos-proxy", daemon=True
        )
        self._thread.start()
        self._loop = started.result(_ANSWER_S)
        return self

    def close(self) -> None:
        """Cut what is open and end the thread. May be called again."""
        if (loop := self._loop) is None or self._thread is None:
            return
        self._loop = None
        loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(_ANSWER_S)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return await asyncio.to_thread(self.start)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.close)

    def _run(self, do: Callable[[], T]) -> T:
        """Do something in the proxy's thread."""
        if self._loop is None:
            raise InvalidUsage("the proxy does not run: use it in a with block, or call start()")
        done: Future[T] = Future()

        def call() -> None:
            try:
                done.set_result(do())
            except BaseException as error:  # noqa: BLE001  # it is raised where it was called
                done.set_exception(error)

        self._loop.call_soon_threadsafe(call)
        return done.result(_ANSWER_S)

    # What follows runs in the proxy's thread.

    async def _serve(self, started: Future[asyncio.AbstractEventLoop]) -> None:
        try:
            self._reserve()
            self._change(self._faults)
        except BaseException as error:  # noqa: BLE001  # it is raised by start()
            started.set_exception(error)
            return
        started.set_result(asyncio.get_running_loop())
        try:
            await self._stop.wait()
        finally:
            self._refuse()
            for task in (live := list(self._live)):
                task.cancel()
            await asyncio.gather(*live, return_exceptions=True)
            await asyncio.sleep(0)  # for what counts the connections that have just ended
            self._past = self._count()
            if self._placeholder is not None:
                self._placeholder.close()
            if self._folder is not None:
                self._folder.cleanup()

    def _reserve(self) -> None:
        """Take an address, and keep it while connections are refused."""
        if isinstance(self._target, str):
            self._folder = tempfile.TemporaryDirectory(prefix="chaos-")
            self._address = str(Path(self._folder.name) / "socket")
            return
        self._placeholder = socket.socket(socket.AF_INET)
        self._placeholder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._placeholder.bind(("127.0.0.1", 0))
        self._address = self._placeholder.getsockname()

    def _half_close(self, direction: Direction, index: int | None) -> int:
        ended = sum(one.pipes[direction].end() for one in self._connections(index))
        self._past = dataclasses.replace(self._past, half_closes=self._past.half_closes + ended)
        return ended

    def _change(self, faults: Faults) -> None:
        self._faults = faults
        if faults.refuse:
            self._refuse()
        elif self._listener is None:
            self._listen()
        self._healed.set()
        self._healed = asyncio.Event()
        for connection in self._connections(None):
            connection.changed()

    def _listen(self) -> None:
        if isinstance(self._address, str):
            Path(self._address).unlink(missing_ok=True)
            self._listener = socket.socket(socket.AF_UNIX)
        else:
            self._listener = socket.socket(socket.AF_INET)
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.setblocking(False)
        self._listener.bind(self._address)
        self._listener.listen(_BACKLOG)
        asyncio.get_running_loop().add_reader(self._listener, self._accept, self._listener)

    def _refuse(self) -> None:
        """Close the listener; the address stays taken, and clients that were let in already stay so."""
        if self._listener is None:
            return
        asyncio.get_running_loop().remove_reader(self._listener)
        self._accept(self._listener)
        self._listener.close()
        self._listener = None

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):  # nobody waits any more, or this process may open no more
            while True:
                client, _ = listener.accept()
                client.setblocking(False)
                task = asyncio.create_task(self._relay(self._accepted, client))
                self._accepted += 1
                self._live[task] = None
                task.add_done_callback(self._over)

    async def _relay(self, index: int, client: socket.socket) -> None:
        own = self._per_connection(index) if self._per_connection is not None else None
        with contextlib.closing(client):
            while own is None and self._faults.black_hole:
                await self._healed.wait()
            server = await self._connect()
            if server is None:
                self._past = dataclasses.replace(self._past, unreachable=self._past.unreachable + 1)
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                return
            with contextlib.closing(server):
                _send_at_once(client, server)
                connection = Connection(index, client, server, self._seed, lambda: own or self._faults)
                task = asyncio.current_task()
                assert task is not None  # noqa: S101 - it runs in one
                self._live[task] = connection
                await connection.run()

    async def _connect(self) -> socket.socket | None:
        """A connection to the target; None where there is none to be had."""
        family = socket.AF_UNIX if isinstance(self._target, str) else socket.AF_UNSPEC
        loop = asyncio.get_running_loop()
        server = None
        try:
            async with asyncio.timeout(_CONNECT_S):
                address: Any = self._target
                if family != socket.AF_UNIX:
                    found = await loop.getaddrinfo(*self._target, type=socket.SOCK_STREAM)
                    family, address = found[0][0], found[0][4]
                server = socket.socket(family, socket.SOCK_STREAM)
                server.setblocking(False)
                await loop.sock_connect(server, address)
        except (OSError, TimeoutError):
            if server is not None:
                server.close()
            return None
        return server

    def _connections(self, index: int | None) -> list[Connection]:
        return [one for one in self._live.values() if one is not None and index in {None, one.index}]

    def _over(self, task: asyncio.Task[None]) -> None:
        connection = self._live.pop(task)
        if connection is not None:
            self._past = _with(self._past, connection)
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error  # a bug of the proxy's, which the loop logs

    def _count(self) -> Counts:
        counts = self._past
        for connection in self._connections(None):
            counts = _with(counts, connection)
        return dataclasses.replace(counts, connections=self._accepted, live=len(self._live))


def _with(counts: Counts, connection: Connection) -> Counts:
    up, down = connection.pipes["up"], connection.pipes["down"]
    return dataclasses.replace(
        counts,
        cuts=counts.cuts + connection.was_cut,
        flipped_bytes=counts.flipped_bytes + up.flipped_bytes + down.flipped_bytes,
        up_bytes=counts.up_bytes + up.passed_bytes,
        down_bytes=counts.down_bytes + down.passed_bytes,
    )


def _send_at_once(*sockets: socket.socket) -> None:
    for sock in sockets:
        sock.setblocking(False)
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _parse(target: str) -> tuple[str, tuple[str, int] | str]:
    """The scheme of clients' URLs, and (host, port) or a path."""
    if (match := _UNIX_TARGET.fullmatch(target)) is not None:
        return match["scheme"], match["path"]
    if (match := _TARGET.fullmatch(target)) is None:
        raise InvalidUsage(f"{target!r} is no target: it takes HOST:PORT, unix:/PATH or a URL with a port")
    return match["scheme"] or "", (match["host"].strip("[]"), int(match["port"]))
