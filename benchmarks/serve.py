"""The servers under test, each in a process of its own.

usage: python benchmarks/serve.py bare-grpc | bare-connect | quill

Prints where it listens as one line of JSON, and serves until its standard input ends.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from typing import Any

import grpc
import grpc.aio
from contract import LLM_SERVICE, RAW_METHOD, RAW_SERVICE, REPLY_BYTES, TOKENIZE_REPLY, generate_reply, tokenize_method

from quill import proto


class Servicer(proto.LLMServiceServicer):
    """Answers at once with what was made before, so that the transports are what takes time."""

    @classmethod
    def made(cls) -> Servicer:
        """A servicer; what it does not serve is UNIMPLEMENTED."""
        return cls()

    def __init__(self) -> None:
        self._generated = generate_reply()

    async def Tokenize(self, request: proto.TokenizeRequest, context: Any) -> proto.TokenizeResponse:
        """Some 90 bytes."""
        return TOKENIZE_REPLY

    async def Generate(self, request: proto.GenerateRequest, context: Any) -> proto.GenerateResponse:
        """512 tokens."""
        return self._generated


async def _raw(_request: bytes, _context: Any) -> bytes:
    return REPLY_BYTES


def register(server: grpc.aio.Server) -> None:
    """Register both services, as on any grpc.aio server."""
    proto.add_LLMServiceServicer_to_server(Servicer.made(), server)
    handlers: dict[str, Any] = {RAW_METHOD: grpc.unary_unary_rpc_method_handler(_raw)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(RAW_SERVICE, handlers),))


async def bare_grpc() -> None:
    """grpc.aio as it comes."""
    server = grpc.aio.server()
    register(server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    tell(grpc=f"grpc://127.0.0.1:{port}")
    await until_stdin_ends()
    await server.stop(None)


async def bare_connect() -> None:
    """The server of connectrpc on uvicorn, without access log and compression, which Quill has off, too."""
    import uvicorn
    from connectrpc.compat import google_protobuf_codecs
    from connectrpc.server import ConnectASGIApplication, Endpoint

    class Application(ConnectASGIApplication[Servicer]):
        """What connectrpc's generator writes."""

        def __init__(self, service: Servicer) -> None:
            tokenize = tokenize_method()
            super().__init__(
                service=service,
                endpoints=lambda svc: {f"{self.path}/Tokenize": Endpoint.unary(tokenize, svc.Tokenize)},
                codecs=google_protobuf_codecs(),
                compressions=[],
            )

        @property
        def path(self) -> str:
            return f"/{LLM_SERVICE}"

    # Names TCP, so that asyncio turns Nagle's algorithm off: uvicorn's own socket would wait 40 ms per reply.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    application: Any = Application(Servicer.made())
    config = uvicorn.Config(
        application,
        http="httptools",
        ws="none",
        lifespan="off",
        log_level="warning",
        access_log=False,
        # While the others have their turns; uvicorn's 5 s would close connections that a client is about to use.
        timeout_keep_alive=300,
    )
    server = uvicorn.Server(config)
    running = asyncio.create_task(server.serve(sockets=[listener]))
    tell(http=f"http://127.0.0.1:{listener.getsockname()[1]}")
    await until_stdin_ends()
    server.should_exit = True
    await running


async def quill_server() -> None:
    """Both ports of quill.Server, with its defaults."""
    from quill import Server

    server = Server(grpc="127.0.0.1:0", http="127.0.0.1:0")
    register(server)
    async with server:
        tell(grpc=f"grpc://{server.grpc_address}", http=server.http_url)
        await until_stdin_ends()


def tell(**urls: str | None) -> None:
    """Say where the server listens."""
    print(json.dumps(urls), flush=True)


async def until_stdin_ends() -> None:
    """Wait until the process that started this one closes the pipe."""
    await asyncio.to_thread(sys.stdin.read)


SERVERS = {"bare-grpc": bare_grpc, "bare-connect": bare_connect, "quill": quill_server}

if __name__ == "__main__":
    asyncio.run(SERVERS[sys.argv[1]]())
