"""``quill tensors``: what concerns tensor models besides running them."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quill.cli import safetensors
from quill.cli.connection import DEFAULT_URL, Connection, Url, connecting
from quill.cli.options import Json
from quill.cli.terminal import write, write_json
from quill.cli.transfer import ParameterList, Zstd, parameters_of, size_text, transfer
from quill.client.sync_client import QuillClient
from quill.errors import DataLoss

if TYPE_CHECKING:
    from quill.client.tensors.result import InferResult
    from quill.tensor import Tensor
    from quill.tensor.spec import TensorSpec

tensors = typer.Typer(help="Send tensors, and ask for the signatures of models.", no_args_is_help=True)

_CHECKSUM = "checksum"


@tensors.command()
@connecting
def put(
    file: Annotated[Path, typer.Argument(help="A safetensors file.")],
    to: Annotated[str, typer.Option(metavar="URL", help="The server, as --url elsewhere.")] = DEFAULT_URL,
    model: Annotated[str, typer.Option(help="Who gets them; checksum proves that they came whole.")] = _CHECKSUM,
    parameter: ParameterList = None,
    zstd: Zstd = False,
    json: Json = False,
    *,
    connection: Connection,
) -> None:
    """Send all tensors of a file to a model."""
    sent = safetensors.read(file)
    size_bytes = sum(tensor.size_bytes for tensor in sent.values())
    began_s = time.monotonic()
    with QuillClient(to, **connection.options()) as client:
        result = transfer(
            client, model, sent, {"parameters": parameters_of(parameter), "compression": "zstd" if zstd else None}
        )
    seconds = time.monotonic() - began_s
    if model == _CHECKSUM:
        _check(sent, result)
    if json:
        told = {"model": result.model, "tensors": len(sent), "bytes": size_bytes, "seconds": round(seconds, 3)}
        write_json({**told, "lane": result.lane})
        return
    rate = f"{size_text(size_bytes / seconds)}/s" if seconds else "at once"
    checked = ", checksums equal" if model == _CHECKSUM else ""
    write(f"{len(sent)} tensors, {size_text(size_bytes)} in {seconds:.2f} s ({rate}, {result.lane}){checked}")


@tensors.command("model")
@connecting
def show_model(
    name: Annotated[str, typer.Argument(help="The name of the model.")],
    url: Url = DEFAULT_URL,
    json: Json = False,
    *,
    connection: Connection,
) -> None:
    """Tell the inputs and outputs of a model."""
    with QuillClient(url, **connection.options()) as client:
        signature = client.tensors.model(name)
    sides = {"inputs": signature.inputs, "outputs": signature.outputs}
    if json:
        write_json({"name": signature.name} | {side: _plain(specs) for side, specs in sides.items()})
        return
    write(signature.name)
    for side, specs in sides.items():
        for tensor, spec in specs.items():
            write(f"  {side[:-1]:<7} {tensor}  {spec}")
        if not specs:
            write(f"  {side:<7} whatever comes")


def _check(sent: Mapping[str, Tensor], result: InferResult) -> None:
    """Compare the SHA-256 of each tensor.

    Raises:
        DataLoss: One is another.
    """
    for name, tensor in sent.items():
        if result.tensors[name].tobytes() != hashlib.sha256(tensor.data).digest():
            raise DataLoss(f"tensor {name!r} did not arrive as it was sent: its SHA-256 is another")


def _plain(specs: Mapping[str, TensorSpec]) -> dict[str, dict[str, object]]:
    return {name: {"dtype": spec.dtype.name, "shape": list(spec.shape)} for name, spec in specs.items()}
