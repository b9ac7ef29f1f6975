"""The unary calls of LLMService that need no module of their own: generate, cancel, and what models there are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from quill.client.calls import Question
from quill.client.llm.fields import filled
from quill.client.llm.fold import generation
from quill.client.llm.model import Model
from quill.client.llm.request import generate_request
from quill.errors import Internal
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


class Listing:
    """All models, page by page."""

    def __init__(self) -> None:
        self.models: list[Model] = []
        """Those on the pages so far."""
        self._next_page: str | None = ""
        self._seen: set[str] = set()

    def question(self) -> Question[None] | None:
        """The call for the next page, which adds its models; None after the last."""
        from quill.proto import ListModelsRequest

        if self._next_page is None:
            return None
        return Question("ListModels", ListModelsRequest(page_token=self._next_page), self._add)

    def _add(self, reply: proto.ListModelsResponse) -> None:
        self.models += map(Model.from_proto, reply.models)
        token = reply.next_page_token
        if not (token and reply.models):  # a page with nothing on it is the last, whatever it says
            self._next_page = None
        elif token in self._seen:
            raise Internal("the server's pages of models have no end: one names a next page that was read already")
        else:
            self._seen.add(token)
            self._next_page = token


def _found(reply: proto.CancelGenerateResponse) -> bool:
    return reply.found


def _described(reply: proto.GetModelResponse) -> Model:
    return Model.from_proto(reply.model)
