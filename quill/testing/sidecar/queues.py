"""Where results wait until somebody pops them, and in which order they get there."""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from typing import Any, TypeAlias

from quill.testing.sidecar.faults import Fault

Item: TypeAlias = dict[str, Any]

FIFO_ITEMS = 128
MAILBOXES = 512
MAILBOX_ITEMS = 131_072
"""In all mailboxes together: some 40 MB."""


class Fifo:
    """B and C: one queue for all callers. Popping destroys, and the oldest item goes when there is no room."""

    def __init__(self) -> None:
        self._items: deque[Item] = deque(maxlen=FIFO_ITEMS)

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: Item) -> None:
        """Append an item; of more than 128, the oldest is gone."""
        self._items.append(item)

    def peek(self, request_id: str | None) -> Item | None:
        """What ``pop`` would give."""
        return next((item for item in self._items if request_id in (None, item["request_id"])), None)

    def pop(self, request_id: str | None) -> Item | None:
        """The oldest item, or the oldest of a request; None where there is none."""
        item = self.peek(request_id)
        if item is not None:
            self._items.remove(item)
        return item


class Mailbox:
    """A: the results of one request."""

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        self.items: deque[Item] = deque()
        self.touched_s = time.monotonic()
        self.writers = 0


class Mailboxes:
    """A: a mailbox for each request. Where they are too many, or hold too much, the first goes with its results."""

    def __init__(self) -> None:
        self._open: OrderedDict[str, Mailbox] = OrderedDict()
        self._items = 0

    def __len__(self) -> int:
        return self._items

    def open(self, request_id: str) -> Mailbox:
        """The mailbox of a request, for one more writer, who counts ``writers`` down when done."""
        mailbox = self._open.get(request_id)
        if mailbox is None:
            mailbox = self._open[request_id] = Mailbox(request_id)
            if len(self._open) > MAILBOXES:
                self._close(next(iter(self._open)))
        mailbox.writers += 1
        return mailbox

    def put(self, mailbox: Mailbox, item: Item) -> None:
        """Append an item. What is put into a mailbox that is gone, is gone."""
        if self._open.get(mailbox.request_id) is not mailbox:
            return
        mailbox.items.append(item)
        self._items += 1
        if self._items > MAILBOX_ITEMS:
            self._close(next(iter(self._open)))

    def peek(self, request_id: str | None) -> Item | None:
        """What ``pop`` would give."""
        mailbox = self._open.get(request_id or "")
        return mailbox.items[0] if mailbox is not None and mailbox.items else None

    def pop(self, request_id: str | None) -> Item | None:
        """The oldest result of a request; None while there is none. The mailbox goes with its last result."""
        mailbox = self._open.get(request_id or "")
        if mailbox is None:
            return None
        mailbox.touched_s = time.monotonic()
        item = mailbox.items.popleft() if mailbox.items else None
        self._items -= item is not None
        if not mailbox.items and not mailbox.writers:
            self._close(mailbox.request_id)
        return item

    def expire(self, ttl_s: float) -> None:
        """Throw away what nobody has asked for so long."""
        oldest_s = time.monotonic() - ttl_s
        for request_id in [key for key, mailbox in self._open.items() if mailbox.touched_s < oldest_s]:
            self._close(request_id)

    def _close(self, request_id: str) -> None:
        self._items -= len(self._open.pop(request_id).items)


class Line:
    """Results on their way, which faults may take out, repeat, swap or join with strangers."""

    def __init__(self) -> None:
        self._held: list[Item] = []
        self._strangers = 0

    def carry(self, item: Item, fault: Fault | None) -> list[Item]:
        """What arrives when an item is sent."""
        match fault.kind if fault else "":
            case "drop":
                return []
            case "reorder":
                held, self._held = self._held, [item]
                return held
            case "duplicate":
                items = [item, item]
            case "foreign":
                items = [self._foreign(item), item]
            case "empty_draft":
                items = [item | {"draft_tokens": []}] if "draft_tokens" in item else [item]
            case _:
                items = [item]
        held, self._held = self._held, []
        return items + held

    def rest(self) -> list[Item]:
        """What was held back and has nothing left to come behind."""
        held, self._held = self._held, []
        return held

    def _foreign(self, item: Item) -> Item:
        self._strangers += 1
        return stranger(self._strangers, draft="draft_tokens" in item)


def stranger(number: int, *, draft: bool) -> Item:
    """A result of a request that nobody here made."""
    request_id = f"foreign-{number}"
    if not draft:
        return {"request_id": request_id, "token": " stray"}
    return {
        "request_id": request_id,
        "peer_id": "12D3KooWForeign",
        "draft_tokens": [" stray"],
        "latency_ms": 1,
        "created_at_ms": time.time_ns() // 1_000_000,
    }
