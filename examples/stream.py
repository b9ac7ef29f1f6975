"""Stream a generation from asyncio, and see what is left when it breaks.

usage: python examples/stream.py [URL]
"""

import asyncio
import sys

import quill

URL = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8080"


async def main():
    async with quill.AsyncQuillClient(URL) as client:
        try:
            async with client.llm.stream("The Queen of Hearts", max_tokens=40, seed=7, stop=["."]) as stream:
                async for delta in stream:
                    print(delta.text, end="", flush=True)
        except quill.StreamInterrupted as broken:
            print(f"\ncut after {len(broken.tokens)} tokens: {broken}")
        else:
            generation = await stream.result()
            print(f"\n{generation.finish_reason}, {generation.usage.completion_tokens} tokens")


asyncio.run(main())
