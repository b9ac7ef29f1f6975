"""Tensors as users hold them: what they are (TensorMeta), and that with its elements (Tensor)."""

from __future__ import annotations

from quill.tensor.meta import TensorMeta
from quill.tensor.tensor import Tensor
from quill.wire.buffer import Buffer

__all__ = ["Buffer", "Tensor", "TensorMeta"]
