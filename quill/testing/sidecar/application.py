"""The paths of the sidecar, as an ASGI application."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs

from quill.errors import InvalidUsage
from quill.testing.sidecar import websocket
from quill.testing.sidecar.behaviour import Behaviour
from quill.testing.sidecar.daemon import Daemon
from quill.testing.sidecar.faults import Fault
from quill.testing.sidecar.replies import (
    DROP,
    Bodies,
    Message,
    Receive,
    Reply,
    Send,
    disconnected,
    instead,
    json_reply,
    send_reply,
    text_reply,
)
from quill.testing.sidecar.requests import Declined, Refused, parse, read_broadcast

WEBSOCKET_PATH = "/ws/generate"
_DROP_S = 1.0
_JSON = {list: "list", dict: "object", bool: "boolean"}
_ENDPOINTS = {
    "/broadcast-work": ("POST", "broadcast"),
    "/pop-result": ("GET", "pop"),
    "/health": ("GET", "health"),
    "/topology": ("GET", "topology"),
    "/peers": ("GET", "peers"),
    "/metrics/latency-profile": ("GET", "latency-profile"),
}


class Application:
    """Serves a daemon.

    Args:
        daemon: The sidecar.
        with_faults: Whether ``/faults`` is there, which lets anybody who can connect switch faults.
    """

    def __init__(self, daemon: Daemon, *, with_faults: bool) -> None:
        self._daemon = daemon
        self._with_faults = with_faults
        self._bodies = Bodies()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """One request, or one WebSocket."""
        drop: Callable[[], None] = scope["extensions"][DROP]["close"]
        if scope["type"] == "http" and scope["path"] == "/faults" and self._with_faults:
            await self._request(scope, receive, send, drop)  # outlives the restart that it asks for
            return
        if scope["type"] == "websocket":
            self._daemon.requests["upgrade"] += 1
            there = scope["path"] == WEBSOCKET_PATH and self._daemon.dialect != "B"
            work = websocket.serve(self._daemon, receive, send, drop, there=there)
        else:
            work = self._request(scope, receive, send, drop)
        if not await self._daemon.attended(work):
            drop()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_DROP_S):
                    await disconnected(receive)

    async def _request(self, scope: Message, receive: Receive, send: Send, drop: Callable[[], None]) -> None:
        fault: Fault | None = None
        try:
            body = await self._bodies.read(receive)
            handling = asyncio.create_task(self._reply(scope, body))
            try:
                gone = asyncio.create_task(disconnected(receive))
                await asyncio.wait((handling, gone), return_when=asyncio.FIRST_COMPLETED)
                if not handling.done():
                    return
                reply, fault = handling.result()
            finally:
                await _ended(handling, gone)
        except Refused as refusal:
            reply = text_reply(refusal.status, refusal.text)
        except ConnectionError:
            return
        await send_reply(send, reply, fault, drop)
        if fault is not None and fault.kind in {"close", "truncate"}:
            await disconnected(receive)

    async def _reply(self, scope: Message, body: bytes) -> tuple[Reply, Fault | None]:
        path, method = scope["path"], scope["method"]
        if path == "/faults" and self._with_faults:
            return await self._switch(method, _header(scope, b"content-type"), body), None
        if path not in _ENDPOINTS:
            raise Refused(404, f"there is nothing at {path:.100}")
        expected, point = _ENDPOINTS[path]
        if method != expected:
            return text_reply(405, f"{path} takes {expected}", ("allow", expected)), None
        request_id = _request_id(scope["query_string"])
        self._daemon.requests[point] += 1
        if point == "pop" and request_id is None:
            self._daemon.requests["pop-unfiltered"] += 1
        hit = point == "pop" and self._daemon.waiting(request_id)
        delay_s, fault = self._daemon.faults.draw(point, hit=hit)
        await asyncio.sleep(delay_s)
        await self._daemon.apply(fault)
        faulty = instead(fault, draft=self._daemon.dialect != "A") if fault else None
        if faulty is not None and fault is not None and not fault.handled:
            return faulty, fault
        if fault is not None and fault.kind == "close" and not fault.handled:
            return text_reply(500, ""), fault
        reply = await self._handle(point, request_id, scope, body)
        return faulty or reply, fault

    async def _handle(self, point: str, request_id: str | None, scope: Message, body: bytes) -> Reply:
        daemon = self._daemon
        match point:
            case "broadcast":
                return await self._broadcast(_header(scope, b"content-type"), body)
            case "pop":
                if request_id is None and daemon.dialect == "A":
                    raise Refused(400, "the request_id is missing: /pop-result?request_id=ID")
                return json_reply({"result": daemon.pop(request_id)})
            case "health":
                return json_reply(daemon.health())
            case "topology":
                return json_reply(daemon.topology())
            case "peers":
                return json_reply(daemon.peers())
            case _:
                return json_reply(daemon.latency_profile())

    async def _broadcast(self, content_type: str, body: bytes) -> Reply:
        _check_json(content_type)
        try:
            work = read_broadcast(body, self._daemon.dialect)
        except Declined as reason:
            return json_reply({"ok": False, "detail": str(reason)})
        return json_reply(await self._daemon.broadcast(work))

    async def _switch(self, method: str, content_type: str, body: bytes) -> Reply:
        """``/faults``: GET tells, POST switches what it names, DELETE switches everything off."""
        try:
            if method == "POST":
                # A web page cannot send this type to another origin unasked.
                _check_json(content_type)
                await self._set(parse(body))
            elif method == "DELETE":
                self._daemon.faults.switch([])
                await self._daemon.behave(Behaviour())
            elif method != "GET":
                return text_reply(405, "/faults takes GET, POST and DELETE", ("allow", "GET, POST, DELETE"))
        except InvalidUsage as error:
            raise Refused(422, str(error)) from None
        report = {"faults": self._daemon.faults.report(), "fired": dict(self._daemon.faults.fired)}
        return json_reply(self._daemon.report() | report)

    async def _set(self, values: dict[str, Any]) -> None:
        """Switch all that is named, or nothing where some of it is wrong."""
        kinds = {"faults": list, "behaviour": dict, "restart": bool}
        for name, value in values.items():
            if name not in kinds:
                raise InvalidUsage(f"/faults takes {', '.join(kinds)}, got {name!r:.100}")
            if not isinstance(value, kinds[name]):
                raise InvalidUsage(f"{name} must be a JSON {_JSON[kinds[name]]}, got {value!r:.80}")
        behaviour = Behaviour.read(values["behaviour"]) if "behaviour" in values else self._daemon.behaviour
        if "faults" in values:
            self._daemon.faults.switch([Fault.read(one) for one in values["faults"]])
        await self._daemon.behave(behaviour)
        if values.get("restart"):
            self._daemon.restart()


async def _ended(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _check_json(content_type: str) -> None:
    if content_type.partition(";")[0].strip().lower() != "application/json":
        raise Refused(415, "the content-type must be application/json")


def _header(scope: Message, name: bytes) -> str:
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), "")


def _request_id(query: bytes) -> str | None:
    return next(iter(parse_qs(query.decode("latin-1"), keep_blank_values=True).get("request_id", ())), None)
