"""The script of calls by Quill's own clients, against servers of interop.v1.PlayService in other languages.

usage: python quill_script.py --url URL --protocol grpc|connect|grpc-web [--http2] --client sync|async
       --form messages|dicts [--stubs IMAGE]

Prints a line for each case, as the client programs of other languages do.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from pathlib import Path

from faces import AsyncFace, Dicts, Messages, Reply, SyncFace, load_stubs
from google.rpc.error_details_pb2 import ErrorInfo  # type: ignore[import-untyped]  # it has stubs, but no py.typed

from quill.client.transport import ResponseMetadata
from quill.errors import DeadlineExceeded, FailedPrecondition, Metadata, RpcError

TEXT = "Alice \u2603 \U0001f407"
BINARY = b"\x00\xff\x80"
LARGE = "Alice was beginning to get very tired. " * 100
DEADLINE_MS = 300
AT_MOST_S = 3.0
"""How long a call may take to notice its deadline, or a server that its caller has gone."""


class Script:
    """The cases, over one client.

    Args:
        given: The command line.
    """

    def __init__(self, given: argparse.Namespace) -> None:
        self._given = given
        self._form = Dicts() if given.form == "dicts" else Messages()
        self._face = self._connect()

    def _connect(self, **options: bool) -> SyncFace | AsyncFace:
        kind = AsyncFace if self._given.client == "async" else SyncFace
        protocol = self._given.protocol
        return kind(
            self._given.url, self._form, protocol=protocol, timeout_ms=10_000, http2=self._given.http2, **options
        )

    def unary(self) -> None:
        """One request, one reply."""
        check_equal(self._face.call("Echo", self._form.request(text=TEXT)), Reply(TEXT, 0))

    def server_stream(self) -> None:
        """One request, five replies; none is a stream, too."""
        told = list(self._face.stream("Repeat", self._form.request(text=TEXT, count=5)))
        check_equal(told, [Reply(TEXT, index) for index in range(5)])
        check_equal(list(self._face.stream("Repeat", self._form.request(text=TEXT))), [])

    def client_stream(self) -> None:
        """Three requests, one reply."""
        told = list(self._face.stream("Collect", self._requests("a", TEXT, "c")))
        check_equal(told, [Reply(f"a+{TEXT}+c", 3)])

    def half_duplex(self) -> None:
        """Three requests, then three replies."""
        told = list(self._face.stream("Converse", self._requests("a", TEXT, "c")))
        check_equal(told, [Reply("a", 0), Reply(TEXT, 1), Reply("c", 2)])

    def full_duplex(self) -> None:
        """Each request waits for the reply to the one before."""
        inbox = self._face.inbox()
        replies = self._face.stream("Converse", inbox)
        for index in range(3):
            inbox.send(self._form.request(text=f"turn {index}"))
            check_equal(next(replies), Reply(f"turn {index}", index))
        inbox.close()
        check_equal(list(replies), [])

    def error_details(self) -> None:
        """A refusal with its detail: at once, and after two messages."""
        refused = self._failure(lambda: self._face.call("Echo", self._form.request(text=TEXT, fail=True)))
        self._check_refusal(refused)
        told: list[Reply] = []
        replies = self._face.stream("Repeat", self._form.request(text=TEXT, count=2, fail=True))
        self._check_refusal(self._failure(lambda: told.extend(replies)))
        check_equal([reply.index for reply in told], [0, 1])

    def metadata(self) -> None:
        """Headers go there and come back as headers and as trailers: text and bytes; of streams and of errors, too."""
        sent = {"x-interop": "a value", "x-interop-bin": BINARY}
        response = ResponseMetadata()
        self._face.call("Echo", self._form.request(text=TEXT), headers=sent, response=response)
        check_answered(response.headers, response.trailers)
        response = ResponseMetadata()
        list(self._face.stream("Repeat", self._form.request(count=1), headers=sent, response=response))
        check_answered(response.headers, response.trailers)
        refused = self._failure(lambda: self._face.call("Echo", self._form.request(text=TEXT, fail=True), headers=sent))
        # Where no message goes ahead, gRPC and connect-go send all of it at the end.
        both = (*refused.metadata, *refused.trailers)
        check_equal(dict(both).get("x-trailer"), "a value")
        check_equal(dict(both).get("x-trailer-bin"), BINARY)

    def deadline(self) -> None:
        """The client's deadline ends the call, and the stream."""
        slow = self._form.request(text=TEXT, count=1000, delay_ms=5000)
        for call in (
            lambda: self._face.call("Echo", slow, timeout_ms=DEADLINE_MS),
            lambda: list(self._face.stream("Repeat", slow, timeout_ms=DEADLINE_MS)),
        ):
            began = time.monotonic()
            failure = self._failure(call)
            check(isinstance(failure, DeadlineExceeded), f"{failure}, not DEADLINE_EXCEEDED")
            check(time.monotonic() - began < AT_MOST_S, "the deadline was noticed late")
        self._wait_for_streams(0)

    def cancel(self) -> None:
        """A stream that is left ends on the server."""
        with closing(self._stream_of_many()) as replies:
            check_equal(next(replies).index, 0)
            self._wait_for_streams(1)
        self._wait_for_streams(0)

    def compression(self) -> None:
        """Compressed requests, or plain ones where the server takes no others."""
        with closing(self._connect(enable_compression=True)) as face:
            for _ in range(2):
                check_equal(face.call("Echo", self._form.request(text=LARGE)).text, LARGE)
            told = list(face.stream("Repeat", self._form.request(text=LARGE, count=2)))
            check_equal([reply.text for reply in told], [LARGE, LARGE])

    def close(self) -> None:
        """Close the client."""
        self._face.close()

    def _requests(self, *texts: str) -> list[object]:
        return [self._form.request(text=text) for text in texts]

    def _stream_of_many(self) -> Generator[Reply, None, None]:
        return self._face.stream("Repeat", self._form.request(text=TEXT, count=1000, delay_ms=50))

    def _wait_for_streams(self, count: int) -> None:
        until = time.monotonic() + AT_MOST_S
        while (live := self._face.call("Echo", self._form.request()).index) != count:
            check(time.monotonic() < until, f"{live} streams are open on the server, not {count}")

    @staticmethod
    def _failure(call: Callable[[], object]) -> RpcError:
        try:
            call()
        except RpcError as error:
            return error
        raise AssertionError("the call ended with OK")

    @staticmethod
    def _check_refusal(refused: RpcError) -> None:
        check_equal(type(refused), FailedPrecondition)
        check_equal(refused.message, TEXT)
        check_equal([detail.type_name for detail in refused.details], ["google.rpc.ErrorInfo"])
        info = ErrorInfo.FromString(refused.details[0].value)
        check_equal((info.reason, info.domain), ("PLAYED", "interop"))


CASES: Sequence[Callable[[Script], None]] = (
    Script.unary,
    Script.server_stream,
    Script.client_stream,
    Script.half_duplex,
    Script.full_duplex,
    Script.error_details,
    Script.metadata,
    Script.deadline,
    Script.cancel,
    Script.compression,
)


def check(holds: bool, message: str) -> None:
    """Raise unless it holds."""
    if not holds:
        raise AssertionError(message)


def check_equal(got: object, want: object) -> None:
    """Raise unless both are the same."""
    check(got == want, f"{got!r:.200}, not {want!r:.200}")


def check_answered(headers: Metadata, trailers: Metadata) -> None:
    """Whether a server has answered the metadata that was sent."""
    for kind, told in (("header", dict(headers)), ("trailer", dict(trailers))):
        check_equal((kind, told.get(f"x-{kind}"), told.get(f"x-{kind}-bin")), (kind, "a value", BINARY))


def main() -> None:
    """Run all cases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True)
    parser.add_argument("--protocol", choices=("grpc", "connect", "grpc-web"), required=True)
    parser.add_argument("--http2", action="store_true")
    parser.add_argument("--client", choices=("sync", "async"), required=True)
    parser.add_argument("--form", choices=("messages", "dicts"), required=True)
    parser.add_argument("--stubs", type=Path)
    parser.add_argument("--without", action="append", default=[])
    given = parser.parse_args()
    if given.stubs is not None:
        load_stubs(given.stubs)
    with closing(Script(given)) as script:
        for case in CASES:
            name = case.__name__
            if name in given.without:
                continue
            try:
                case(script)
                report = {"case": name, "ok": True, "detail": ""}
            except Exception as error:  # noqa: BLE001 - whatever it is, the case is red
                report = {"case": name, "ok": False, "detail": f"{type(error).__name__}: {error}"}
            print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
