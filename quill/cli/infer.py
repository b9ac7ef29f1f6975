"""``quill infer``: the tensors of a file go into a model, and its outputs into another file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from quill.cli import safetensors
from quill.cli.connection import DEFAULT_URL, Connection, Url, connecting
from quill.cli.options import Json
from quill.cli.terminal import write, write_json
from quill.cli.transfer import ParameterList, Zstd, parameters_of, transfer
from quill.client.sync_client import QuillClient


@connecting
def infer(
    model: Annotated[str, typer.Argument(help="The name of the model.")],
    source: Annotated[Path, typer.Option("--in", metavar="FILE", help="A safetensors file with the inputs.")],
    destination: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Where to write the outputs; else they are only shown.")
    ] = None,
    url: Url = DEFAULT_URL,
    output: Annotated[list[str] | None, typer.Option(help="An output that is wanted, if not all; repeatable.")] = None,
    parameter: ParameterList = None,
    zstd: Zstd = False,
    json: Json = False,
    *,
    connection: Connection,
) -> None:
    """Run a tensor model once."""
    tensors = safetensors.read(source)
    with QuillClient(url, **connection.options()) as client:
        result = transfer(
            client,
            model,
            tensors,
            {"outputs": output, "parameters": parameters_of(parameter), "compression": "zstd" if zstd else None},
        )
        if destination is not None:
            safetensors.write(destination, result.tensors)
    shapes = {name: {"dtype": tensor.dtype.name, "shape": tensor.shape} for name, tensor in result.tensors.items()}
    if json:
        write_json({"model": result.model, "requestId": result.request_id, "lane": result.lane, "outputs": shapes})
        return
    for name, tensor in result.tensors.items():
        write(f"{name}  {tensor.dtype} {tensor.shape}")
