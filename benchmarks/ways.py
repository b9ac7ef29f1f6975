"""The ways to ask for generations, and a server that knows all of them."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

from quill import AsyncGenerationStream, AsyncQuillClient, Server
from quill.limits import Limits
from quill.llm import Backend, LLMServicer
from quill.proto import add_LLMServiceServicer_to_server

ANY_PORT = "127.0.0.1:0"


@dataclass(frozen=True, slots=True)
class Way:
    """A protocol, and whether generations have streams of their own or share a session."""

    protocol: str
    is_session: bool = False
    http2: bool = False
    """Whether Connect is spoken over HTTP/2, as sessions need it."""

    def client(self, url: str, **options: Any) -> AsyncQuillClient:
        """Somebody who asks in this way; ``options`` are the client's."""
        return AsyncQuillClient(url, protocol=self.protocol, http2=self.http2, **options)

    @contextlib.asynccontextmanager
    async def streams(self, client: AsyncQuillClient) -> AsyncIterator[Callable[..., AsyncGenerationStream]]:
        """What starts a generation, with the arguments of ``client.llm.stream``."""
        if self.is_session:
            async with client.llm.session() as session:
                yield session.stream
        else:
            yield client.llm.stream


STREAMS = {"grpc": Way("grpc"), "connect": Way("connect"), "grpc_web": Way("grpc-web")}
WAYS = STREAMS | {
    "session_grpc": Way("grpc", is_session=True),
    "session_h2c": Way("connect", is_session=True, http2=True),
}


@contextlib.asynccontextmanager
async def served(
    backend: Backend, grpc: str = ANY_PORT, http: str = ANY_PORT, *, http2: bool = False, limits: Limits | None = None
) -> AsyncIterator[dict[str, str]]:
    """A server in this process; the URL of each protocol."""
    servicer = LLMServicer(backend, limits=limits)
    server = Server(grpc, http, http2=http2, limits=limits or Limits())
    add_LLMServiceServicer_to_server(servicer, server)
    async with server:
        yield urls(str(server.grpc_address), str(server.http_url))
        await servicer.aclose()


def urls(grpc_address: str, http_url: str) -> dict[str, str]:
    """Where each protocol is spoken."""
    return {"grpc": f"grpc://{grpc_address}", "connect": http_url, "grpc-web": http_url}
