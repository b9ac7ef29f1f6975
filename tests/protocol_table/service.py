"""The service of the table: all four kinds, each request saying in its text what becomes of the call."""

import asyncio
import contextlib

import grpc
from google.rpc import error_details_pb2, status_pb2

from support.probe import CANARY, Answer

UNICODE = "naïve 100 % ✓ 𝄞"


class Service:
    """What a request's text says: "fail" ends with a status that has details, "odd" with a text beyond ASCII, "late"
    with DEADLINE_EXCEEDED; "crash" raises; "hang" waits for ever. Other texts are echoed.

    A server stream first gives as many messages as it is asked for; the others behave as each request comes.
    """

    full_duplex = frozenset({"turns"})

    def __init__(self):
        self.live = self.seen = self.completed = 0

    async def unary(self, ask, context):
        with self._running():
            await self._greet(context)
            await self._behave(ask, context)
            return Answer(text=ask.text, blob=ask.blob)

    async def stream(self, ask, context):
        with self._running():
            await self._greet(context)
            for index in range(ask.count):
                yield Answer(text=ask.text, count=index, blob=ask.blob)
            await self._behave(ask, context)

    async def collect(self, requests, context):
        with self._running():
            await self._greet(context)
            texts, size = [], 0
            async for ask in requests:
                await self._behave(ask, context)
                texts.append(ask.text)
                size += len(ask.blob)
            return Answer(text=",".join(texts), count=size)

    async def chat(self, requests, context):
        with self._running():
            await self._greet(context)
            async for ask in requests:
                await self._behave(ask, context)
                yield Answer(text=ask.text.upper(), blob=ask.blob)

    async def turns(self, requests, context):
        async for answer in self.chat(requests, context):
            yield answer

    @contextlib.contextmanager
    def _running(self):
        self.live += 1
        try:
            yield
            self.completed += 1
        finally:
            self.live -= 1

    async def _greet(self, context):
        await context.send_initial_metadata((("x-initial", "here"), ("x-initial-bin", b"\x00\xfe")))
        sent = {key: value for key, value in context.invocation_metadata() if key.startswith("x-in")}
        left_s = context.time_remaining()
        context.set_trailing_metadata(
            (
                ("x-trailer", "there"),
                ("x-seen", ",".join(sorted(sent))),
                ("x-data-bin", sent.get("x-in-bin", b"")),
                ("x-left-ms", "none" if left_s is None else str(round(left_s * 1000))),
            )
        )

    async def _behave(self, ask, context):
        self.seen += 1
        match ask.text:
            case "fail":
                await context.abort_with_status(_Status())
            case "odd":
                await context.abort(grpc.StatusCode.ABORTED, UNICODE)
            case "late":
                await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "the engine was too slow")
            case "crash":
                raise RuntimeError(CANARY)
            case "hang":
                await asyncio.Event().wait()


class _Status(grpc.Status):
    """FAILED_PRECONDITION with a google.rpc.BadRequest, as grpcio-status would make it."""

    def __init__(self):
        violation = error_details_pb2.BadRequest.FieldViolation(field="text", description="says fail")
        status = status_pb2.Status(code=9, message="told to fail")
        status.details.add().Pack(error_details_pb2.BadRequest(field_violations=[violation]))
        self.code = grpc.StatusCode.FAILED_PRECONDITION
        self.details = "told to fail"
        self.trailing_metadata = (
            ("grpc-status-details-bin", status.SerializeToString()),
            ("x-trailer", "there"),
            ("x-data-bin", b"\x01\xff"),
        )


class Deny(grpc.aio.ServerInterceptor):
    """Refuses every call that carries x-in-deny, of whatever kind, with a unary handler as people write it."""

    async def intercept_service(self, continuation, details):
        if any(key == "x-in-deny" for key, _ in details.invocation_metadata):

            async def refuse(request, context):
                await context.abort(grpc.StatusCode.PERMISSION_DENIED, "not for you")

            return grpc.unary_unary_rpc_method_handler(refuse)
        return await continuation(details)
