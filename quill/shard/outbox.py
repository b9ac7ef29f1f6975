"""What waits for the reader of one generation: pieces of text within bounds, and behind them the outcome."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from quill.errors import RpcError
from quill.shard.events import Ended, Piece, Restarted, ShardEvent

if TYPE_CHECKING:
    from quill.shard.config import SidecarConfig


class Outbox:
    """Filled by whoever polls or receives, emptied by the reader.

    Args:
        config: The bounds.
    """

    def __init__(self, config: SidecarConfig) -> None:
        self.outcome: Ended | RpcError | Restarted | None = None
        """What comes after the last piece."""
        self._config = config
        self._pieces: deque[Piece] = deque()
        self._characters = 0
        self._arrived = asyncio.Event()

    def put(self, text: str) -> str | None:
        """Add a piece; where there is no room for it, which bound is reached."""
        if len(self._pieces) >= self._config.max_queued_pieces:
            return f"max_queued_pieces is {self._config.max_queued_pieces}"
        if self._characters + len(text) > self._config.max_queued_characters:
            return f"max_queued_characters is {self._config.max_queued_characters}"
        self._pieces.append(Piece(text))
        self._characters += len(text)
        self._arrived.set()
        return None

    def end(self, outcome: Ended | RpcError | Restarted) -> None:
        """Nothing more is put in."""
        self.outcome = outcome
        self._arrived.set()

    def clear(self) -> None:
        """Nobody takes anything out any more."""
        self._pieces.clear()

    async def next(self) -> ShardEvent | Restarted:
        """The next piece, or the outcome, as soon as it is there.

        Raises:
            RpcError: The outcome is one.
        """
        while not self._pieces:
            if self.outcome is not None:
                if isinstance(self.outcome, RpcError):
                    raise self.outcome
                return self.outcome
            self._arrived.clear()
            await self._arrived.wait()
        piece = self._pieces.popleft()
        self._characters -= len(piece.text)
        return piece
