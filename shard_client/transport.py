"""The way to the sidecar."""

from quill.shard.router import RouterClientConfig, ShardRouterClient

__all__ = ["RouterClientConfig", "ShardRouterClient", "SidecarProtocolError"]
