"""What is known of a sidecar: which dialect it speaks, as configured or as its answers show."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from quill.shard.messages import Item

if TYPE_CHECKING:
    from quill.shard.config import Dialect


@dataclass(slots=True)
class Stats:
    """Counters of a sidecar client, since it was made."""

    started: int = 0
    """Generations that a sidecar was asked for."""
    resubmitted: int = 0
    """Those that were asked for once more, because the sidecar was restarted before their first token."""
    polls: int = 0
    idle_polls: int = 0
    """Polls that found nothing."""
    failed_polls: int = 0
    malformed: int = 0
    """Replies and frames that were not what the protocol says."""
    foreign: int = 0
    """Results of generations that are not ours. They are dropped."""
    drained: int = 0
    """Results of ours that nobody waited for any more: cancelled, or the drafts of other peers."""
    unattributed: int = 0
    """Results without an id that could have been of several generations. They are dropped, and these fail."""
    duplicates: int = 0
    """Numbered results that came twice. The second one is dropped."""
    restarts: int = 0
    """How often the sidecar was restarted."""


_PROOFS = 8
"""So often must a poll for nobody be empty, and the next one not. Where nothing is filtered, that is a coin's toss."""


class Knowledge:
    """The dialect of one sidecar.

    Args:
        configured: What the configuration says.
    """

    def __init__(self, configured: Dialect) -> None:
        self.dialect: Dialect = configured
        self.websocket: bool | None = False if configured == "B" else None
        """Whether the sidecar has a WebSocket; None while nobody has tried."""
        self._drafts = False
        self._anonymous = False
        self._proofs = 0

    @property
    def filtered(self) -> bool:
        """Whether a poll is known to give results of the generation that it asks for, and of no other."""
        return self.dialect in {"A", "C"}

    @property
    def serial(self) -> bool:
        """Whether generations are polled for one at a time, because results could not be told apart."""
        if self.dialect == "auto":
            return self._anonymous or not self._drafts
        return self.dialect == "B" and self._anonymous

    def saw_result(self, item: Item, polled_id: str) -> None:
        """A poll for an id gave this."""
        if item.request_id not in {None, polled_id}:
            self.dialect = "B"  # for good: it does not filter, whatever was configured
        elif item.is_draft:
            self._drafts = True
            self._conclude()
        if item.request_id is None:
            self._anonymous = True

    @property
    def doubtful(self) -> bool:
        """Whether results name no request, and it has yet to be seen that the sidecar filters."""
        return self.dialect == "auto" and self._anonymous

    def saw_probe(self, *, empty: bool) -> None:
        """A poll for an id that nobody has: empty just before a result came, or not, so that nothing is filtered."""
        if not empty:
            self.dialect = "B"
        elif self.doubtful:
            self._proofs += 1
            if self._proofs >= _PROOFS:
                self.dialect = "C" if self._drafts else "A"

    def saw_upgrade(self, *, accepted: bool) -> None:
        """The sidecar accepted a WebSocket, or has none."""
        self.websocket = accepted
        self._conclude()

    def _conclude(self) -> None:
        if self.dialect == "auto" and self._drafts and self.websocket is not None:
            self.dialect = "C" if self.websocket else "B"
