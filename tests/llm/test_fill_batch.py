"""Tokens written straight into a reply are those that stand alone."""

from quill.llm.backend import Tokens
from quill.llm.columns import fill_batch, whole_tokens
from quill.proto import TokenBatch


async def test_a_batch_that_is_filled_has_the_tokens_that_stand_alone():
    for count in (0, 3, 1000):  # at once, and in a thread
        columns = Tokens(
            ids=list(range(count)), data=[b"\xe2\x82", b"\xac", b"x"] * (count // 3) + [b"y"] * (count % 3)
        )
        batch = TokenBatch()
        await fill_batch(batch, columns)
        assert list(batch.tokens) == await whole_tokens(columns)
        assert "".join(token.text for token in batch.tokens) == b"".join(columns.data).decode()
        assert [token.id for token in batch.tokens] == list(range(count))
