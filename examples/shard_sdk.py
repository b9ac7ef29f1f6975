"""The Shard SDK against a sidecar: tokens as they come, several prompts at once, and what is left when it breaks.

`quill sidecar` starts a sidecar for development.

usage: python examples/shard_sdk.py [URL] [http_poll|websocket|quill]
"""

import asyncio
import sys

import quill
from quill.shard import ShardDistributedModel

URL = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:9091"
TRANSPORT = sys.argv[2] if sys.argv[2:] else "http_poll"
MODEL = "" if TRANSPORT == "quill" else "shard/network-default"  # a Quill server with one model needs no name


async def main():
    async with ShardDistributedModel.from_pretrained(MODEL, router_url=URL, transport=TRANSPORT) as model:
        try:
            async for token in model.stream_generate("The Queen of Hearts", max_new_tokens=40, timeout_ms=30_000):
                print(token, end="", flush=True)
        except quill.StreamInterrupted as broken:
            print(f"\ncut after {len(broken.text)} characters: {broken}")
        prompts = ["Alice was", "The Hatter", "Down the"]
        answers = await asyncio.gather(*(model.generate(prompt, max_new_tokens=12) for prompt in prompts))
        for prompt, answer in zip(prompts, answers, strict=True):
            print(f"\n{prompt}:{answer}")


asyncio.run(main())
