"""Consecutive tokens of one sequence."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, SupportsIndex, overload

from quill.token.fields import check_bool, check_kind, check_message, check_text, items, parsed, uint32
from quill.token.token import Token

if TYPE_CHECKING:
    from quill import proto


class TokenBatch:
    """Consecutive tokens of one sequence, which can be added to. Compares by value.

    Args:
        sequence_id: Which sequence the tokens belong to, 0 to 2**32 - 1; None where there is but one.

    Raises:
        InvalidUsage: ``sequence_id`` is outside its range.
        InvalidType: ``sequence_id`` is neither int nor None.
    """

    __slots__ = ("_is_final", "_metadata", "_sequence_id", "_tokens")

    def __init__(self, sequence_id: int | None = None) -> None:
        self._tokens: list[Token] = []
        self._metadata: dict[str, str] = {}
        self.sequence_id = sequence_id
        self.is_final = False

    @classmethod
    def from_tokens(cls, tokens: Iterable[Token], sequence_id: int | None = None) -> TokenBatch:
        """A batch of these tokens."""
        batch = cls(sequence_id)
        batch.extend(tokens)
        return batch

    @property
    def sequence_id(self) -> int | None:
        """Which sequence the tokens belong to, 0 to 2**32 - 1, or None. Can be set."""
        return self._sequence_id

    @sequence_id.setter
    def sequence_id(self, value: int | None) -> None:
        self._sequence_id = None if value is None else uint32("sequence_id", value)

    @property
    def is_final(self) -> bool:
        """Whether the sequence ends with this batch. Can be set."""
        return self._is_final

    @is_final.setter
    def is_final(self, value: bool) -> None:
        check_bool("is_final", value)
        self._is_final = value

    def add(self, token: Token) -> None:
        """Append a token.

        Raises:
            InvalidType: It is no Token.
        """
        check_kind("add", token, Token)
        self._tokens.append(token)

    def extend(self, tokens: Iterable[Token]) -> None:
        """Append tokens: all of them, or none where one is refused.

        Raises:
            InvalidType: One is no Token, or ``tokens`` is nothing to iterate over.
        """
        self._tokens += items("tokens", tokens, Token)

    def tokens(self) -> list[Token]:
        """The tokens; a new list."""
        return list(self._tokens)

    def get(self, index: int) -> Token | None:
        """The token at ``index``, from 0; None outside, and so for a negative one, which ``batch[-1]`` takes."""
        return self._tokens[index] if 0 <= index < len(self._tokens) else None

    def text(self) -> str:
        """The texts joined; a token without text adds nothing."""
        return "".join(token.text for token in self._tokens if token.text is not None)

    def token_ids(self) -> list[int | None]:
        """The id of each token, so None in the places of those that have none."""
        return [token.id for token in self._tokens]

    def positions(self) -> list[int]:
        """The position of each token."""
        return [token.position for token in self._tokens]

    def clear(self) -> None:
        """Remove the tokens; sequence id, metadata and ``is_final`` stay."""
        self._tokens.clear()

    def is_empty(self) -> bool:
        """Whether there is no token."""
        return not self._tokens

    def to_dicts(self) -> list[dict[str, Any]]:
        """``to_dict()`` of each token."""
        return [token.to_dict() for token in self._tokens]

    def set_metadata(self, key: str, value: str) -> None:
        """Keep a text under a key, in place of what was there.

        Raises:
            InvalidUsage: Key or value has no UTF-8.
            InvalidType: Key or value is no str.
        """
        check_text("metadata key", key)
        check_text(f"metadata {key!r}", value)
        self._metadata[key] = value

    def get_metadata(self, key: str) -> str | None:
        """The text under a key; None where there is none."""
        return self._metadata.get(key)

    def metadata_dict(self) -> dict[str, str]:
        """All metadata; a new dict."""
        return dict(self._metadata)

    def encode(self) -> bytes:
        """The serialized inference.v1.TokenBatch; equal batches give equal bytes."""
        return self.to_proto().SerializeToString(deterministic=True)

    @classmethod
    def decode(cls, data: bytes | bytearray | memoryview) -> TokenBatch:
        """The batch of a serialized inference.v1.TokenBatch.

        Raises:
            InvalidUsage: The bytes are no such message.
            InvalidType: ``data`` is none of bytes, bytearray and memoryview.
        """
        from quill import proto

        return cls.from_proto(parsed(proto.TokenBatch, data))

    def to_proto(self) -> proto.TokenBatch:
        """The inference.v1.TokenBatch message."""
        from quill import proto

        return proto.TokenBatch(
            tokens=[token.to_proto() for token in self._tokens],
            sequence_id=self._sequence_id,
            is_final=self._is_final,
            metadata=self._metadata,
        )

    @classmethod
    def from_proto(cls, message: proto.TokenBatch) -> TokenBatch:
        """The batch of an inference.v1.TokenBatch message.

        Raises:
            InvalidType: ``message`` is none.
        """
        from quill import proto

        check_message(message, proto.TokenBatch)
        sequence_id = message.sequence_id if message.HasField("sequence_id") else None
        batch = cls.from_tokens(map(Token.from_proto, message.tokens), sequence_id)
        batch.is_final = message.is_final
        for key, value in message.metadata.items():
            batch.set_metadata(key, value)
        return batch

    def __len__(self) -> int:
        return len(self._tokens)

    def __iter__(self) -> Iterator[Token]:
        return iter(self._tokens)

    @overload
    def __getitem__(self, index: SupportsIndex) -> Token: ...
    @overload
    def __getitem__(self, index: slice) -> list[Token]: ...
    def __getitem__(self, index: SupportsIndex | slice) -> Token | list[Token]:
        return self._tokens[index]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TokenBatch):
            return NotImplemented
        return (self._tokens, self._sequence_id, self._is_final, self._metadata) == (
            other._tokens,
            other._sequence_id,
            other._is_final,
            other._metadata,
        )

    __hash__ = None  # type: ignore[assignment]  # a batch changes

    def __repr__(self) -> str:
        return f"TokenBatch(sequence_id={self._sequence_id}, tokens={len(self._tokens)}, is_final={self._is_final})"
