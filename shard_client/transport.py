"""The way to the sidecar."""

from quill.shard.faults import SidecarProtocolError
from quill.shard.router import RouterClientConfig, ShardRouterClient

__all__ = ["RouterClientConfig", "ShardRouterClient", "SidecarProtocolError"]
