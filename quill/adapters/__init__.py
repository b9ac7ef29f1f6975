"""Adapters: engines behind LLMService, found by name.

A distribution offers a backend under the entry-point group ``quill.backends``; the entry point is a callable that
takes the backend's options as keywords and gives a Backend::

    [project.entry-points."quill.backends"]
    mine = "my_package.backend:MyBackend"
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, cast

from quill.errors import InvalidUsage

if TYPE_CHECKING:
    from quill.llm.backend import Backend

_GROUP = "quill.backends"


def names() -> list[str]:
    """The names that ``load`` knows, sorted."""
    return sorted(entry_points(group=_GROUP).names)


def load(name: str, **options: Any) -> Backend:
    """Make a backend. It may read its model now: call this before serving, not while.

    Args:
        name: The name that it is offered under, as in ``quill serve --backend``.
        options: What the backend takes; see its class.

    Raises:
        InvalidUsage: No backend has this name, it does not take such options, or something that it needs is not
            installed.
        QuillError: Whatever else the backend says to the options' values.
    """
    try:
        entry_point = entry_points(group=_GROUP)[name]
    except KeyError:
        known = ", ".join(names()) or "none; is the quill-rpc distribution installed?"
        raise InvalidUsage(f"there is no backend named {name!r}; known: {known}") from None
    try:
        factory = entry_point.load()
    except ImportError as error:
        lacking = error.name or entry_point.module
        raise InvalidUsage(f"the backend {name!r} needs {lacking!r}, which is not installed") from error
    except AttributeError as error:
        raise InvalidUsage(f"the backend {name!r} is offered as {entry_point.value!r}, which is not there") from error
    _check_options(name, inspect.signature(factory), options)
    return cast("Backend", factory(**options))


def _check_options(name: str, signature: inspect.Signature, options: Mapping[str, object]) -> None:
    """Make sure that a factory takes these options, and has all that it needs."""
    kinds = inspect.Parameter
    named = {
        key: one
        for key, one in signature.parameters.items()
        if one.kind in (kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY)
    }
    takes_any = any(one.kind is kinds.VAR_KEYWORD for one in signature.parameters.values())
    taken = ", ".join(named) or "none"
    unknown = [key for key in options if key not in named and not takes_any]
    if unknown:
        raise InvalidUsage(f"the backend {name!r} has no option {', '.join(unknown)}; its options: {taken}")
    missing = [key for key, one in named.items() if one.default is kinds.empty and key not in options]
    if missing:
        raise InvalidUsage(f"the backend {name!r} needs the option {', '.join(missing)}; its options: {taken}")
