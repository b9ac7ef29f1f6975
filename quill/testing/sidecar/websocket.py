"""``/ws/generate`` of A and C: one message asks, frames answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from quill.testing.sidecar.daemon import Daemon
from quill.testing.sidecar.faults import Fault
from quill.testing.sidecar.queues import Item, Line
from quill.testing.sidecar.replies import Receive, Reply, Send, disconnected, instead, text_reply
from quill.testing.sidecar.requests import Refused, Work, read_websocket

_FIRST_MESSAGE_S = 30.0
_NO_JSON = 400


async def serve(daemon: Daemon, receive: Receive, send: Send, drop: Callable[[], None], *, there: bool) -> None:
    """One WebSocket, from the upgrade to its end.

    Args:
        daemon: The sidecar.
        receive: Of ASGI.
        send: Of ASGI.
        drop: Closes the connection without a close frame.
        there: Whether this dialect has a WebSocket at this path; else the upgrade gets 404.
    """
    delay_s, fault = daemon.faults.draw("upgrade")
    await asyncio.sleep(delay_s)
    await daemon.apply(fault)
    if fault is not None and fault.kind == "close":
        drop()
        await disconnected(receive)
        return
    refusal = instead(fault, draft=False) if fault else None
    if refusal is None and not there:
        refusal = text_reply(404, "there is no WebSocket here")
    if refusal is not None:
        await _refuse(send, refusal)
        return
    await send({"type": "websocket.accept"})
    talk = asyncio.create_task(_Talk(daemon, receive, send, drop).run())
    try:
        await talk
    finally:
        talk.cancel()


async def _refuse(send: Send, reply: Reply) -> None:
    await send({"type": "websocket.http.response.start", "status": reply.status, "headers": reply.fields})
    await send({"type": "websocket.http.response.body", "body": reply.body, "more_body": False})


class _Talk:
    """What is said on an open WebSocket."""

    def __init__(self, daemon: Daemon, receive: Receive, send: Send, drop: Callable[[], None]) -> None:
        self._daemon = daemon
        self._receive = receive
        self._send = send
        self._drop = drop

    async def run(self) -> None:
        """Read the request, and answer it for as long as the client is there."""
        text = await self._first()
        if text is None:
            return
        answering = asyncio.create_task(self._answer(text))
        leaving = asyncio.create_task(disconnected(self._receive))
        try:
            await asyncio.wait((answering, leaving), return_when=asyncio.FIRST_COMPLETED)
            if answering.done():
                answering.result()
        finally:
            answering.cancel()
            leaving.cancel()
            await asyncio.gather(answering, leaving, return_exceptions=True)

    async def _first(self) -> str | None:
        """The first message; None where none came, and the client is gone or sent away."""
        try:
            async with asyncio.timeout(_FIRST_MESSAGE_S):
                while (message := await self._receive())["type"] == "websocket.connect":
                    pass
        except TimeoutError:
            await self._close(1008)
            return None
        if message["type"] == "websocket.disconnect":
            return None
        if (text := message.get("text")) is None:
            await self._close(1003)
            return None
        return str(text)

    async def _answer(self, text: str) -> None:
        try:
            work = read_websocket(text, self._daemon.dialect)
        except Refused as refusal:
            await self._fail(refusal.text, done=refusal.status != _NO_JSON)
            return
        limit_s = self._daemon.behaviour.websocket_limit_s if self._daemon.dialect == "C" else None
        try:
            async with asyncio.timeout(limit_s):
                if await self._stream(work):
                    await self._close(1000)
        except TimeoutError:
            await self._tell({"event": "done"})
            await self._close(1000)

    async def _stream(self, work: Work) -> bool:
        """Send the frames of an answer; False where a fault ended it."""
        line = Line()
        async with aclosing(self._frames(work)) as frames:
            async for item, is_token in frames:
                fault = None
                if is_token:
                    delay_s, fault = self._daemon.faults.draw("frame")
                    await asyncio.sleep(delay_s)
                    await self._daemon.apply(fault)
                if fault is not None and fault.kind in {"error", "close"}:
                    await self._break_off(fault)
                    return False
                if fault is None or not await self._spoil(item, fault):
                    for one in line.carry(item, fault) if is_token else [*line.rest(), item]:
                        await self._tell(one)
        for one in line.rest():
            await self._tell(one)
        return True

    async def _frames(self, work: Work) -> AsyncGenerator[tuple[Item, bool], None]:
        """The frames, and whether each is a token."""
        daemon = self._daemon
        if daemon.dialect == "A":
            async with aclosing(daemon.network.objects(work)) as objects:
                async for item, is_token in objects:
                    yield item, is_token
            return
        async with aclosing(daemon.network.written(work)) as tokens:
            async for number, token, _ in tokens:
                yield {"token": token} | daemon.network.numbered(number), True
        yield {"event": "done"}, False

    async def _break_off(self, fault: Fault) -> None:
        if fault.kind == "error":
            await self._fail(fault.message, done=fault.done)
        elif fault.code is not None:
            await self._close(fault.code)
        else:
            self._drop()

    async def _spoil(self, item: Item, fault: Fault) -> bool:
        """Send something in the place of a frame, if that is the fault."""
        match fault.kind:
            case "malformed":
                await self._tell_text('{"token": " bro')
            case "list":
                await self._tell_text("[]")
            case "text":
                await self._tell_text("hello")
            case "huge":
                await self._tell({"token": "x" * fault.size_bytes})
            case "binary":
                await self._send({"type": "websocket.send", "bytes": json.dumps(item).encode()})
            case _:
                return False
        return True

    async def _fail(self, message: str, *, done: bool) -> None:
        """The two ways to tell an error: with the end, or with a dropped connection behind it."""
        if done:
            await self._tell({"error": message, "event": "done"})
            await self._close(1000)
        else:
            await self._tell({"error": message})
            self._drop()

    async def _tell(self, item: Item) -> None:
        await self._tell_text(json.dumps(item, ensure_ascii=False))

    async def _tell_text(self, text: str) -> None:
        await self._send({"type": "websocket.send", "text": text})

    async def _close(self, code: int) -> None:
        await self._send({"type": "websocket.close", "code": code})
