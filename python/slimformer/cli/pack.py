"""``slimformer pack``: a model as the kernels read it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from slimformer.cli.console import print_json, progress_display
from slimformer.cli.models import load_checkpoint
from slimformer.cli.options import (
    JsonOption,
    ModelArgument,
    SeedOption,
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
    balanced: Annotated[
        bool,
        typer.Option(
            "--balance/--no-balance",
            help="Move scales within the model beforehand to where int8 rounds least; of other "
            "weights nothing is changed.",
        ),
    ] = True,
    calibration: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="PATH",
            help="Text to balance on (txt, jsonl, a folder); may repeat. Without any the model "
            "writes some itself, or, an encoder, stays as it is.",
        ),
    ] = None,
    seed: SeedOption = 0,
    threads: ThreadsOption = 0,
    json: JsonOption = False,
) -> None:
    """Write a model packed for this machine: it loads without packing, at once.

    Give OUT to any command that runs a model. It can be run and nothing else: keep MODEL.
    """
    from slimformer.packing import pack as write
    from slimformer.report.summary import file_bytes

    checkpoint = load_checkpoint(model)
    is_balanced = (
        balanced
        and weights is Weights.INT8
        and (calibration is not None or checkpoint.config.causal)
    )
    if is_balanced:
        from slimformer.prune import balance, load_calibration

        texts = None if calibration is None else load_calibration(calibration)
        with progress_display() as progress:
            checkpoint = balance(
                checkpoint, calibration=texts, seed=seed, threads=threads, progress=progress
            )
    write(checkpoint, output, weights=weights.value, sparse=sparse.value, threads=threads)
    size = file_bytes(output)
    if json:
        print_json(
            {
                "path": str(output),
                "bytes": size,
                "weights": weights.value,
                "balanced": is_balanced,
            }
        )
    else:
        how = ", balanced" if is_balanced else ""
        typer.echo(f"{output}: {size / 1e6:,.1f} MB of {weights.value} weights{how}")
