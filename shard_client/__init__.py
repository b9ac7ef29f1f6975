"""The import name of the Shard SDK: what is here is quill.shard's."""

from quill.shard.model import ShardDistributedModel

__all__ = ["ShardDistributedModel"]
