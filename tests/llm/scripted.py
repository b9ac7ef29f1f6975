"""A backend that does what a test tells it, and a real gRPC server in front of it."""

import asyncio
import gc
from contextlib import asynccontextmanager, contextmanager

import grpc

from quill.generation import Finish, FinishReason
from quill.llm import Finished, LLMServicer, ModelInfo, Tokens
from quill.llm.journal import Journal
from quill.proto import LLMServiceStub, add_LLMServiceServicer_to_server

LIMIT_S = 10
"""For what should take milliseconds: a test that hangs fails."""

MODEL = ModelInfo(name="scripted-1", aliases=("scripted",), context_length=4096, vocab_size=1000, default_max_tokens=50)


class ScriptedBackend:
    """Plays a script for every start and counts what happens to it.

    A step of the script is an event, which is told; an exception, which is raised; an ``asyncio.Event``, which is
    waited for; or a function, which is called and awaited.

    Args:
        script: The steps, or a function from the request to the steps.
        models: What it offers.
        on_close: Called and awaited when a start is over, whichever way.
    """

    name = "scripted"

    def __init__(self, script=(), *, models=(MODEL,), on_close=None):
        self._script = script
        self._models = models
        self._on_close = on_close
        self.requests = []
        self.told = 0
        self.closes = 0
        self.aborts = 0
        """How many starts were over before their script was."""
        self.running = 0
        self.was_running = asyncio.Event()
        """Set once a start has begun."""

    @property
    def starts(self):
        return len(self.requests)

    def models(self):
        return self._models

    async def generate(self, request, *, model):
        self.requests.append(request)
        self.running += 1
        self.was_running.set()
        played = False
        try:
            for step in self._script(request) if callable(self._script) else self._script:
                if isinstance(step, Exception):
                    raise step
                if isinstance(step, asyncio.Event):
                    await step.wait()
                elif callable(step):
                    await step()
                else:
                    self.told += 1
                    yield step
            played = True
        finally:
            self.running -= 1
            self.closes += 1
            self.aborts += not played
            if self._on_close is not None:
                await self._on_close()

    async def aclose(self):
        """Nothing is held."""


class ByteTokenizer:
    """A tokenizer whose tokens are the bytes of the text, each its value and one more; 0 begins a prompt.

    Args:
        habit: Whether 0 comes first where nobody says.
        gate: Waited for by every call, where given.
    """

    longest_token_bytes = 1

    def __init__(self, *, habit=False, gate=None):
        self._habit = habit
        self._gate = gate
        self.texts = []

    async def encode(self, text, *, add_special_tokens=None):
        self.texts.append(text)
        begins = self._habit if add_special_tokens is None else add_special_tokens
        return await self.decode([0] * begins + [byte + 1 for byte in text.encode()])

    async def decode(self, ids):
        if self._gate is not None:
            await self._gate.wait()
        data = [bytes([id_ - 1]) if id_ else b"<s>" for id_ in ids]
        return Tokens(data=data, ids=ids, special=[not id_ for id_ in ids])


def tokens(*data, sequence=0, **columns):
    """One Tokens event from texts or bytes."""
    raw = [piece.encode() if isinstance(piece, str) else piece for piece in data]
    return Tokens(data=raw, sequence=sequence, **columns)


def words(text):
    """Tokens events, one for each word."""
    return [tokens(word) for word in text.split(" ")]


def finished(reason=FinishReason.STOP, sequence=0, **matched):
    return Finished(Finish(reason, **matched), sequence)


@asynccontextmanager
async def served(backend, *, channel_options=(), interceptors=(), **options):
    """A servicer on a plain grpc.aio server, and a stub over a real socket: (servicer, stub)."""
    servicer = LLMServicer(backend, **options)
    server = grpc.aio.server(interceptors=interceptors)
    add_LLMServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=channel_options)
    try:
        async with channel:
            stub = LLMServiceStub(channel)
            stub.address = f"127.0.0.1:{port}"
            yield servicer, stub
    finally:
        async with asyncio.timeout(LIMIT_S):
            await servicer.aclose()
            await server.stop(0)


async def until(condition):
    """Return once ``condition()`` is true; fail if it does not become so."""
    async with asyncio.timeout(LIMIT_S):
        while not condition():  # counters of a backend set no event
            await asyncio.sleep(0.001)


async def failure(call):
    """The error that a unary call or a stream ends with, and the messages before it."""
    messages = []
    try:
        async with asyncio.timeout(LIMIT_S):
            if hasattr(call, "__aiter__"):
                async for message in call:
                    messages.append(message)  # noqa: PERF401  # what came before the error is wanted
            else:
                messages.append(await call)
    except grpc.aio.AioRpcError as error:
        return error, messages
    raise AssertionError(f"the call ended well with {messages}")


@contextmanager
def uncollected():
    """Nobody collects garbage meanwhile. Gives a function: how many journals there are, more than at the beginning."""

    def journals():
        return sum(type(one) is Journal for one in gc.get_objects())

    gc.collect()
    before = journals()
    gc.disable()
    try:
        yield lambda: journals() - before
    finally:
        gc.enable()
