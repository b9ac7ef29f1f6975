"""An engine of your own behind LLMService: it says the prompt backwards, letter by letter.

Runs the server and one client in this process.

usage: python examples/own_backend.py
"""

import asyncio

import quill
from quill.llm import LLMServicer, ModelInfo, Tokens
from quill.proto import add_LLMServiceServicer_to_server


class Backwards:
    name = "backwards"

    def models(self):
        return [ModelInfo(name="backwards", weights_origin="no weights: it reverses the prompt")]

    async def generate(self, request, *, model):
        for letter in reversed(request.prompt):
            yield Tokens(data=[letter.encode()])

    async def aclose(self):
        pass


async def main():
    servicer = LLMServicer(Backwards())
    server = quill.Server(grpc="127.0.0.1:0", http="127.0.0.1:0")
    add_LLMServiceServicer_to_server(servicer, server)
    async with server:
        async with quill.AsyncQuillClient("grpc://" + server.grpc_address) as client:
            generation = await client.llm.generate("stressed")
            print(generation.text)
        await servicer.aclose()


asyncio.run(main())
