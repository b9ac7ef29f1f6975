"""``quill models``: what a server offers."""

from __future__ import annotations

import json as json_text

from quill.cli.options import DEFAULT_URL, Json, TimeoutMs, Url
from quill.client.sync_client import QuillClient

LIST_MODELS = ("inference.v1.LLMService", "ListModels")


def models(url: Url = DEFAULT_URL, json: Json = False, timeout_ms: TimeoutMs = 30_000) -> None:
    """List the models of a server."""
    with QuillClient(url, timeout_ms=timeout_ms) as client:
        if json:
            print(json_text.dumps(client.call_json(*LIST_MODELS, {}), ensure_ascii=False))
            return
        for model in client.llm.models():
            names = ", ".join((model.name, *model.aliases))
            print(f"{names}  context {model.context_length} tokens, vocabulary {model.vocab_size}")
            print(f"  {model.weights_origin}")
