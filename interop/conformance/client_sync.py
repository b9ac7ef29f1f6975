"""The blocking client under test: test cases on stdin, their outcomes on stdout, each in one of a few threads."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from calls import Case
from frames import read_messages, write_message
from gen.client_compat_pb2 import ClientCompatRequest, ClientCompatResponse
from gen.config_pb2 import STREAM_TYPE_FULL_DUPLEX_BIDI_STREAM, STREAM_TYPE_SERVER_STREAM, STREAM_TYPE_UNARY

from quill import Cancelled, QuillClient

AT_ONCE = 8
CASE_TIMEOUT_S = 15.0


class SyncCall:
    """One call, which a case may cancel from another thread: by closing its client."""

    def __init__(self, case: Case) -> None:
        self._case = case
        self._cancel = case.request.cancel if case.request.HasField("cancel") else None
        self._takes_turns = case.request.stream_type == STREAM_TYPE_FULL_DUPLEX_BIDI_STREAM
        self._received = threading.Semaphore(1)
        """Where both sides take turns, whether the next request may go."""
        self._client = QuillClient(**case.settings())
        self._gave_up = False

    def answer(self) -> ClientCompatResponse:
        """The outcome."""
        error: BaseException | None = None
        too_late = threading.Timer(CASE_TIMEOUT_S, self._client.close)
        too_late.start()
        try:
            self._run()
        except Exception as failure:  # noqa: BLE001 - the suite is told of all of them
            error = Cancelled("the client was closed") if self._gave_up else failure
        finally:
            too_late.cancel()
            self._received.release()
            self._client.close()
        return self._case.answer(error)

    def _run(self) -> None:
        case, client = self._case, self._client
        options = case.options()
        where = case.request.service, case.request.method
        request: Any = self._requests()
        if case.request.stream_type in (STREAM_TYPE_UNARY, STREAM_TYPE_SERVER_STREAM):
            [request] = request
        if case.has_one_reply:
            call = client.call_json if case.is_json else client.call
            case.replies.append(call(*where, request, **options))
            return
        stream = client.stream_json if case.is_json else client.stream
        with stream(*where, request, **options) as replies:
            for reply in replies:
                case.replies.append(reply)
                self._received.release()
                if self._cancel is not None and self._cancel.after_num_responses == len(case.replies):
                    replies.close()
                    raise Cancelled("the stream was closed")

    def _requests(self) -> Iterator[Any]:
        """The requests, with the pauses between them, and the cancellation that stands at their end."""
        for request in self._case.requests():
            time.sleep(self._case.request.request_delay_ms / 1000)
            if self._takes_turns:
                self._received.acquire()
            self._case.sent += 1
            yield request
        if self._cancel is None or self._cancel.HasField("after_num_responses"):
            return
        if self._takes_turns:
            self._received.acquire()
        if self._cancel.HasField("before_close_send"):
            raise Cancelled("the requests were given up")
        threading.Timer(self._cancel.after_close_send_ms / 1000, self._give_up).start()

    def _give_up(self) -> None:
        self._gave_up = True
        self._client.close()


def main() -> None:
    """Run all cases."""
    writing = threading.Lock()
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(AT_ONCE) as threads:

        def run(request: ClientCompatRequest) -> None:
            answer = SyncCall(Case(request, Path(folder))).answer()
            with writing:
                write_message(answer)

        for request in read_messages(ClientCompatRequest):
            threads.submit(run, request)


if __name__ == "__main__":
    main()
