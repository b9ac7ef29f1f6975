"""Shard: the client of the sidecar, and the SDK on it.

Every name of ``__all__`` loads its module when it is first asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quill.shard.faults import SidecarProtocolError
    from quill.shard.model import ShardDistributedModel
    from quill.shard.router import RouterClientConfig, ShardRouterClient

__all__ = ["RouterClientConfig", "ShardDistributedModel", "ShardRouterClient", "SidecarProtocolError"]

_MODULES = {
    "RouterClientConfig": "quill.shard.router",
    "ShardDistributedModel": "quill.shard.model",
    "ShardRouterClient": "quill.shard.router",
    "SidecarProtocolError": "quill.shard.faults",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_MODULES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
