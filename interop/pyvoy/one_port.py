"""The server of the interop script as an ASGI application: no ports of its own, settings from the environment."""

from __future__ import annotations

import os

from quill_interop_backend import InteropBackend

from quill.limits import Quota
from quill.llm import LLMServicer
from quill.proto import add_LLMServiceServicer_to_server
from quill.server.auth import Auth
from quill.server.server import Server
from quill.tensors import TensorServicer, add_to_server
from quill.tensors.builtin import builtin_models

server = Server(
    grpc=None,
    http=None,
    auth=Auth(os.environ["INTEROP_KEYS_FILE"]),
    quota=Quota(live_streams=3),
    cors=[os.environ["INTEROP_ORIGIN"]],
    reflection=True,
    compression=True,
)
add_LLMServiceServicer_to_server(LLMServicer(InteropBackend(token_delay_ms=10)), server)
add_to_server(TensorServicer(builtin_models()), server)
app = server.asgi_app
