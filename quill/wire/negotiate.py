"""Which encoding a reply may have: what the client says it accepts, weighed.

Source: RFC 9110, section 12.5.3. Connect's and gRPC's own headers are the same lists, without weights.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quill.wire.compression import MIN_COMPRESS_BYTES

if TYPE_CHECKING:
    from quill.wire.compression import Encoding

_OFFERED: tuple[Encoding, ...] = ("zstd", "gzip")
"""The preferred one first, among those that the client likes equally."""
_WEIGHT = re.compile(r"(?:0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?)")


@dataclass(frozen=True, slots=True)
class Accepted:
    """What a client accepts."""

    encoding: Encoding = "identity"
    """The best encoding that both sides know; ``identity`` where there is none."""
    takes_identity: bool = True
    """Whether the client also takes replies as they are."""

    def of(self, size_bytes: int) -> Encoding:
        """The encoding of a message of this size: nothing is gained on small ones, and an empty one has none."""
        if size_bytes >= MIN_COMPRESS_BYTES or (size_bytes and not self.takes_identity):
            return self.encoding
        return "identity"


def accepted(header: str) -> Accepted:
    """What an Accept-Encoding header allows.

    A client that refuses everything, ``identity`` included, is answered in ``identity``: RFC 9110 leaves a server
    that choice, and an error in place of a reply would help nobody.

    Args:
        header: All values of the header, joined with commas; empty where there is none. What is not understood in
            it counts as refused.
    """
    weights = dict(_weighed(element) for element in header.split(","))
    others = weights.get("*", 0.0)
    best: Encoding = max(_OFFERED, key=lambda encoding: weights.get(encoding, others))
    best_weight = weights.get(best, others)
    identity_weight = weights.get("identity", others if "*" in weights else None)
    if best_weight == 0 or (identity_weight is not None and identity_weight > best_weight):
        return Accepted()
    return Accepted(best, takes_identity=identity_weight != 0)


def _weighed(element: str) -> tuple[str, float]:
    """An element of the list and its weight from 0 to 1."""
    name, *parameters = (part.strip().lower() for part in element.split(";"))
    for parameter in parameters:
        key, _, value = parameter.partition("=")
        if key.strip() == "q":
            value = value.strip()
            return name, float(value) if _WEIGHT.fullmatch(value) else 0.0
    return name, 1.0
