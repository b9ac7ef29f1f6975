"""Python functions over named tensors behind inference.v1.TensorService: their registry, and the servicer."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quill.tensors.models import TensorModels
    from quill.tensors.registration import add_to_server
    from quill.tensors.servicer import TensorServicer

_MODULES = {"TensorModels": "models", "TensorServicer": "servicer", "add_to_server": "registration"}

__all__ = ["TensorModels", "TensorServicer", "add_to_server"]


def __getattr__(name: str) -> Any:
    """Load a name when it is first asked for: the servicer loads grpc."""
    module = _MODULES.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"quill.tensors.{module}"), name)
