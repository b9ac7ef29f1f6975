"""The model."""

from quill.shard.model import ShardDistributedModel

__all__ = ["ShardDistributedModel"]
