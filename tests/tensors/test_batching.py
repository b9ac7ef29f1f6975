"""Calls that come at once run at once, and give what they would have given alone."""

import asyncio

import numpy as np

from quill.errors import Unavailable
from quill.tensors.batching import Batcher
from quill.tensors.model import TensorModel

LIMIT_S = 20


class Counted:
    """A model that adds one to each row, and remembers how many rows each of its runs had."""

    def __init__(self):
        self.rows = []
        self.model = TensorModel(name="m", function=self.add_one)

    def add_one(self, x, **_):
        self.rows.append(len(x))
        if (x < 0).any():
            raise ValueError("below zero")
        return {"y": x + 1}

    async def __call__(self, arguments):
        await asyncio.sleep(0)
        return self.model.results(self.add_one(**arguments))


def batcher(run, max_rows=8, max_delay_s=0.02):
    return Batcher(run, max_rows, max_delay_s)


def ask(batch, *values, by=None, dtype=np.float32):
    arguments = {"x": np.array(values, dtype)} | ({} if by is None else {"by": by})
    return batch(arguments, frozenset({"x"}))


async def together(*calls):
    async with asyncio.timeout(LIMIT_S):
        return await asyncio.gather(*calls, return_exceptions=True)


async def test_calls_are_joined_along_axis_0_and_split_again():
    run = Counted()
    batch = batcher(run)
    answers = await together(ask(batch, 1, 2), ask(batch, 3), ask(batch, 4, 5, 6))
    assert [answer["y"].to_numpy().tolist() for answer in answers] == [[2, 3], [4], [5, 6, 7]]
    assert run.rows == [6]


async def test_a_full_batch_does_not_wait():
    run = Counted()
    answers = await together(
        *(ask(batcher_ := batcher(run, 2, 3600), 1) if n == 0 else ask(batcher_, n) for n in range(2))
    )
    assert [answer["y"].to_numpy().tolist() for answer in answers] == [[2], [2]]
    assert run.rows == [2]


async def test_a_batch_has_no_more_rows_than_it_may():
    run = Counted()
    batch = batcher(run, 4)
    await together(ask(batch, 1, 2, 3), ask(batch, 1, 2), ask(batch, *range(9)))
    assert sorted(run.rows) == [2, 3, 9]


async def test_only_calls_that_differ_in_axis_0_alone_are_joined():
    run = Counted()
    batch = batcher(run)
    wide = batch({"x": np.zeros((1, 2), np.float32)}, frozenset({"x"}))
    answers = await together(ask(batch, 1), ask(batch, 1, dtype=np.float64), wide, ask(batch, 1, by="2"), ask(batch, 5))
    assert [answer["y"].dtype.name for answer in answers] == ["float32", "float64", "float32", "float32", "float32"]
    assert sorted(run.rows) == [1, 1, 1, 2]


async def test_a_scalar_runs_alone():
    run = Counted()
    run.add_one = lambda x, **_: {"y": x + 1}
    batch = batcher(run)
    answers = await together(batch({"x": np.float32(1)}, frozenset({"x"})), batch({}, frozenset()))
    assert answers[0]["y"].to_numpy() == 2


async def test_one_that_fails_does_not_spoil_the_others():
    run = Counted()
    batch = batcher(run)
    answers = await together(ask(batch, 1), ask(batch, -1), ask(batch, 2))
    assert [answers[0]["y"].to_numpy().tolist(), answers[2]["y"].to_numpy().tolist()] == [[2], [3]]
    assert isinstance(answers[1], ValueError)
    assert run.rows == [3, 1, 1, 1]


async def test_an_output_without_all_rows_is_not_shared_out():
    run = Counted()
    run.add_one = lambda x, **_: {"y": x[:1]}
    batch = batcher(run)
    answers = await together(ask(batch, 1), ask(batch, 2))
    assert [answer["y"].to_numpy().tolist() for answer in answers] == [[1], [2]]


async def test_a_caller_that_leaves_takes_its_rows_along():
    run = Counted()
    batch = batcher(run)
    leaver = asyncio.create_task(ask(batch, 9))
    stayer = asyncio.create_task(ask(batch, 1))
    await asyncio.sleep(0)
    leaver.cancel()
    async with asyncio.timeout(LIMIT_S):
        assert (await stayer)["y"].to_numpy().tolist() == [2]
    assert run.rows == [1]


async def test_closing_ends_those_that_wait_and_those_that_run():
    async def hang(arguments):
        await asyncio.Event().wait()

    batch = batcher(hang, 2, 3600)
    running = [asyncio.create_task(ask(batch, 1)) for _ in range(2)]
    waiting = asyncio.create_task(ask(batch, 1))
    await asyncio.sleep(0.01)
    batch.close()
    for answer in await together(*running, waiting):
        assert isinstance(answer, Unavailable)
    assert not batch._running


def test_calls_over_the_network_are_batched():
    from concurrent.futures import ThreadPoolExecutor

    from quill import QuillClient
    from quill.tensors import TensorModels
    from tensors.scene import TensorHost

    models, rows = TensorModels(), []

    @models.model(
        "sum", inputs={"x": ("int64", [-1, 2])}, outputs={"y": ("int64", [-1])}, max_batch=4, max_delay_ms=5000
    )
    def total(x):
        rows.append(len(x))
        return x.sum(axis=1)

    with TensorHost(models) as host, QuillClient(host.url("grpc")) as client, ThreadPoolExecutor(4) as threads:
        calls = [threads.submit(client.tensors.infer, "", {"x": np.array([[n, 1]])}) for n in range(4)]
        assert [call.result(LIMIT_S)["y"].tolist() for call in calls] == [[1], [2], [3], [4]]
    assert rows == [4]
