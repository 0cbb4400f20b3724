"""``slimformer demo``: the whole road on a real model."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from slimformer.cli.console import print_json, print_tables, progress_display
from slimformer.cli.options import JsonOption, SeedOption, ThreadsOption


def demo(
    output: Annotated[
        Path, typer.Option("--output", metavar="DIR", help="Where the model and the page go.")
    ] = Path("slimformer-demo"),
    keep: Annotated[
        float, typer.Option(min=0.05, max=1.0, help="Share of the parameters that stays.")
    ] = 0.8,
    seed: SeedOption = 0,
    threads: ThreadsOption = 0,
    json: JsonOption = False,
) -> None:
    """Pull a model, prune it, and show what that cost and what it gained.

    Takes about five minutes on two cores, and nothing but the packaged model.
    """
    from slimformer.checkpoint import check_output
    from slimformer.demo import MODEL_FOLDER, run_demo

    check_output(output / MODEL_FOLDER)
    with progress_display() as progress:
        results = run_demo(output, keep=keep, seed=seed, threads=threads, progress=progress)

    from slimformer.report.html import write_report
    from slimformer.report.tables import comparison_table

    results.save(output)
    page = write_report(results, output)
    if json:
        print_json(
            {
                "output": str(output / MODEL_FOLDER),
                "report": str(page),
                **dataclasses.asdict(results),
            }
        )
        return
    print_tables(comparison_table(results))
    for model in results.models:
        typer.echo(f"{model.name}: {results.prompt}{model.sample}\n")
    typer.echo(f"Calibrated on {results.calibrated_on}.")
    typer.echo(f"Evaluated on {results.evaluated_on}.")
    for line in [*results.notes, *results.warnings]:
        typer.echo(line)
    typer.echo(f"The pruned model: {output / MODEL_FOLDER}")
    typer.echo(f"The report: {page}")
