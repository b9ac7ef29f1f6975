"""Running models: functions in threads, coroutines on the loop, each for so long."""

from __future__ import annotations

import asyncio
import contextvars
import functools
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from quill.errors import DeadlineExceeded
from quill.tensor import Tensor
from quill.tensors.batching import Batcher
from quill.tensors.model import TensorModel

_THREADS = 8
"""How many functions run at once."""


class Runner:
    """Runs the models of one servicer, on one event loop."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_THREADS, "quill-tensors")
        self._batchers: dict[str, Batcher] = {}

    def close(self) -> None:
        """Run nothing more. Threads end when their functions return."""
        for batcher in self._batchers.values():
            batcher.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def __call__(
        self, model: TensorModel, arguments: Mapping[str, Any], inputs: frozenset[str]
    ) -> dict[str, Tensor]:
        """The outputs of a model.

        Args:
            model: The model.
            arguments: What its function is called with.
            inputs: Which of them are inputs.

        Raises:
            DeadlineExceeded: The function took longer than it may.
            Exception: Whatever the function raised.
        """
        if model.max_batch == 1:
            return await self._run(model, arguments)
        batcher = self._batchers.get(model.name)
        if batcher is None:
            run = functools.partial(self._run, model)
            batcher = self._batchers[model.name] = Batcher(run, model.max_batch, model.max_delay_ms / 1000)
        return await batcher(arguments, inputs)

    async def _run(self, model: TensorModel, arguments: Mapping[str, Any]) -> dict[str, Tensor]:
        try:
            async with asyncio.timeout(model.timeout_s) as limit:
                if model.is_async:
                    return model.results(await model.function(**arguments))
                return await self._in_thread(model, arguments)
        except TimeoutError:
            if not limit.expired():
                raise
            raise DeadlineExceeded(f"model {model.name} took longer than {model.timeout_s:g} s") from None

    async def _in_thread(self, model: TensorModel, arguments: Mapping[str, Any]) -> dict[str, Tensor]:
        """Function and checks in a thread, with the context variables of the caller (the principal, a trace)."""
        # A thread keeps its last piece of work until it runs again: by then nothing must hang on it.
        held = [arguments]

        def work() -> dict[str, Tensor]:
            return model.results(model.function(**held.pop()))

        context = contextvars.copy_context()
        return await asyncio.get_running_loop().run_in_executor(self._threads, context.run, work)
