"""``slimformer pack``: a model as the kernels read it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from slimformer.cli.console import print_json
from slimformer.cli.models import load_checkpoint
from slimformer.cli.options import (
    JsonOption,
    ModelArgument,
    Sparse,
    SparseOption,
    ThreadsOption,
    Weights,
)


def pack(
    model: ModelArgument,
    output: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write.")],
    weights: Annotated[Weights, typer.Option("--weights", help="What to pack.")] = Weights.BF16,
    sparse: SparseOption = Sparse.AUTO,
    threads: ThreadsOption = 0,
    json: JsonOption = False,
) -> None:
    """Write a model packed for this machine: it loads without packing, at once.

    Give OUT to any command that runs a model. It can be run and nothing else: keep MODEL.
    """
    from slimformer.packing import pack as write
    from slimformer.report.summary import file_bytes

    write(
        load_checkpoint(model), output, weights=weights.value, sparse=sparse.value, threads=threads
    )
    size = file_bytes(output)
    if json:
        print_json({"path": str(output), "bytes": size, "weights": weights.value})
    else:
        typer.echo(f"{output}: {size / 1e6:,.1f} MB of {weights.value} weights")
