"""Work that grows with a request: done at once where it is little, in a thread where it would hold up others."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


async def offload(size: int, most: int, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """The result of ``work``, from a thread where ``size`` is above ``most``: what takes about 1 ms.

    A thread whose result nobody wants any more goes on to its end.
    """
    if size <= most:
        return work(*args, **kwargs)
    return await asyncio.to_thread(work, *args, **kwargs)
