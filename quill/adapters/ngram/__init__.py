"""The embedded model: an n-gram language model of one public-domain book, small enough to ship with the package.

``tokenizer`` splits text into subword tokens, ``model`` gives the probabilities of the next token, ``sampling`` and
``choices`` decide which token may come and draw it, and ``options`` and ``sequence`` turn a request into tokens: all of
it synchronous. ``backend``, ``vocabulary`` and ``embedder`` put that behind the seams of ``quill.llm``.
"""
