"""One token of a sequence, and the candidates for its place.

Log probabilities are natural logarithms. They travel as binary32, so one that needs more digits arrives rounded.
"""

from __future__ import annotations

import math
from codecs import utf_8_decode
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from quill.token.fields import check_bool, check_message, check_text, items, parsed, raw, real, uint32

if TYPE_CHECKING:
    from quill import proto

_EOS_IDS = frozenset((0, 1, 2))
"""The ids under which the common vocabularies keep their control tokens."""

_set = object.__setattr__
"""How a frozen value puts what it was given into its final form."""


@dataclass(frozen=True, slots=True)
class TopLogprob:
    """A token that could have stood at a position, and its probability.

    Raises:
        InvalidUsage: ``id`` is outside 0 to 2**32 - 1, or ``text`` has no UTF-8.
        InvalidType: A value is of a type that its field does not have.
    """

    id: int | None
    """The id in the model's vocabulary; None where the engine does not tell ids."""
    text: str
    """The candidate's bytes as text; bytes that are no UTF-8 appear as U+FFFD."""
    logprob: float
    """The natural logarithm of its probability."""
    data: bytes = b""
    """The candidate's raw bytes."""

    def __post_init__(self) -> None:
        _set(self, "id", None if self.id is None else uint32("id", self.id))
        check_text("text", self.text)
        _set(self, "logprob", real("logprob", self.logprob))
        _set(self, "data", raw("data", self.data))

    def to_proto(self) -> proto.TopLogprob:
        """The inference.v1.TopLogprob message."""
        from quill import proto

        return proto.TopLogprob(id=self.id, text=self.text, logprob=self.logprob, data=self.data)

    @classmethod
    def from_proto(cls, message: proto.TopLogprob) -> TopLogprob:
        """The candidate of an inference.v1.TopLogprob message.

        Raises:
            InvalidType: ``message`` is none.
        """
        from quill import proto

        check_message(message, proto.TopLogprob)
        return cls(message.id if message.HasField("id") else None, message.text, message.logprob, message.data)


class _Slots:
    """The layout of a token."""

    __slots__ = ("data", "id", "is_special", "logprob", "position", "text", "top_logprobs")


@dataclass(frozen=True, slots=True, repr=False)
class Token(_Slots):
    """One token of one sequence. Immutable; compares by value and can be a dictionary key.

    Raises:
        InvalidUsage: ``id`` or ``position`` is outside 0 to 2**32 - 1, or ``text`` has no UTF-8.
        InvalidType: A value is of a type that its field does not have.
    """

    id: int | None
    """The id in the model's vocabulary; None where the engine does not tell ids."""
    position: int
    """The place of the token within its own sequence, from 0."""
    text: str | None = None
    """What the token adds to the text: empty while a character is incomplete, None where it is not told."""
    logprob: float | None = None
    """The natural logarithm of the token's probability; None where it is not told."""
    is_special: bool = False
    """Whether it is a control token that stands for no text."""
    data: bytes = field(default=b"", kw_only=True)
    """The raw bytes of the token: the text may be incomplete UTF-8."""
    top_logprobs: tuple[TopLogprob, ...] = field(default=(), kw_only=True)
    """The most probable tokens at this position, most probable first."""

    def __post_init__(self) -> None:
        if self.id is not None:
            _set(self, "id", uint32("id", self.id))
        _set(self, "position", uint32("position", self.position))
        if self.text is not None:
            check_text("text", self.text)
        if self.logprob is not None:
            _set(self, "logprob", real("logprob", self.logprob))
        check_bool("is_special", self.is_special)
        if type(self.data) is not bytes:
            _set(self, "data", raw("data", self.data))
        if self.top_logprobs != ():
            _set(self, "top_logprobs", tuple(items("top_logprobs", self.top_logprobs, TopLogprob)))

    @classmethod
    def with_text(cls, id: int | None, text: str, position: int, logprob: float | None = None) -> Token:  # noqa: A002  # the documented name
        """A token and its text, in the order of the documents."""
        return cls(id, position, text, logprob)

    def prob(self) -> float | None:
        """The probability: exp(logprob); None where no logprob is told."""
        if self.logprob is None:
            return None
        try:
            return math.exp(self.logprob)
        except OverflowError:
            return math.inf

    def is_eos(self) -> bool:
        """Whether it ends a sequence by the common convention: special, with the id 0, 1 or 2."""
        return self.is_special and self.id in _EOS_IDS

    def to_dict(self) -> dict[str, Any]:
        """The token for JSON or a table; without ``data`` and ``top_logprobs``."""
        return {
            "id": self.id,
            "text": self.text,
            "logprob": self.logprob,
            "position": self.position,
            "is_special": self.is_special,
        }

    def encode(self) -> bytes:
        """The serialized inference.v1.Token."""
        return self.to_proto().SerializeToString()

    @classmethod
    def decode(cls, data: bytes | bytearray | memoryview) -> Token:
        """The token of a serialized inference.v1.Token.

        Raises:
            InvalidUsage: The bytes are no such message.
            InvalidType: ``data`` is none of bytes, bytearray and memoryview.
        """
        from quill import proto

        return cls.from_proto(parsed(proto.Token, data))

    def to_proto(self) -> proto.Token:
        """The inference.v1.Token message."""
        from quill import proto

        return proto.Token(
            id=self.id,
            text=self.text,
            logprob=self.logprob,
            position=self.position,
            is_special=self.is_special,
            data=self.data,
            top_logprobs=[candidate.to_proto() for candidate in self.top_logprobs],
        )

    @classmethod
    def from_proto(cls, message: proto.Token) -> Token:
        """The token of an inference.v1.Token message.

        Raises:
            InvalidType: ``message`` is none.
        """
        from quill import proto

        check_message(message, proto.Token)
        return cls(
            message.id if message.HasField("id") else None,
            message.position,
            message.text if message.HasField("text") else None,
            message.logprob if message.HasField("logprob") else None,
            message.is_special,
            data=message.data,
            top_logprobs=tuple(map(TopLogprob.from_proto, message.top_logprobs)),
        )

    def __repr__(self) -> str:
        text = "" if self.text is None else f", text={self.text!r}"
        return f"Token(id={self.id}{text}, pos={self.position})"


class _Draft(_Slots):
    """A token that can be filled in; then it is called one. Filling in a frozen one takes four times as long."""

    __slots__ = ()

    def __init__(self, id_: int | None, position: int, text: str, logprob: float | None, data: bytes) -> None:
        self.id = id_
        self.position = position
        self.text = text
        self.logprob = logprob
        self.is_special = False
        self.data = data
        self.top_logprobs: tuple[TopLogprob, ...] = ()


def tokens_of_columns(
    position: int,
    incomplete: bytes,
    ids: Sequence[int] | None,
    logprobs: Sequence[float] | None,
    data: Iterable[bytes],
) -> tuple[Token, ...]:
    """The tokens of columns whose values are known to be right: nothing is checked.

    Args:
        position: The place of the first within its sequence.
        incomplete: The bytes of a character that is not complete, before them.
        ids: Their ids, or None.
        logprobs: Their log probabilities, or None.
        data: Their raw bytes. The texts are what a decoder of UTF-8 makes of these, one after the other.
    """
    tokens = []
    for row, piece in enumerate(data):
        if not incomplete and piece.isascii():
            text = piece.decode()
        else:
            text, used = utf_8_decode(incomplete + piece, "replace", False)
            incomplete = (incomplete + piece)[used:]
        id_ = None if ids is None else ids[row]
        token: Any = _Draft(id_, position + row, text, None if logprobs is None else logprobs[row], piece)
        token.__class__ = Token
        tokens.append(token)
    return tuple(tokens)
