"""Calls of one model joined along axis 0, run at once, and split again."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from quill.errors import InvalidUsage, Unavailable
from quill.tensor import Tensor

Run = Callable[[Mapping[str, Any]], Awaitable[dict[str, Tensor]]]
Outputs = dict[str, Tensor]


@dataclass(slots=True)
class _Member:
    """A call that waits."""

    arguments: Mapping[str, Any]
    rows: int
    outputs: asyncio.Future[Outputs]


@dataclass(slots=True)
class _Batch:
    """Calls that can be joined."""

    inputs: frozenset[str]
    members: list[_Member] = field(default_factory=list)
    rows: int = 0
    timer: asyncio.TimerHandle | None = None


class Batcher:
    """Joins the calls of one model.

    Calls can be joined whose parameters are equal and whose inputs differ in the size of axis 0 only; within a call all
    inputs have the same. A call that cannot be joined runs alone.

    Args:
        run: Runs the model.
        max_rows: How many rows a joined call may have.
        max_delay_s: How long the first one waits.
    """

    def __init__(self, run: Run, max_rows: int, max_delay_s: float) -> None:
        self._run = run
        self._max_rows = max_rows
        self._max_delay_s = max_delay_s
        self._open: dict[Hashable, _Batch] = {}
        self._running: set[asyncio.Task[None]] = set()

    async def __call__(self, arguments: Mapping[str, Any], inputs: frozenset[str]) -> Outputs:
        """The outputs of a call, which may wait and run with others. Raises whatever ``run`` does."""
        rows = _rows(arguments, inputs)
        if rows is None or rows >= self._max_rows:
            return await self._run(arguments)
        key = _key(arguments, inputs)
        batch = self._open.get(key)
        if batch is not None and batch.rows + rows > self._max_rows:
            self._begin(key)
            batch = None
        if batch is None:
            batch = self._open[key] = _Batch(inputs)
            batch.timer = asyncio.get_running_loop().call_later(self._max_delay_s, self._begin, key)
        member = _Member(arguments, rows, asyncio.get_running_loop().create_future())
        batch.members.append(member)
        batch.rows += rows
        if batch.rows == self._max_rows:
            self._begin(key)
        return await member.outputs

    def close(self) -> None:
        """End what waits or runs with UNAVAILABLE."""
        for batch in self._open.values():
            if batch.timer is not None:
                batch.timer.cancel()
            _end(batch.members)
        self._open.clear()
        for task in self._running:
            task.cancel()

    def _begin(self, key: Hashable) -> None:
        """Run a batch; others come into the next one."""
        batch = self._open.pop(key)
        if batch.timer is not None:
            batch.timer.cancel()
        task = asyncio.create_task(self._serve(batch), name="tensor batch")
        self._running.add(task)

        def ended(_: object) -> None:
            self._running.discard(task)
            _end(batch.members)  # a task that is cancelled before it began has told nobody

        task.add_done_callback(ended)

    async def _serve(self, batch: _Batch) -> None:
        members = [member for member in batch.members if not member.outputs.done()]  # others have gone meanwhile
        if len(members) > 1:
            # Whose fault a failure is shows when each runs alone.
            with contextlib.suppress(Exception):
                answered = await self._joined(members, batch.inputs)
                for member, outputs in zip(members, answered, strict=True):
                    _answer(member, outputs)
                return
        await asyncio.gather(*map(self._alone, members))

    async def _joined(self, members: Sequence[_Member], inputs: frozenset[str]) -> list[Outputs]:
        """The outputs of each member, of one run for all."""
        import numpy as np

        first = members[0].arguments
        joined = {name: np.concatenate([member.arguments[name] for member in members]) for name in inputs}
        outputs = await self._run({**first, **joined})
        rows = sum(member.rows for member in members)
        for name, output in outputs.items():
            if output.shape[:1] != [rows]:
                raise InvalidUsage(f"output {name!r} of {rows} joined rows is {output.meta}: axis 0 must have them all")
        split: list[Outputs] = []
        start = 0
        for member in members:
            end = start + member.rows
            split.append({name: _part(output, start, end) for name, output in outputs.items()})
            start = end
        return split

    async def _alone(self, member: _Member) -> None:
        try:
            _answer(member, await self._run(member.arguments))
        except Exception as error:  # noqa: BLE001  # it is this caller's
            if not member.outputs.done():
                member.outputs.set_exception(error)


def _answer(member: _Member, outputs: Outputs) -> None:
    if not member.outputs.done():
        member.outputs.set_result(outputs)


def _end(members: Iterable[_Member]) -> None:
    """Tell those that have no answer that there will be none."""
    for member in members:
        if not member.outputs.done():
            member.outputs.set_exception(Unavailable("the server is shutting down"))


def _part(output: Tensor, start: int, end: int) -> Tensor:
    """Some rows of an output: a view."""
    return Tensor.from_numpy(output.to_numpy()[start:end], output.name)


def _rows(arguments: Mapping[str, Any], inputs: frozenset[str]) -> int | None:
    """The size of axis 0, which all inputs of a call share; None where they do not, or one is a scalar."""
    sizes = {arguments[name].shape[0] if arguments[name].ndim else None for name in inputs}
    return sizes.pop() if len(sizes) == 1 else None


def _key(arguments: Mapping[str, Any], inputs: frozenset[str]) -> Hashable:
    """What calls that can be joined have in common."""
    arrays = tuple((name, str(arguments[name].dtype), arguments[name].shape[1:]) for name in sorted(inputs))
    return arrays, tuple(sorted((name, text) for name, text in arguments.items() if name not in inputs))
