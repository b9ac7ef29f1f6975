"""Shard: the client of the sidecar, and the SDK on it."""
