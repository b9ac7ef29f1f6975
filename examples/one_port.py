"""gRPC, gRPC-Web and Connect on one port: LLMService in pyvoy, which is Envoy with this Python inside.

usage: cd examples && pyvoy --port 8080 one_port:app
       python call.py http://127.0.0.1:8080
       python call.py grpc://127.0.0.1:8080
"""

import quill
from quill import adapters
from quill.llm import LLMServicer
from quill.proto import add_LLMServiceServicer_to_server

# No ports of its own: the host has one, and starts and stops the server with its lifespan.
server = quill.Server(grpc=None, http=None, reflection=True, compression=True)
add_LLMServiceServicer_to_server(LLMServicer(adapters.load("ngram")), server)
app = server.asgi_app
