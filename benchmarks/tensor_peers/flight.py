"""Arrow Flight: DoPut and DoGet of one column of float32.

usage: python flight.py serve | python flight.py drive ADDRESS

Variant ``one`` has all in one record batch, contiguous for its receiver; ``many`` has batches of 1 MiB, which are
not.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.flight as fl
from work import ITEM_BYTES, Array, Receipt, announce, drive, tensor

_SCHEMA = pa.schema([("x", pa.float32())])
_BATCH_ITEMS = 1024 * 1024 // ITEM_BYTES


def _batches(array: Array, variant: str) -> Iterator[Any]:
    """Views, not copies."""
    column = pa.array(array)
    items = len(column) if variant == "one" else _BATCH_ITEMS
    for start in range(0, len(column), items):
        yield pa.record_batch([column.slice(start, items)], _SCHEMA)


class _Server(fl.FlightServerBase):  # type: ignore[misc]  # pyarrow has no types
    def do_put(self, context: Any, descriptor: Any, reader: Any, writer: Any) -> None:
        del context, descriptor
        arrays = [chunk.data.column(0).to_numpy() for chunk in reader]
        writer.write(json.dumps(Receipt.of(*arrays).values()).encode())

    def do_get(self, context: Any, ticket: Any) -> Any:
        del context
        order = json.loads(ticket.ticket)
        batches = _batches(tensor(order["size"]), order["variant"])
        return fl.GeneratorStream(_SCHEMA, batches)


def serve() -> None:
    """Until standard input ends."""
    server = _Server("grpc://127.0.0.1:0")
    announce(f"127.0.0.1:{server.port}")
    thread = threading.Thread(target=server.serve, daemon=True)
    thread.start()
    sys.stdin.read()
    server.shutdown()


class FlightDriver:
    """One client."""

    def __init__(self, address: str) -> None:
        self._client = fl.FlightClient(f"grpc://{address}")

    def put(self, array: Array, variant: str) -> Receipt:
        """One DoPut."""
        writer, metadata = self._client.do_put(fl.FlightDescriptor.for_path("x"), _SCHEMA)
        for batch in _batches(array, variant):
            writer.write_batch(batch)
        writer.done_writing()
        receipt = Receipt(*json.loads(metadata.read().to_pybytes()))
        writer.close()
        return receipt

    def get(self, size_bytes: int, variant: str) -> list[Array]:
        """One DoGet; with many batches their arrays, because there is no one."""
        ticket = fl.Ticket(json.dumps({"size": size_bytes, "variant": variant}))
        return [chunk.data.column(0).to_numpy() for chunk in self._client.do_get(ticket)]


if __name__ == "__main__":
    serve() if sys.argv[1] == "serve" else drive(FlightDriver)
