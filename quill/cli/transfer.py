"""A call of a tensor model with a bar that shows how far its elements have come."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from quill.client.tensors.inference import InferOptions
from quill.client.tensors.result import InferResult, TransferProgress
from quill.errors import InvalidUsage
from quill.lanes.lane import INLINE_BYTES

if TYPE_CHECKING:
    from quill.client.sync_client import QuillClient
    from quill.tensor import Tensor

ParameterList = Annotated[
    list[str] | None, typer.Option("--parameter", metavar="NAME=TEXT", help="A setting of the model; repeatable.")
]
Zstd = Annotated[bool, typer.Option("--zstd", help="Compress the elements; for slow networks.")]


def parameters_of(given: list[str] | None) -> dict[str, str]:
    """The settings that a person gave.

    Raises:
        InvalidUsage: One has no equals sign.
    """
    parameters = {}
    for one in given or ():
        name, equals, text = one.partition("=")
        if not equals:
            raise InvalidUsage(f"--parameter takes NAME=TEXT, got {one!r}")
        parameters[name] = text
    return parameters


def transfer(client: QuillClient, model: str, tensors: Mapping[str, Tensor], options: InferOptions) -> InferResult:
    """Call a model: in one message where that is quick, else in chunks and with bars on standard error."""
    if sum(tensor.size_bytes for tensor in tensors.values()) <= INLINE_BYTES:
        return client.tensors.infer(model, tensors, **options)
    with _bars() as show:
        return client.tensors.stream(model, tensors, progress=show, **options)


def size_text(size_bytes: float) -> str:
    """A size for people: ``3.2 MB``."""
    unit = "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if size_bytes < 1000:  # noqa: PLR2004  # units of the SI
            break
        size_bytes, unit = size_bytes / 1000, larger
    return f"{size_bytes:.0f} {unit}" if unit == "B" else f"{size_bytes:.1f} {unit}"


@contextmanager
def _bars() -> Iterator[Any]:
    """What shows progress: a bar for each direction, where standard error is a terminal; nothing elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        sending, receiving = progress.add_task("send"), progress.add_task("receive", start=False, visible=False)

        def show(now: TransferProgress) -> None:
            progress.update(sending, completed=now.sent_bytes, total=now.to_send_bytes)
            if now.to_receive_bytes is not None:
                progress.start_task(receiving)
                progress.update(receiving, completed=now.received_bytes, total=now.to_receive_bytes, visible=True)

        yield show
