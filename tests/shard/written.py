"""What the sidecar for development writes, from its model alone."""

from contextlib import aclosing

from quill.testing.sidecar.writer import Writer


async def written(prompt, count, peer=0):
    """The first tokens that follow a prompt."""
    writer, tokens = Writer(), []
    async with aclosing(writer.tokens(prompt, peer=peer)) as pieces:
        async for piece in pieces:
            tokens.append(piece)
            if len(tokens) == count:
                return tokens
    raise AssertionError("the writer ended by itself")
