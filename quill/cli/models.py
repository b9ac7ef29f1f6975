"""``quill models``: what a server offers."""

from __future__ import annotations

from quill.cli.connection import DEFAULT_URL, Connection, Url, connecting
from quill.cli.options import Json
from quill.cli.terminal import write, write_json
from quill.client.llm.model import Model
from quill.client.sync_client import QuillClient

LIST_MODELS = ("inference.v1.LLMService", "ListModels")


@connecting
def models(url: Url = DEFAULT_URL, json: Json = False, *, connection: Connection) -> None:
    """List the models of a server."""
    with QuillClient(url, **connection.options()) as client:
        if json:
            write_json(client.call_json(*LIST_MODELS, {}))
            return
        for model in client.llm.models():
            _show(model)


def _show(model: Model) -> None:
    """A headline, and a line for everything else that the server tells of the model."""
    write(", ".join((model.name, *model.aliases)) + ("" if model.ready else "  (not ready)"))
    if model.weights_origin:
        write(f"  {model.weights_origin}")
    defaults = ", ".join(f"{name} {_number(value)}" for name, value in sorted(model.default_sampling.items()))
    lines = {
        "backend": model.backend,
        "context": f"{model.context_length} tokens" if model.context_length else "",
        "vocabulary": f"{model.vocab_size} tokens" if model.vocab_size else "",
        "ends at": ", ".join(f"token {number}" for number in model.eos_token_ids),
        "adapters": ", ".join(model.adapters),
        "defaults": defaults,
        "can": ", ".join(model.capabilities),
    }
    for name, value in lines.items():
        if value:
            write(f"  {name:<10}  {value}")


def _number(value: object) -> str:
    """A number of a Struct, which knows only doubles."""
    return f"{value:g}" if isinstance(value, float) else str(value)
