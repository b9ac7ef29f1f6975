"""JSON of calls to protobuf and back, in threads where it would hold up other calls.

A token of a reply takes some 6 µs, so that a reply of a megabyte would stop the event loop for a second.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from google.protobuf.descriptor import Descriptor

from quill.limits import Limits
from quill.wire import transcode
from quill.wire.large import INLINE_JSON_BYTES, INLINE_PROTO_BYTES

_LARGE_BYTES = 256 * 1024


class Transcoder:
    """The transcoding of one server.

    Two threads, one for the large messages, so that the others do not wait behind them. More would not make Python
    faster, and each one that runs makes the event loop wait for its turn 5 ms longer.

    Args:
        limits: How deep messages may be nested in JSON, and how large its text may become.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._threads = ThreadPoolExecutor(1, "quill-json")
        self._threads_for_large = ThreadPoolExecutor(1, "quill-large-json")

    def close(self) -> None:
        """Begin nothing more; the threads end when they are done."""
        for threads in (self._threads, self._threads_for_large):
            threads.shutdown(wait=False, cancel_futures=True)

    async def to_proto(self, descriptor: Descriptor, document: bytes, *, ignore_unknown_fields: bool) -> bytes:
        """As `transcode.json_to_proto`."""
        work = functools.partial(
            transcode.json_to_proto,
            descriptor,
            document,
            ignore_unknown_fields=ignore_unknown_fields,
            max_depth=self._limits.max_message_depth,
        )
        return await self._run(work, len(document), INLINE_JSON_BYTES)

    async def to_json(self, descriptor: Descriptor, data: bytes) -> bytes:
        """As `transcode.proto_to_json`."""
        work = functools.partial(transcode.proto_to_json, descriptor, data, max_bytes=self._limits.max_reply_bytes)
        return await self._run(work, len(data), INLINE_PROTO_BYTES)

    async def _run(self, work: Callable[[], bytes], size_bytes: int, inline_bytes: int) -> bytes:
        if size_bytes <= inline_bytes:
            return work()
        threads = self._threads if size_bytes <= _LARGE_BYTES else self._threads_for_large
        return await asyncio.get_running_loop().run_in_executor(threads, work)
