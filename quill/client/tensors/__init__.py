"""inference.v1.TensorService for callers: a blocking and an asyncio shell over one `Inference`.

``inference`` knows what a call sends on which lane and what its reply means; ``destination`` where outputs are written;
``result`` and ``signature`` are what callers get. They wait for nothing.
"""
