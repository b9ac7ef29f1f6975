"""inference.v1.LLMService for callers: a blocking and an asyncio shell over one set of requests and replies.

``quill.client.calls`` is the seam to the clients. ``request``, ``conversation``, ``embeddings``, ``tokenization``,
``questions`` and ``fold`` turn what a caller writes into messages, and messages into values; they wait for nothing.
"""
