"""The tensor models of ``quill serve``: the built-in ones, and those of Python code that a person names."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from quill.errors import InvalidUsage

if TYPE_CHECKING:
    from quill.tensors import TensorModels


def load_models(source: str | None) -> TensorModels:
    """The built-in models, and those of all TensorModels in a module.

    Args:
        source: The name of a module, or the path of a Python file; None for none.

    Raises:
        InvalidUsage: It cannot be imported, has no TensorModels, or one of a name that is taken.
    """
    from quill.tensors import TensorModels
    from quill.tensors.builtin import builtin_models

    models = builtin_models()
    if source is None:
        return models
    module = _imported(source)
    found = [value for value in vars(module).values() if isinstance(value, TensorModels)]
    if not found:
        raise InvalidUsage(f"{source} has no TensorModels: put `models = quill.tensors.TensorModels()` into it")
    for more in found:
        for model in more:
            models.add(model)
    return models


def _imported(source: str) -> ModuleType:
    """The module; whatever goes wrong in it is said in one line."""
    try:
        if not source.endswith(".py"):
            sys.path.insert(0, str(Path.cwd()))
            return importlib.import_module(source)
        # Under a name of its own: that of the file may be another module's.
        spec = importlib.util.spec_from_file_location("__tensor_models__", source)
        assert spec is not None  # noqa: S101  # the name ends in .py
        assert spec.loader is not None  # noqa: S101
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
    except Exception as error:
        raise InvalidUsage(f"cannot load tensor models from {source}: {type(error).__name__}: {error}") from error
    return module
