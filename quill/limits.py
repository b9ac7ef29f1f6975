"""How much a server accepts. One place for every bound."""

from __future__ import annotations

from dataclasses import dataclass, fields

from quill.errors import InvalidUsage


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of a server. Each is checked before what it bounds is buffered or started.

    Raises:
        InvalidUsage: A bound is below 1.
    """

    max_message_bytes: int = 64 * 1024 * 1024
    """One request or reply message, after decompression. RESOURCE_EXHAUSTED above."""
    max_metadata_bytes: int = 16 * 1024
    """All request headers of one call together."""
    max_pending_requests: int = 10_000
    """Calls that wait for a handler on the gRPC port; C-core's own default loses calls when thousands open at once."""
    max_connections: int = 10_000
    """Open connections of the HTTP port. Status 503 above."""
    max_decompression_window_bytes: int = 8 * 1024 * 1024
    """The window that a Zstandard frame may ask for (RFC 8878, section 3.1.1.1.2)."""
    max_prompt_bytes: int = 4 * 1024 * 1024
    """The text of a prompt or of all messages of a conversation. RESOURCE_EXHAUSTED above."""
    max_runs: int = 10_000
    """Generations alive at once. RESOURCE_EXHAUSTED above."""
    max_journal_bytes: int = 1024 * 1024
    """What a run may produce ahead of its reader before its backend is paused."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value < 1:
                raise InvalidUsage(f"{field.name} must be at least 1, got {value}")
