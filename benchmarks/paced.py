"""Scripted engines for the benchmark of sessions: no model runs, the tokens are always the same.

``TaskEngine`` is a backend with ``generate``: a task of the server is woken for each token of each generation.
``SteppedEngine`` takes generations by ``submit`` and puts a token into all of them in one step.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from itertools import compress
from operator import add, lt

from quill.generation import Finish, FinishReason
from quill.llm import Finished, ModelInfo, Output, Tokens, put_tokens
from quill.llm.backend import BackendEvent
from quill.proto import GenerateRequest

_GRAIN_S = 0.001
_AT_ONCE = 256
"""Generations that have their turn before everybody else has one of the event loop."""
_WORDS = [b" word%d" % number for number in range(10)]
TOKEN_LETTERS = len(_WORDS[0])
"""Every token has as many, so that tokens are counted by the text."""
_STEPS = [Tokens(data=(_WORDS[number % 10],), ids=(number,)) for number in range(1000)]
_END = Finished(Finish(FinishReason.LENGTH))


def text_of(tokens: int) -> str:
    """What a generation of so many tokens says."""
    return b"".join(_WORDS[number % 10] for number in range(tokens)).decode()


class _Clock:
    """Wakes many at times of their own, with a timer for each millisecond and not for each of them.

    When the event loop is late, it would wake all that are due at once: thousands, for whom everybody else waits.
    """

    def __init__(self) -> None:
        self._due: dict[int, list[asyncio.Future[None]]] = {}
        self._late: deque[asyncio.Future[None]] = deque()
        """Those whose time has come."""

    def at(self, when_s: float, loop: asyncio.AbstractEventLoop) -> asyncio.Future[None]:
        """Done at a time of the event loop, which is given because asking for it is a system call."""
        slot = int(when_s / _GRAIN_S) + 1
        waiting = self._due.get(slot)
        if waiting is None:
            waiting = self._due[slot] = []
            loop.call_at(slot * _GRAIN_S, self._wake, slot)
        future: asyncio.Future[None] = asyncio.Future(loop=loop)
        waiting.append(future)
        return future

    def _wake(self, slot: int) -> None:
        if not self._late:
            asyncio.get_running_loop().call_soon(self._wake_some)
        self._late += self._due.pop(slot)

    def _wake_some(self) -> None:
        late = self._late
        for _ in range(min(_AT_ONCE, len(late))):
            future = late.popleft()
            if not future.done():
                future.set_result(None)
        if late:
            asyncio.get_running_loop().call_soon(self._wake_some)


class TaskEngine:
    """One task for each generation, woken for each token at its own time.

    Args:
        interval_s: From token to token; 0 for a token in each turn of the event loop.
    """

    name = "tasks"

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self._clock = _Clock()

    def models(self) -> list[ModelInfo]:
        """One model, which has no limits."""
        return [_MODEL]

    async def generate(self, request: GenerateRequest, *, model: ModelInfo) -> AsyncIterator[BackendEvent]:
        """The same tokens for everybody."""
        loop = asyncio.get_running_loop()
        next_s = loop.time()
        for number in range(request.max_tokens):
            if number and self._interval_s:
                next_s += self._interval_s
                if next_s > loop.time():
                    await self._clock.at(next_s, loop)
            elif number:
                await asyncio.sleep(0)
            yield _STEPS[number]
        yield _END

    async def aclose(self) -> None:
        """Nothing is held."""


class _Row:
    """A generation of the stepped engine."""

    __slots__ = ("_engine",)

    def __init__(self, engine: SteppedEngine) -> None:
        self._engine = engine

    async def aclose(self) -> None:
        """Step it no more."""
        self._engine.drop(self)


class SteppedEngine:
    """All generations in one step; the first token of each at once, as after its prompt.

    It keeps columns, as real ones do: what the engine costs is not what is measured.

    Args:
        interval_s: From step to step; 0 for one after the other.
    """

    name = "stepped"

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self._rows: list[_Row] = []
        self._outputs: list[Output] = []
        self._numbers: list[int] = []
        """How many tokens each has got."""
        self._ends: list[int] = []
        """How many it gets."""
        self._dropped: set[_Row] = set()
        self._may_step = asyncio.Event()
        self._stepping: asyncio.Task[None] | None = None

    def models(self) -> list[ModelInfo]:
        """One model, which has no limits."""
        return [_MODEL]

    def submit(self, request: GenerateRequest, *, model: ModelInfo, output: Output) -> _Row:
        """The same tokens for everybody."""
        if self._stepping is None:
            self._stepping = asyncio.create_task(self._step_all())
        row = _Row(self)
        output.when_room(self._may_step.set)
        self._may_step.set()
        put_tokens([output], [_WORDS[0]], [0])
        if request.max_tokens == 1:
            self._end(output)
        else:
            self._rows.append(row)
            self._outputs.append(output)
            self._numbers.append(1)
            self._ends.append(request.max_tokens)
        return row

    def drop(self, row: _Row) -> None:
        """Step a row no more."""
        self._dropped.add(row)

    async def aclose(self) -> None:
        """End the steps."""
        if self._stepping is not None:
            self._stepping.cancel()

    async def _step_all(self) -> None:
        loop = asyncio.get_running_loop()
        next_s = loop.time()
        while True:
            if self._interval_s:
                next_s += self._interval_s
                await asyncio.sleep(max(0.0, next_s - loop.time()))
            else:
                await self._may_step.wait()
            await self._step()

    async def _step(self) -> None:
        """A token for each generation that has room."""
        if self._dropped:
            self._keep([row not in self._dropped for row in self._rows])
            self._dropped.clear()
        any_goes, count = False, len(self._outputs)
        for begin in range(0, count, _AT_ONCE):
            some = slice(begin, min(begin + _AT_ONCE, count))  # more may come meanwhile
            go = [not output.is_full for output in self._outputs[some]]
            any_goes = any_goes or any(go)
            numbers = list(compress(self._numbers[some], go))
            put_tokens(list(compress(self._outputs[some], go)), [_WORDS[number % 10] for number in numbers], numbers)
            self._numbers[some] = map(add, self._numbers[some], go)
            await asyncio.sleep(0)
        if not any_goes:
            self._may_step.clear()
        lives = list(map(lt, self._numbers, self._ends))
        if not all(lives):
            for output, is_alive in zip(self._outputs, lives, strict=True):
                if not is_alive:
                    self._end(output)
            self._keep(lives)

    def _keep(self, which: list[bool]) -> None:
        self._rows = list(compress(self._rows, which))
        self._outputs = list(compress(self._outputs, which))
        self._numbers = list(compress(self._numbers, which))
        self._ends = list(compress(self._ends, which))

    def _end(self, output: Output) -> None:
        output.put(_END)
        output.end()


_MODEL = ModelInfo(name="paced", options=frozenset({"max_tokens"}))
