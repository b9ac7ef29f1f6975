"""The sidecar for development: Shard's three dialects over real HTTP and WebSocket, with the embedded model.

It is a reading of the protocol of its own, apart from ``quill.shard``, so that one can be tested against the other.

``process`` starts one for a test. ``host`` serves one: ``application`` knows paths, ``daemon`` is the sidecar and its
state, ``network`` answers, ``queues`` holds results, ``websocket`` streams them, and ``behaviour`` and ``faults`` say
how all of it behaves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from quill.testing.sidecar.process import SidecarProcess as SidecarProcess

__all__ = ["SidecarProcess"]


def __getattr__(name: str) -> object:
    if name == "SidecarProcess":
        from quill.testing.sidecar.process import SidecarProcess

        return SidecarProcess
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
