"""A backend's columns as the tokens of the contract."""

from __future__ import annotations

from quill.llm.backend import Candidate, Tokens
from quill.llm.text import TextAssembler
from quill.proto import DetokenizeRequest, GenerateRequest, Token, TokenBatch, TopLogprob
from quill.wire.large import offload

_INLINE_MESSAGES = 256
_INLINE_TOKENS_JOINED = 4096


def check_lengths(columns: Tokens) -> None:
    """Make sure that there is one of everything for each token.

    Raises:
        ValueError: The columns differ in length: the backend is wrong.
    """
    count = len(columns.data)
    for name, column in (
        ("ids", columns.ids),
        ("logprobs", columns.logprobs),
        ("top_logprobs", columns.top_logprobs),
        ("special", columns.special),
    ):
        if column is not None and len(column) != count:
            raise ValueError(f"the backend gave {len(columns.data)} tokens, and {name} for {len(column)}")


def wants_special_text(request: GenerateRequest | DetokenizeRequest) -> bool:
    """Whether control tokens add their data to the text: only where the request says so."""
    return request.HasField("skip_special_tokens") and not request.skip_special_tokens


def is_special(columns: Tokens, row: int) -> bool:
    """Whether a token is a control token."""
    return columns.special is not None and columns.special[row]


def token_of(columns: Tokens, row: int, *, position: int, candidates: int | None = None) -> Token:
    """One token, without its text.

    Args:
        columns: Columns of equal length.
        row: Which token.
        position: Its place in its sequence.
        candidates: How many top log probabilities to tell; None for no log probabilities at all.
    """
    token = Token()
    _tell(token, columns, row, position=position, candidates=candidates)
    return token


def _tell(token: Token, columns: Tokens, row: int, *, position: int, candidates: int | None) -> None:
    """Write one token, without its text, into a message."""
    token.position, token.data = position, columns.data[row]
    if columns.ids is not None:
        token.id = columns.ids[row]
    if is_special(columns, row):
        token.is_special = True
    if candidates is not None:
        logprob = None if columns.logprobs is None else columns.logprobs[row]
        if logprob is not None:
            token.logprob = logprob
        if columns.top_logprobs is not None:
            token.top_logprobs.extend(map(_top_logprob, columns.top_logprobs[row][:candidates]))


async def whole_tokens(columns: Tokens, *, special_text: bool = False, candidates: int | None = None) -> list[Token]:
    """Tokens with their texts, numbered from 0; nothing comes after them.

    Args:
        columns: What a backend or a tokenizer told.
        special_text: Whether control tokens add their data to the text.
        candidates: As for ``token_of``.

    Raises:
        ValueError: The columns differ in length.
    """
    check_lengths(columns)
    batch = TokenBatch()
    messages = len(columns.data) * (1 + (candidates or 0))
    await offload(messages, _INLINE_MESSAGES, _fill, batch, columns, special_text, candidates)
    return list(batch.tokens)


async def fill_batch(batch: TokenBatch, columns: Tokens) -> None:
    """Write tokens with their texts into a message, numbered from 0; as ``whole_tokens``, for any number of them.

    Messages of their own would take six times the memory: 2 GB for the tokens of 4 MB of text.

    Raises:
        ValueError: The columns differ in length.
    """
    check_lengths(columns)
    await offload(len(columns.data), _INLINE_MESSAGES, _fill, batch, columns, False, None)


async def whole_text(columns: Tokens, *, special_text: bool = False) -> str:
    """The text of tokens; bytes that are no UTF-8 appear as U+FFFD.

    Args:
        columns: What a tokenizer told.
        special_text: As for ``whole_tokens``.

    Raises:
        ValueError: The columns differ in length.
    """
    check_lengths(columns)
    return await offload(len(columns.data), _INLINE_TOKENS_JOINED, _whole_text, columns, special_text)


def _whole_text(columns: Tokens, special_text: bool) -> str:
    data = (text_data(columns, row, special_text=special_text) for row in range(len(columns.data)))
    return b"".join(data).decode("utf-8", errors="replace")


def _fill(batch: TokenBatch, columns: Tokens, special_text: bool, candidates: int | None) -> None:
    assembler = TextAssembler()
    texts: list[str] = []
    for row in range(len(columns.data)):
        _tell(batch.tokens.add(), columns, row, position=row, candidates=candidates)
        texts += assembler.push(text_data(columns, row, special_text=special_text))
    texts += assembler.finish()
    for token, text in zip(batch.tokens, texts, strict=True):
        token.text = text


def text_data(columns: Tokens, row: int, *, special_text: bool) -> bytes:
    """The bytes that a token adds to the text."""
    return b"" if is_special(columns, row) and not special_text else columns.data[row]


def _top_logprob(candidate: Candidate) -> TopLogprob:
    text = candidate.data.decode("utf-8", errors="replace")
    return TopLogprob(id=candidate.id, text=text, logprob=candidate.logprob, data=candidate.data)
