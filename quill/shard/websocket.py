"""One generation over one WebSocket of a sidecar: no proxy, no redirects, no compression.

websockets loads on first use.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from functools import cache
from typing import TYPE_CHECKING

from quill.errors import Internal, ResourceExhausted, Unavailable
from quill.shard import faults
from quill.shard.faults import Failed
from quill.shard.live import Live
from quill.shard.messages import Item, Malformed, parse_frame
from quill.shard.state import TERMINAL

if TYPE_CHECKING:
    from websockets.asyncio.client import ClientConnection
    from websockets.exceptions import ConnectionClosed

    from quill.shard.config import SidecarConfig
    from quill.shard.knowledge import Stats

_PING_INTERVAL_S = 20.0
_CLOSE_TIMEOUT_S = 1.0
_TOLERATED = 2
_FRAMES_AT_A_TIME = 64
_NOT_FOUND = 404
_TOO_BIG = 1009
_NO_PONG = 1011


class NoWebSocket(Exception):  # noqa: N818 - what the sidecar said
    """The sidecar has no WebSocket: the upgrade was answered with 404. Nothing was submitted."""


async def connect(config: SidecarConfig) -> ClientConnection:
    """Open a WebSocket.

    Raises:
        NoWebSocket: The sidecar has none.
        Failed: It cannot be opened. Nothing was submitted; ``again`` says whether another attempt may go better.
    """
    from websockets.asyncio import client
    from websockets.exceptions import InvalidStatus, WebSocketException

    class Direct(client.connect):
        def process_redirect(self, exc: Exception) -> Exception | str:
            return exc

    class Bounded(client.ClientConnection):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.transport.get_write_buffer_size() > config.max_body_bytes:
                self.transport.abort()  # it pings, and does not read what is answered

    place = f"the WebSocket of {config.place}"
    try:
        return await Direct(
            config.generate_url,
            compression=None,
            proxy=None,
            open_timeout=config.request_timeout_s,
            ping_interval=_PING_INTERVAL_S,
            ping_timeout=_PING_INTERVAL_S,
            close_timeout=_CLOSE_TIMEOUT_S,
            max_size=config.max_body_bytes,
            user_agent_header="quill",
            logger=_silent(),
            create_connection=Bounded,
        )
    except InvalidStatus as error:
        response = error.response
        if response.status_code == _NOT_FOUND:
            raise NoWebSocket from None
        refusal = faults.status(
            place, response.status_code, bytes(response.body or b""), response.headers.get("retry-after")
        )
        raise Failed(refusal, sent=True) from None
    except WebSocketException as error:
        if isinstance(error.__cause__, EOFError | OSError):
            raise Failed(Unavailable(f"{place} hung up before it opened"), sent=False, again=True) from None
        text = f"{place} did not answer with a valid WebSocket handshake"
        raise Failed(faults.SidecarProtocolError(text), sent=True) from None
    except TimeoutError:
        text = f"{place} did not open within {config.request_timeout_s:g} s"
        raise Failed(Unavailable(text), sent=True) from None
    except OSError as error:
        raise Failed(
            Unavailable(f"cannot reach {config.place}: {faults.reason(error)}"), sent=False, again=True
        ) from None


def abort(socket: ClientConnection) -> None:
    """Drop a WebSocket without a word."""
    socket.transport.abort()


class Stream:
    """One generation over an open WebSocket.

    Args:
        socket: The WebSocket; ``run`` closes it.
        live: The generation.
        config: The bounds.
        stats: What is counted.
    """

    def __init__(self, socket: ClientConnection, live: Live, config: SidecarConfig, stats: Stats) -> None:
        self._socket = socket
        self._live = live
        self._config = config
        self._stats = stats
        self._closing = False

    async def run(self, message: bytes) -> None:
        """Submit the generation, give it the frames that come, and close the WebSocket."""
        from websockets.exceptions import ConnectionClosed

        live = self._live
        try:
            await self._socket.send(message.decode(), text=True)
            live.accepted()
            await self._receive()
        except ConnectionClosed as closed:
            _closed(closed, live, self._config)
        except Exception as error:  # noqa: BLE001 - whatever it is, the one who waits must learn that nothing will come
            live.fail(Internal(f"the WebSocket of {self._config.place} failed inside ({type(error).__name__})"))
        finally:
            self._closing = True
            try:
                await self._socket.close()
            finally:
                abort(self._socket)  # of no effect where it was closed in order

    async def stop(self, running: asyncio.Task[None]) -> None:
        """Nobody waits for frames any more: close the WebSocket, by force where that takes too long."""
        if not self._closing:
            running.cancel()
        try:
            await asyncio.wait([running], timeout=2 * _CLOSE_TIMEOUT_S)
        finally:
            running.cancel()

    async def _receive(self) -> None:
        live, malformed = self._live, 0
        for number in itertools.count(1):
            if live.state in TERMINAL:
                return
            if not number % _FRAMES_AT_A_TIME:
                await asyncio.sleep(0)  # recv does not wait while frames are there, and others want their turn
            frame = await self._socket.recv()
            try:
                item = parse_frame(frame)
            except Malformed as wrong:
                self._stats.malformed += 1
                malformed += 1
                live.lost_reply("a frame of the sidecar could not be read")
                if malformed > _TOLERATED:
                    text = f"the WebSocket of {self._config.place} gave {malformed} bad frames in a row"
                    live.fail(faults.SidecarProtocolError(f"{text}; the last: {wrong}"))
                continue
            malformed = 0
            _give(live, item, self._stats)


def _give(live: Live, item: Item, stats: Stats) -> None:
    if item.request_id not in {None, live.request_id}:
        stats.foreign += 1
        return
    duplicates = live.duplicates
    live.take(item)
    stats.duplicates += live.duplicates - duplicates


def _closed(closed: ConnectionClosed, live: Live, config: SidecarConfig) -> None:
    """The connection is gone, by the sidecar or by a rule on this side."""
    code = closed.sent.code if closed.sent is not None and not closed.rcvd_then_sent else None
    if code == _TOO_BIG:
        live.fail(
            ResourceExhausted(
                f"a message on the WebSocket of {config.place} has more than max_body_bytes, {config.max_body_bytes}"
            )
        )
    elif code == _NO_PONG:
        live.fail(Unavailable(f"{config.place} did not answer a ping within {_PING_INTERVAL_S:g} s"))
    else:
        live.closed()


@cache
def _silent() -> logging.Logger:
    """The library logs tracebacks of what ends here as an error with a status."""
    logger = logging.getLogger("quill.shard.websocket")
    logger.propagate = False
    logger.addHandler(logging.NullHandler())
    return logger
