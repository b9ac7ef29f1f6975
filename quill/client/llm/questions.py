"""The unary calls of LLMService that need no module of their own: generate, cancel, and what models there are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from quill.client.llm.calls import Question
from quill.client.llm.fields import filled
from quill.client.llm.fold import generation
from quill.client.llm.model import Model
from quill.client.llm.request import generate_request
from quill.generation import Generation

if TYPE_CHECKING:
    from quill import proto


def generating(prompt: str | None, options: Mapping[str, Any]) -> Question[Generation]:
    """The call for what ``LLM.generate`` was given; raises as ``generate_request``."""
    return Question("Generate", generate_request(prompt, options), generation)


def cancelling(request_id: str, reason: str) -> Question[bool]:
    """The call for what ``LLM.cancel`` was given."""
    from quill.proto import CancelGenerateRequest

    request = filled(CancelGenerateRequest(), {"request_id": request_id, "reason": reason}, {})
    return Question("CancelGenerate", request, _found)


def describing(name: str) -> Question[Model]:
    """The call for what ``LLM.model`` was given."""
    from quill.proto import GetModelRequest

    return Question("GetModel", filled(GetModelRequest(), {"name": name}, {}), _described)


def listing(page_token: str) -> Question[tuple[list[Model], str]]:
    """The call for one page of the models: those on it, and the token of the next, empty after the last."""
    from quill.proto import ListModelsRequest

    return Question("ListModels", ListModelsRequest(page_token=page_token), _listed)


def _found(reply: proto.CancelGenerateResponse) -> bool:
    return reply.found


def _described(reply: proto.GetModelResponse) -> Model:
    return Model.from_proto(reply.model)


def _listed(reply: proto.ListModelsResponse) -> tuple[list[Model], str]:
    # A page with nothing on it is the last, whatever it says: paging would never end otherwise.
    return list(map(Model.from_proto, reply.models)), reply.next_page_token if reply.models else ""
