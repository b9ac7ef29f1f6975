"""The cells of the table, and the servers behind them."""

import asyncio
import contextlib
import os
import threading
import time
from dataclasses import dataclass

from protocol_table.callers import AsyncCaller, SyncCaller
from protocol_table.service import Deny, Service
from quill.server.server import Server
from support import probe

LIMIT_S = 20
"""How long anything may take."""


@dataclass(frozen=True)
class Cell:
    """A protocol, how it is carried, and the client that speaks it."""

    protocol: str
    carrier: str
    style: str

    @property
    def name(self):
        """As it stands in the table: grpc-sync, grpc-web-h2c-async, connect-sync."""
        carrier = ["h2c"] if self.carrier == "h2c" else []
        return "-".join([self.protocol, *carrier, self.style])

    @property
    def options(self):
        """What a client of this cell is made with."""
        own = {} if self.protocol == "grpc" else {"protocol": self.protocol}
        return {**own, "http2": True} if self.carrier == "h2c" else own


CARRIED = (("grpc", "grpc"), ("grpc-web", "http1"), ("grpc-web", "h2c"), ("connect", "http1"), ("connect", "h2c"))
CELLS = {cell.name: cell for carried in CARRIED for style in ("sync", "async") for cell in [Cell(*carried, style)]}


class Host:
    """A server on a loop of its own, in a thread: the callers under test block their own thread."""

    def __init__(self, *, http2):
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        self.run(self._start(http2))

    async def _start(self, http2):
        self.service = Service()
        self.server = Server("127.0.0.1:0", "127.0.0.1:0", interceptors=[Deny()], compression=True, http2=http2)
        kinds = ("unary", "stream", "collect", "chat", "turns")
        probe.register(self.server, **{kind: getattr(self.service, kind) for kind in kinds})
        await self.server.start()

    def run(self, coroutine):
        """Run on the host's loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(LIMIT_S)

    def until(self, condition):
        """Wait until something is so."""
        deadline = time.monotonic() + LIMIT_S
        while not condition():
            assert time.monotonic() < deadline, "it did not happen in time"
            time.sleep(0.002)

    def counts(self):
        """What this process and the host's loop have open."""

        async def tasks():
            return len(asyncio.all_tasks())

        return {
            "tasks": self.run(tasks()),
            "threads": threading.active_count(),
            "descriptors": len(os.listdir("/proc/self/fd")),
        }

    def close(self):
        """Stop the server and its loop."""
        self.run(self.server.stop(0))
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(LIMIT_S)
        self.loop.close()


class Row:
    """What a case is given: a cell, its server, and clients that are closed when the case is over."""

    def __init__(self, cell, host, stack):
        self.cell = cell
        self.host = host
        self.service = host.service
        self._live = host.service.live
        self._stack = stack
        self.caller = self.another()

    @property
    def url(self):
        """Where the cell's calls go."""
        server = self.host.server
        return f"grpc://{server.grpc_address}" if self.cell.protocol == "grpc" else server.http_url

    def another(self, url=None, **options):
        """A further client of the same cell."""
        caller = {"sync": SyncCaller, "async": AsyncCaller}[self.cell.style]
        made = caller(url or self.url, **self.cell.options, **options)
        self._stack.callback(made.close)
        return made

    def through_relay(self, **options):
        """A further client of the same cell whose bytes are counted."""
        relay = Relay(self.host, int(self.url.rpartition(":")[2]))
        self._stack.callback(relay.close)
        scheme = self.url.partition(":")[0]
        return self.another(f"{scheme}://127.0.0.1:{relay.port}", **options), relay

    def idle(self):
        """Wait until no handler of this row runs; one that an earlier row has lost is that row's failure."""
        self.host.until(lambda: self.service.live <= self._live)


class Relay:
    """A TCP relay that counts."""

    def __init__(self, host, target):
        self._host = host
        self._target = target
        self._tasks = set()
        self.up_bytes = self.down_bytes = 0
        self._server = host.run(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.port = self._server.sockets[0].getsockname()[1]

    async def _serve(self, reader, writer):
        self._tasks.add(asyncio.current_task())
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
        # The end of the case cancels what still runs: asyncio's streams would log it.
        with contextlib.suppress(ConnectionError, asyncio.CancelledError):
            await asyncio.gather(
                self._move(reader, far_writer, "up_bytes"), self._move(far_reader, writer, "down_bytes")
            )
        for end in (writer, far_writer):
            end.transport.abort()

    async def _move(self, reader, writer, count):
        while data := await reader.read(65536):
            setattr(self, count, getattr(self, count) + len(data))
            writer.write(data)
            await writer.drain()
        writer.close()

    def close(self):
        """Drop all connections."""

        async def stop():
            self._server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

        self._host.run(stop())
