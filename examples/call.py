"""Call any service with a dict, over Connect or gRPC.

usage: python examples/call.py [URL]
"""

import sys

import quill

URL = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8080"

with quill.QuillClient(URL) as client:
    answer = client.call_json(
        "inference.v1.LLMService", "Generate", {"prompt": "Alice was", "max_tokens": 8, "seed": 7}
    )
    print(answer["text"])
    print(answer["usage"])
