"""The asyncio client under test: test cases on stdin, their outcomes on stdout, a few at a time."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from calls import Case
from frames import read_messages, write_message
from gen.client_compat_pb2 import ClientCompatRequest, ClientCompatResponse
from gen.config_pb2 import STREAM_TYPE_FULL_DUPLEX_BIDI_STREAM, STREAM_TYPE_SERVER_STREAM, STREAM_TYPE_UNARY

from quill import AsyncQuillClient, Cancelled

AT_ONCE = 8
CASE_TIMEOUT_S = 15.0


class AsyncCall:
    """One call, whose task a case may cancel."""

    def __init__(self, case: Case) -> None:
        self._case = case
        self._cancel = case.request.cancel if case.request.HasField("cancel") else None
        self._takes_turns = case.request.stream_type == STREAM_TYPE_FULL_DUPLEX_BIDI_STREAM
        self._received = asyncio.Semaphore(1)
        """Where both sides take turns, whether the next request may go."""
        self._task = asyncio.ensure_future(self._run())

    async def answer(self) -> ClientCompatResponse:
        """The outcome."""
        try:
            async with asyncio.timeout(CASE_TIMEOUT_S):
                await self._task
        except asyncio.CancelledError:
            return self._case.answer(Cancelled("the task was cancelled"))
        except Exception as error:  # noqa: BLE001 - the suite is told of all of them
            return self._case.answer(error)
        return self._case.answer(None)

    async def _run(self) -> None:
        case = self._case
        async with AsyncQuillClient(**case.settings()) as client:
            options = case.options()
            where = case.request.service, case.request.method
            request: Any = self._requests()
            if case.request.stream_type in (STREAM_TYPE_UNARY, STREAM_TYPE_SERVER_STREAM):
                [request] = [one async for one in request]
            if case.has_one_reply:
                call = client.call_json if case.is_json else client.call
                case.replies.append(await call(*where, request, **options))
                return
            stream = client.stream_json if case.is_json else client.stream
            async with stream(*where, request, **options) as replies:
                async for reply in replies:
                    case.replies.append(reply)
                    self._received.release()
                    if self._cancel is not None and self._cancel.after_num_responses == len(case.replies):
                        self._task.cancel()
            self._received.release()

    async def _requests(self) -> AsyncIterator[Any]:
        """The requests, with the pauses between them, and the cancellation that stands at their end."""
        for request in self._case.requests():
            await asyncio.sleep(self._case.request.request_delay_ms / 1000)
            if self._takes_turns:
                await self._received.acquire()
            self._case.sent += 1
            yield request
        if self._cancel is None or self._cancel.HasField("after_num_responses"):
            return
        if self._takes_turns:
            await self._received.acquire()
        if self._cancel.HasField("before_close_send"):
            self._task.cancel()
            await asyncio.Event().wait()
        asyncio.get_running_loop().call_later(self._cancel.after_close_send_ms / 1000, self._task.cancel)


async def main() -> None:
    """Run all cases."""
    loop = asyncio.get_running_loop()
    places = asyncio.Semaphore(AT_ONCE)
    cases = read_messages(ClientCompatRequest)
    with tempfile.TemporaryDirectory() as folder:

        async def run(request: ClientCompatRequest) -> None:
            try:
                write_message(await AsyncCall(Case(request, Path(folder))).answer())
            finally:
                places.release()

        async with asyncio.TaskGroup() as group:
            while True:
                await places.acquire()
                if (request := await loop.run_in_executor(None, next, cases, None)) is None:
                    return
                group.create_task(run(request))


if __name__ == "__main__":
    asyncio.run(main())
