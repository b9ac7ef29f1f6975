"""``quill models``: what a server offers."""

from __future__ import annotations

from quill.cli.options import DEFAULT_URL, Ca, Cert, Http2, Json, Key, TimeoutMs, Url, client_tls
from quill.cli.terminal import write, write_json
from quill.client.sync_client import QuillClient

LIST_MODELS = ("inference.v1.LLMService", "ListModels")


def models(
    url: Url = DEFAULT_URL,
    json: Json = False,
    timeout_ms: TimeoutMs = 30_000,
    http2: Http2 = False,
    ca: Ca = None,
    cert: Cert = None,
    key: Key = None,
) -> None:
    """List the models of a server."""
    with QuillClient(url, timeout_ms=timeout_ms, http2=http2, tls=client_tls(ca, cert, key)) as client:
        if json:
            write_json(client.call_json(*LIST_MODELS, {}))
            return
        for model in client.llm.models():
            names = ", ".join((model.name, *model.aliases))
            write(f"{names}  context {model.context_length} tokens, vocabulary {model.vocab_size}")
            write(f"  {model.weights_origin}")
