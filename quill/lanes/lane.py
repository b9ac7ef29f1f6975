"""The lanes by name, and which of them a call takes."""

from __future__ import annotations

from typing import Literal, get_args

from quill.errors import InvalidUsage

Lane = Literal["inline", "chunks", "shm", "socket"]
"""``"inline"``: the elements are in the one message of a unary call. ``"chunks"``: they are in those of a stream.
``"shm"``: in memory that both processes map, on one machine. ``"socket"``: in a connection of their own."""

LANES: tuple[Lane, ...] = get_args(Lane)

LaneChoice = Literal["auto", "inline", "chunks", "shm", "socket"]
"""A lane, or ``"auto"`` for the best that both sides have for the sizes."""

LANE_KEY = "quill-lane"
"""The key of the trailing metadata in which a servicer says on which lane its reply came; of the request metadata, in
which a caller names the lane of a call that has no tensors in it."""

LOST = "lost"
"""What stands there instead where a lane did not bring the inputs, and no model was run."""

ENDS_KEY = "quill-lane-ends"
"""The key of the trailing metadata which says that the lane of the call is over, because its model keeps the inputs."""

COMPRESSION_KEY = "quill-tensor-compression"
"""The key of the request metadata in which a caller says how the elements of the reply may be compressed: ``zstd``."""

INLINE_BYTES = 8 * 1024 * 1024
"""Up to here one message is quicker than chunks."""

SHARED_BYTES = 512 * 1024
"""From here on shared memory that is at hand is quicker than one message."""


def choose(wanted: str, size_bytes: int) -> Lane:
    """The lane of a call.

    Args:
        wanted: What its caller said.
        size_bytes: The elements of the larger direction, as far as it is known.

    Raises:
        InvalidUsage: There is no such lane.
    """
    for lane in LANES:
        if wanted == lane:
            return lane
    if wanted != "auto":
        raise InvalidUsage(f"lane must be one of auto, {', '.join(LANES)}, got {wanted!r}")
    return "inline" if size_bytes <= INLINE_BYTES else "chunks"
