"""What every peer does, and how it is told: tensors of float32 put to a server and got from it.

A server holds what was put as one contiguous array, looks at its first and last element and answers with a receipt.
What it gives out was made before. A driver is told one line of JSON at a time and answers with the milliseconds that
each transfer took.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol, TypeAlias

import numpy as np

Array: TypeAlias = "np.ndarray[Any, np.dtype[np.float32]]"

ITEM_BYTES = 4


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a server tells of a tensor that was put."""

    size_bytes: int
    first: int
    """The bits of the first element."""
    last: int

    @classmethod
    def of(cls, *parts: Array) -> Receipt:
        """Of an array that has arrived, or of the parts of one."""
        ends = parts[0][:1].view(np.uint32), parts[-1][-1:].view(np.uint32)
        return cls(sum(part.nbytes for part in parts), int(ends[0][0]), int(ends[1][0]))

    def values(self) -> tuple[int, int, int]:
        """As integers below 2**63."""
        return self.size_bytes, self.first, self.last


class Driver(Protocol):
    """A client of one peer. Blocking: a transfer is over when the call returns."""

    def put(self, array: Array, variant: str) -> Receipt:
        """Send a tensor. Returns the server's receipt."""
        ...

    def get(self, size_bytes: int, variant: str) -> list[Array]:
        """Receive a tensor of this size: one array, or the parts of one where the peer gives no more."""
        ...


@cache
def tensor(size_bytes: int, content: str = "float32") -> Array:
    """A tensor, the same in every process.

    Args:
        size_bytes: Its size, a multiple of 4.
        content: What its bytes are: ``float32`` random numbers, ``tokens`` ids of 32 bits as a tokenizer gives them,
            ``json`` text.
    """
    random = np.random.default_rng(size_bytes)
    count = size_bytes // ITEM_BYTES
    if content == "tokens":
        return random.zipf(1.3, count).clip(0, 128_000).astype(np.uint32).view(np.float32)
    if content == "json":
        rows = [json.dumps({"id": row, "score": float(score)}) for row, score in enumerate(random.random(count // 8))]
        return np.frombuffer(",".join(rows).encode()[: count * ITEM_BYTES], np.float32)
    return random.random(count, np.float32)


def announce(address: str) -> None:
    """Say where a server listens."""
    print(json.dumps({"address": address}), flush=True)


def drive(make: Callable[[str], Driver]) -> None:
    """Do what standard input says until it ends; the address is the last argument of the program."""
    driver = make(sys.argv[-1])
    for line in sys.stdin:
        order = json.loads(line)
        array = tensor(order["size_bytes"], order["content"])
        ms = [_transfer(driver, order["way"], array, order["variant"]) for _ in range(order["count"])]
        print(json.dumps({"ms": ms}), flush=True)


def _transfer(driver: Driver, way: str, array: Array, variant: str) -> float:
    """One transfer, checked; how long it took in milliseconds."""
    began_s = time.perf_counter()
    if way == "put":
        receipt = driver.put(array, variant)
        taken_s = time.perf_counter() - began_s
    else:
        parts = driver.get(array.nbytes, variant)
        taken_s = time.perf_counter() - began_s
        receipt = Receipt.of(*parts)
    expected = Receipt.of(array)
    if receipt != expected:
        raise ValueError(f"{way} of {array.nbytes} bytes: {receipt} has arrived and {expected} was sent")
    return taken_s * 1000
