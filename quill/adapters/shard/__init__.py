"""A Shard network behind LLMService, through the sidecar on this machine."""

from quill.adapters.shard.backend import ShardBackend

__all__ = ["ShardBackend"]
