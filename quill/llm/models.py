"""The models of a backend: found by name, described, listed in pages."""

from __future__ import annotations

import base64
import binascii
from bisect import bisect_right
from collections.abc import Sequence

from quill.errors import InvalidArgument, NotFound, Unavailable
from quill.llm.backend import ModelInfo
from quill.llm.options import capabilities
from quill.proto import ListModelsRequest, ListModelsResponse, Model

_DEFAULT_PAGE = 100
_MAX_PAGE = 1000
_NAMES_SHOWN = 20
_TOKEN_PREFIX = b"after:"


def default_max_tokens(model: ModelInfo) -> int:
    """How many tokens are generated where the request does not say."""
    return min(model.default_max_tokens, model.context_length or model.default_max_tokens)


def check_ready(model: ModelInfo) -> None:
    """Make sure that a model can answer now.

    Raises:
        Unavailable: It cannot, for the reason that the backend tells.
    """
    if not model.ready:
        reason = f": {model.unready_reason}" if model.unready_reason else ""
        raise Unavailable(f"model {model.name} is not ready{reason}; try again later")


def resolve(models: Sequence[ModelInfo], name: str) -> ModelInfo:
    """The model of a name or alias; the only one where the name is empty.

    Raises:
        NotFound: No model has the name. The message has those that there are.
        InvalidArgument: The name is empty and there are several models.
    """
    if not name and len(models) == 1:
        return models[0]
    if not name and models:
        raise InvalidArgument(f"model is empty and there are {len(models)}: {_names(models)}; name one")
    for model in models:
        if name == model.name or name in model.aliases:
            return model
    raise NotFound(f"model {name[:128]!r} is not known; known are: {_names(models)}")


def describe(model: ModelInfo, backend: str) -> Model:
    """The contract's description of a model.

    Args:
        model: What the backend says of it.
        backend: The kind of the backend.
    """
    description = Model(
        name=model.name,
        aliases=model.aliases,
        backend=backend,
        ready=model.ready,
        context_length=model.context_length,
        vocab_size=model.vocab_size,
        eos_token_ids=model.eos_token_ids,
        capabilities=capabilities(model),
        weights_origin=model.weights_origin,
    )
    description.default_sampling.update({"max_tokens": default_max_tokens(model), **model.default_sampling})
    return description


def page(models: Sequence[ModelInfo], request: ListModelsRequest, backend: str) -> ListModelsResponse:
    """One page of the models, by name. A token names the model after which to go on, so pages survive changes.

    Raises:
        InvalidArgument: The page token is not one that this function gave.
    """
    ordered = sorted(models, key=lambda model: model.name)
    start = 0
    if request.page_token:
        start = bisect_right(ordered, _read_token(request.page_token), key=lambda model: model.name)
    size = min(request.page_size or _DEFAULT_PAGE, _MAX_PAGE)
    shown = ordered[start : start + size]
    more = start + size < len(ordered)
    return ListModelsResponse(
        models=[describe(model, backend) for model in shown],
        next_page_token=_make_token(shown[-1].name) if more else "",
    )


def _names(models: Sequence[ModelInfo]) -> str:
    names = sorted(model.name for model in models)
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return (", ".join(names[:_NAMES_SHOWN]) or "none") + more


def _make_token(name: str) -> str:
    return base64.urlsafe_b64encode(_TOKEN_PREFIX + name.encode()).decode()


def _read_token(token: str) -> str:
    try:
        content = base64.b64decode(token.encode("ascii"), altchars=b"-_", validate=True)
        if content.startswith(_TOKEN_PREFIX):
            return content.removeprefix(_TOKEN_PREFIX).decode()
    except (binascii.Error, UnicodeError):
        pass
    raise InvalidArgument(f"page_token={token[:64]!r} is not one that ListModels gave")
