"""Embed some texts, and find the one that is closest to a question by cosine.

The embedded model knows nothing of meaning: its embeddings are hashed features of tokens, so close means that the same
tokens occur.

usage: python examples/embed.py [URL]
"""

import sys

import quill

URL = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8080"

TEXTS = [
    "The Queen of Hearts, she made some tarts",
    "Alice was beginning to get very tired of sitting by her sister",
    "Twinkle, twinkle, little bat! How I wonder what you're at!",
]

with quill.QuillClient(URL) as client:
    texts = client.llm.embed(TEXTS, normalize=True)
    question = client.llm.embed("Who made the tarts?", normalize=True)

# Vectors of length 1: their product is the cosine of the angle between them.
cosines = texts.vectors @ question[0]
for cosine, text in sorted(zip(cosines, TEXTS, strict=True), reverse=True):
    print(f"{cosine:.3f}  {text}")
print(f"{texts.dimensions} dimensions, {texts.usage.prompt_tokens} tokens, {texts.model}")
