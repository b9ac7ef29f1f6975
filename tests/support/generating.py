"""One generation through the sidecar client, from its request to its end."""

import time
from dataclasses import dataclass

from quill.errors import RpcError
from quill.generation import StreamInterrupted
from quill.shard.sidecar import Ended, Piece, ShardRequest


@dataclass
class Outcome:
    pieces: list
    end: Ended | None
    error: RpcError | None
    seconds: float

    @property
    def text(self):
        return "".join(self.pieces)

    @property
    def code(self):
        return None if self.error is None else self.error.code


async def generate(sidecar, prompt="Alice was", **request):
    """What came of it. An error that carries text must carry what was delivered, and one without must not."""
    begun_s = time.monotonic()
    pieces, end, error = [], None, None
    try:
        async for event in sidecar.generate(ShardRequest(prompt=prompt, **request)):
            assert end is None, "something came after the end"
            if isinstance(event, Piece):
                assert event.text
                pieces.append(event.text)
            else:
                end = event
    except RpcError as raised:
        error = raised
        if pieces:
            assert isinstance(error, StreamInterrupted)
            assert error.text == "".join(pieces)
        else:
            assert not isinstance(error, StreamInterrupted)
    assert (end is None) != (error is None)
    return Outcome(pieces, end, error, time.monotonic() - begun_s)
