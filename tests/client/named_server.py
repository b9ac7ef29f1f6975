"""A server process for tests of balancing: `python named_server.py ADDRESS NAME`.

Prints its gRPC address, answers every call with its name, and drains when a line comes on standard input.
"""

import asyncio
import sys

import grpc

from quill.server.server import Server

SERVICE, METHOD = "named.v1.Named", "Who"


async def main(address, name):
    async def who(request, context):
        return name.encode()

    server = Server(address, None)
    handlers = {METHOD: grpc.unary_unary_rpc_method_handler(who)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    async with server:
        print(server.grpc_address, flush=True)  # noqa: T201 - the test reads it
        await asyncio.to_thread(sys.stdin.readline)
        server.drain()
        print("drained", flush=True)  # noqa: T201 - likewise
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
