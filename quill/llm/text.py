"""From the bytes of tokens to text: UTF-8 across token borders, and stop strings. No I/O, no clock.

The text of a sequence is that of ``b"".join(data).decode("utf-8", errors="replace")``, cut at a stop, however its
bytes are split into tokens. Which stop ends it: the one that is complete first, as a reader of one character after
the other would see it; of several that are complete at the same character, the longest. So nothing has to be
generated past a stop to know that it matched.
"""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Sequence


class TextAssembler:
    """Assembles the text of one sequence and tells what each token adds to it.

    The text of a token is settled once no later token can change it. Text that may become a stop is held back,
    and so is a token with an incomplete character, because at the end that character becomes U+FFFD on it.
    Tokens are settled in order, so those behind a held one wait with it. The texts of all tokens joined are the
    text of the sequence: the token in which the text is cut carries the part before the cut, those after it
    carry none.

    Args:
        stops: The stop strings, none empty.
        include_stop: Cut after the stop, not before it.
        min_tokens: How many tokens come before a stop may be complete.
    """

    def __init__(self, stops: Sequence[str] = (), *, include_stop: bool = False, min_tokens: int = 0) -> None:
        self._stops = tuple(stops)
        self._longest_stop = max(map(len, self._stops), default=0)
        self._include_stop = include_stop
        self._min_tokens = min_tokens
        self._count = 0
        self._incomplete = b""
        """The first bytes of a character whose others have not come."""
        self._unsettled: deque[str] = deque()
        """What is known of the texts of the tokens that are not settled, oldest first."""
        self._waiting = 0
        """How many of them, from the newest back, wait for the rest of the incomplete character."""
        self._held = ""
        """The end of the unsettled text: it may become a stop."""
        self.matched: str | None = None
        """The stop that ended the text, once one has."""

    def push(self, data: bytes) -> list[str]:
        """Take the next token's bytes, empty for a token without text.

        Returns:
            The texts of the tokens that are settled now, oldest first. All of them where ``matched`` is set now;
            then the text has ended and nothing may be pushed any more.
        """
        self._count += 1
        data_so_far = self._incomplete + data if self._incomplete else data
        piece, used = codecs.utf_8_decode(data_so_far, "replace", False)
        self._incomplete = data_so_far[used:]
        self._unsettled.append(piece)
        if not self._incomplete:
            self._waiting = 0
        else:
            self._waiting = 1 if data else self._waiting + 1
        return self._settle(piece)

    def finish(self) -> list[str]:
        """End the sequence: an incomplete character becomes U+FFFD, and nothing is held back any more.

        After a match there is nothing to end.

        Returns:
            The texts of the tokens that were not settled, oldest first. Their end may have completed a stop:
            ``matched`` tells.
        """
        piece = codecs.utf_8_decode(self._incomplete, "replace", True)[0]
        if piece:
            self._unsettled[-self._waiting] += piece
        self._incomplete, self._waiting = b"", 0
        texts = self._settle(piece)
        if self.matched is None:
            self._held = ""
            texts += self._unsettled
            self._unsettled.clear()
        return texts

    def _settle(self, piece: str) -> list[str]:
        """Look for a stop that ``piece`` completes, and take out what no later token can change."""
        before = sum(map(len, self._unsettled)) - len(self._held) - len(piece)
        candidate = self._held + piece
        if self._stops and piece:
            cut = self._cut(candidate) if self._count > self._min_tokens else None
            if cut is not None:
                return self._truncate(before + cut)
            self._held = self._possible_stop(candidate)
        free = before + len(candidate) - len(self._held)
        settled = []
        while len(self._unsettled) > self._waiting and len(self._unsettled[0]) <= free:
            free -= len(self._unsettled[0])
            settled.append(self._unsettled.popleft())
        return settled

    def _cut(self, candidate: str) -> int | None:
        """Where the first complete stop cuts ``candidate``; None where there is none."""
        first: tuple[int, int, str] | None = None
        for stop in self._stops:
            # A stop that was complete within the held text came too early for min_tokens: only a new end counts.
            start = candidate.find(stop, max(0, len(self._held) - len(stop) + 1))
            if start >= 0:
                found = (start + len(stop), start, stop)
                first = found if first is None else min(first, found)
        if first is None:
            return None
        end, start, self.matched = first
        return end if self._include_stop else start

    def _possible_stop(self, candidate: str) -> str:
        """The longest end of ``candidate`` with which a stop begins."""
        for start in range(max(0, len(candidate) - self._longest_stop + 1), len(candidate)):
            end = candidate[start:]
            if any(stop.startswith(end) for stop in self._stops):
                return end
        return ""

    def _truncate(self, length: int) -> list[str]:
        """End the text: the texts of the unsettled tokens, cut to ``length`` characters together."""
        texts = []
        for text in self._unsettled:
            texts.append(text[:length])
            length -= len(texts[-1])
        self._unsettled.clear()
        self._held, self._incomplete, self._waiting = "", b"", 0
        return texts
