"""Both of Quill's clients under one blocking face, with messages of generated classes or with dicts."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import AsyncIterator, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor_pb2 import FileDescriptorSet

from quill import AsyncQuillClient, QuillClient

SERVICE = "interop.v1.PlayService"
WAIT_S = 20
"""How long anything may take that has no deadline of its own."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A PlayResponse, whatever it came as."""

    text: str
    index: int


class Form(Protocol):
    """What requests and replies are for the caller."""

    json: bool
    """Whether they are dicts, for ``call_json`` and ``stream_json``."""

    def request(self, **fields: Any) -> Any:
        """A PlayRequest with these fields."""
        ...

    def reply(self, value: Any) -> Reply:
        """A PlayResponse."""
        ...


class Dicts:
    """Dicts: nothing of the contract is known beforehand."""

    json = True

    def request(self, **fields: Any) -> Any:
        """A dict with the names as in the contract."""
        return fields

    def reply(self, value: Any) -> Reply:
        """Fields with their default are absent."""
        return Reply(value.get("text", ""), value.get("index", 0))


class Messages:
    """Messages: the contract's classes are in the default pool, as after the import of a generated module."""

    json = False

    def __init__(self) -> None:
        found = descriptor_pool.Default().FindMessageTypeByName("interop.v1.PlayRequest")
        self._request_class = message_factory.GetMessageClass(found)

    def request(self, **fields: Any) -> Any:
        """A message."""
        return self._request_class(**fields)

    def reply(self, value: Any) -> Reply:
        """The fields of a message."""
        return Reply(value.text, value.index)


def load_stubs(image: Path) -> None:
    """Put the contract into the default pool: what importing its generated module does."""
    for file in FileDescriptorSet.FromString(image.read_bytes()).file:
        descriptor_pool.Default().AddSerializedFile(file.SerializeToString())


class Inbox:
    """Requests that are made while the call runs, ended by ``close``."""

    def __init__(self) -> None:
        self._waiting: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()

    def send(self, request: Any) -> None:
        """One more."""
        self._waiting.put((request,))

    def close(self) -> None:
        """No more."""
        self._waiting.put(())

    def __iter__(self) -> Iterator[Any]:
        while item := self._waiting.get(timeout=WAIT_S):
            yield item[0]


class AsyncInbox:
    """The same for the asyncio client."""

    def __init__(self) -> None:
        self._waiting: asyncio.Queue[tuple[Any, ...]] = asyncio.Queue()

    def send(self, request: Any) -> None:
        """One more."""
        self._waiting.put_nowait((request,))

    def close(self) -> None:
        """No more."""
        self._waiting.put_nowait(())

    async def __aiter__(self) -> AsyncIterator[Any]:
        while item := await self._waiting.get():
            yield item[0]


class SyncFace:
    """QuillClient."""

    inbox = Inbox

    def __init__(self, url: str, form: Form, **options: Any) -> None:
        self._client = QuillClient(url, **options)
        self._form = form

    def call(self, method: str, request: Any, **options: Any) -> Reply:
        """A unary call."""
        call = self._client.call_json if self._form.json else self._client.call
        return self._form.reply(call(SERVICE, method, request, **options))

    def stream(self, method: str, request: Any, **options: Any) -> Generator[Reply, None, None]:
        """A stream of replies; closing the generator leaves the call."""
        stream = self._client.stream_json if self._form.json else self._client.stream
        with stream(SERVICE, method, request, **options) as replies:
            yield from map(self._form.reply, replies)

    def close(self) -> None:
        """Close the client."""
        self._client.close()


class AsyncFace:
    """AsyncQuillClient, on a loop that runs while something is waited for."""

    inbox = AsyncInbox

    def __init__(self, url: str, form: Form, **options: Any) -> None:
        self._runner = asyncio.Runner()
        self._client = AsyncQuillClient(url, **options)
        self._form = form

    def call(self, method: str, request: Any, **options: Any) -> Reply:
        """A unary call."""
        call = self._client.call_json if self._form.json else self._client.call
        return self._form.reply(self._run(call(SERVICE, method, request, **options)))

    def stream(self, method: str, request: Any, **options: Any) -> Generator[Reply, None, None]:
        """A stream of replies; closing the generator leaves the call."""
        replies = self._run(self._open(method, request, options))
        try:
            while (value := self._run(anext(replies, None))) is not None:
                yield self._form.reply(value)
        finally:
            self._run(replies.aclose())

    async def _open(self, method: str, request: Any, options: dict[str, Any]) -> Any:
        """Streams are opened on the loop."""
        stream = self._client.stream_json if self._form.json else self._client.stream
        return stream(SERVICE, method, request, **options)

    def close(self) -> None:
        """Close the client and its loop."""
        self._run(self._client.close())
        self._runner.close()

    def _run(self, awaited: Any) -> Any:
        async def bounded() -> Any:
            async with asyncio.timeout(WAIT_S):
                return await awaited

        return self._runner.run(bounded())
