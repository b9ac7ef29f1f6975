"""One generation over one WebSocket of a sidecar: no proxy, no redirects, no compression.

websockets loads on first use.
"""

from __future__ import annotations

import logging
from functools import cache
from typing import TYPE_CHECKING

from quill.errors import Internal, ResourceExhausted, RpcError, Unavailable
from quill.shard import faults
from quill.shard.http import Failed, reason
from quill.shard.messages import Item, Malformed, parse_frame
from quill.shard.state import TERMINAL, Live

if TYPE_CHECKING:
    from websockets.asyncio.client import ClientConnection
    from websockets.exceptions import ConnectionClosed

    from quill.shard.config import SidecarConfig
    from quill.shard.knowledge import Stats

_PING_INTERVAL_S = 20.0
_CLOSE_TIMEOUT_S = 1.0
_TOLERATED = 2
_NOT_FOUND = 404
_TOO_BIG = 1009
_NO_PONG = 1011


class NoWebSocket(Exception):  # noqa: N818 - what the sidecar said
    """The sidecar has no WebSocket: the upgrade was answered with 404. Nothing was submitted."""


async def connect(config: SidecarConfig) -> ClientConnection:
    """Open a WebSocket.

    Raises:
        NoWebSocket: The sidecar has none.
        Failed: It cannot be opened. Nothing was submitted.
    """
    from websockets.asyncio import client
    from websockets.exceptions import InvalidStatus, WebSocketException

    class Direct(client.connect):
        def process_redirect(self, exc: Exception) -> Exception | str:
            return exc

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
        )
    except InvalidStatus as error:
        response = error.response
        if response.status_code == _NOT_FOUND:
            raise NoWebSocket from None
        refusal = faults.status(
            place, response.status_code, bytes(response.body or b""), response.headers.get("retry-after")
        )
        raise Failed(refusal, sent=True) from None
    except WebSocketException:
        text = f"{place} did not answer with a valid WebSocket handshake"
        raise Failed(faults.SidecarProtocolError(text), sent=True) from None
    except TimeoutError:
        text = f"{place} did not open within {config.request_timeout_s:g} s"
        raise Failed(Unavailable(text), sent=True) from None
    except EOFError:
        raise Failed(Unavailable(f"{place} hung up before it opened"), sent=True) from None
    except OSError as error:
        raise Failed(Unavailable(f"cannot reach {config.place}: {reason(error)}"), sent=False, again=True) from None


def abort(socket: ClientConnection) -> None:
    """Drop a WebSocket on which nothing was submitted."""
    socket.transport.abort()


async def receive(socket: ClientConnection, message: bytes, live: Live, config: SidecarConfig, stats: Stats) -> None:
    """Submit a generation and give it the frames that come. In the end, or when cancelled, the WebSocket is closed."""
    from websockets.exceptions import ConnectionClosed

    malformed = 0
    try:
        await socket.send(message.decode(), text=True)
        live.accepted()
        while live.state not in TERMINAL:
            frame = await socket.recv()
            try:
                item = parse_frame(frame)
            except Malformed as wrong:
                stats.malformed += 1
                malformed += 1
                live.lost_reply("a frame of the sidecar could not be read")
                if malformed > _TOLERATED:
                    text = f"the WebSocket of {config.place} gave {malformed} bad frames in a row; the last: {wrong}"
                    live.fail(faults.SidecarProtocolError(text))
                continue
            malformed = 0
            _give(live, item, stats)
    except ConnectionClosed as closed:
        _closed(closed, live, config)
    except RpcError as error:
        live.fail(error)
    except Exception as error:  # noqa: BLE001 - whatever it is, the one who waits must learn that nothing will come
        live.fail(Internal(f"the WebSocket of {config.place} failed inside ({type(error).__name__})"))
    finally:
        await socket.close()


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
