"""Text split into a model's tokens, and tokens joined to text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, SupportsIndex

from quill.client.calls import Question
from quill.client.llm.conversation import ChatMessage, chat_messages
from quill.client.llm.fields import check_one, filled, token_ids
from quill.errors import Internal
from quill.token import Token

if TYPE_CHECKING:
    from quill import proto


@dataclass(frozen=True, slots=True)
class Tokenization:
    """The tokens of a text. Their texts joined are the text; a control token adds none. ``len()`` counts them."""

    ids: tuple[int, ...]
    """The id of each token, for ``detokenize`` and for prompts."""
    tokens: tuple[Token, ...]
    """The tokens, in order, with their texts and raw bytes."""
    context_length: int = 0
    """How many tokens the model can take; 0 where unknown."""

    @property
    def texts(self) -> tuple[str, ...]:
        """What each token adds to the text: empty while a character is incomplete, and for a control token."""
        return tuple(token.text or "" for token in self.tokens)

    def __len__(self) -> int:
        return len(self.tokens)


def tokenizing(
    text: str | None,
    *,
    messages: Sequence[ChatMessage | proto.ChatMessage] | None,
    model: str | None,
    add_special_tokens: bool | None,
) -> Question[Tokenization]:
    """The call for what ``LLM.tokenize`` was given.

    Raises:
        InvalidUsage: There is not exactly one of text and messages, or an option does not fit.
        InvalidType: An option is of the wrong type.
    """
    from quill.proto import TokenizeRequest

    values = {"text": text, "messages": messages, "model": model, "add_special_tokens": add_special_tokens}
    check_one(values, ("text", "messages"))
    return Question("Tokenize", filled(TokenizeRequest(), values, {"messages": chat_messages}), _tokenization)


def detokenizing(ids: Iterable[SupportsIndex], *, model: str | None, skip_special_tokens: bool | None) -> Question[str]:
    """The call for what ``LLM.detokenize`` was given.

    Raises:
        InvalidUsage: An id or an option is out of range.
        InvalidType: An id or an option is of the wrong type.
    """
    from quill.proto import DetokenizeRequest

    request = DetokenizeRequest(token_ids=token_ids("token_ids", ids))
    options = {"model": model, "skip_special_tokens": skip_special_tokens}
    return Question("Detokenize", filled(request, options, {}), _text)


def _tokenization(reply: proto.TokenizeResponse) -> Tokenization:
    tokens = tuple(map(Token.from_proto, reply.tokens.tokens))
    ids = tuple(token.id for token in tokens if token.id is not None)
    if len(ids) < len(tokens):
        raise Internal(f"the reply has {len(tokens)} tokens, and ids for {len(ids)}")
    return Tokenization(ids, tokens, reply.context_length)


def _text(reply: proto.DetokenizeResponse) -> str:
    return reply.text
