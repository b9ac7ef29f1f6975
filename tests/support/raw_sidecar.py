"""A peer for what the sidecar for development does not do: it answers each request with the bytes that a test gives."""

import asyncio
import json
from collections import Counter
from contextlib import asynccontextmanager


def json_reply(value, status=200):
    return reply(json.dumps(value).encode(), status=status)


def reply(body=b"", *, status=200, content_type="application/json", headers=()):
    lines = [f"HTTP/1.1 {status} X", f"content-length: {len(body)}", f"content-type: {content_type}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


QUEUED = json_reply({"ok": True, "detail": "queued for gossipsub publish"})
NOTHING = json_reply({"result": None})


class RawSidecar:
    """Answers by path: with bytes, None for a dropped connection, or what a function of the request gives."""

    def __init__(self, **answers):
        self.answers = {"broadcast": QUEUED, "pop": NOTHING, "health": reply(status=404)} | answers
        self.requests = Counter()
        self.started = []
        self.url = ""
        self.server = None
        self.open = set()

    async def stop(self):
        """Close the port and every connection."""
        self.server.close()
        tasks = list(self.open)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks)

    async def serve(self, reader, writer):
        self.open.add(asyncio.current_task())
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                line, *fields = head.decode().split("\r\n")
                target = line.split(" ")[1]
                sizes = [int(one.split(":")[1]) for one in fields if one.lower().startswith("content-length:")]
                body = await reader.readexactly(sizes[0] if sizes else 0)
                answer = self.answer(target, body)
                if asyncio.iscoroutine(answer):
                    answer = await answer
                if answer is None:
                    break
                writer.write(answer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # a stream's callback logs a task that ends cancelled
        finally:
            self.open.discard(asyncio.current_task())
            writer.close()

    def answer(self, target, body):
        path, _, query = target.partition("?")
        point = {"/broadcast-work": "broadcast", "/pop-result": "pop", "/health": "health"}.get(path, path)
        self.requests[point] += 1
        if point == "broadcast":
            self.started.append(json.loads(body)["request_id"])
        answer = self.answers.get(point, reply(status=404))
        return answer(query.removeprefix("request_id=") if point == "pop" else body) if callable(answer) else answer


@asynccontextmanager
async def raw_sidecar(port=0, **answers):
    sidecar = RawSidecar(**answers)
    server = sidecar.server = await asyncio.start_server(sidecar.serve, "127.0.0.1", port, reuse_port=bool(port))
    sidecar.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield sidecar
    finally:
        await sidecar.stop()
