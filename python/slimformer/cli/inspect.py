"""``slimformer inspect``: what a model consists of."""

from __future__ import annotations

import typer

from slimformer.cli.console import print_json, print_tables
from slimformer.cli.models import load_checkpoint
from slimformer.cli.options import JsonOption, ModelArgument


def inspect(model: ModelArgument, json: JsonOption = False) -> None:
    """Show a model's family, the shape of every layer, its parameters and bytes."""
    checkpoint = load_checkpoint(model)

    from slimformer.checkpoint import widths
    from slimformer.report.summary import summarise
    from slimformer.report.tables import layers_table, megabytes, millions

    summary = {**summarise(checkpoint), "widths": widths(model)}
    if json:
        print_json(summary)
        return
    typer.echo(f"{summary['name']}: {summary['family']}")
    typer.echo(
        f"{millions(summary['parameters'])} parameters, "
        f"{millions(summary['non_embedding_parameters'])} outside the embedding; "
        f"{megabytes(summary['bytes'])} once read"
    )
    typer.echo(
        f"{summary['channels']} channels, vocabulary of {summary['vocab_size']:,}, "
        f"{'tied' if summary['tied_head'] else 'untied'} head, "
        f"at most {summary['max_positions']:,} tokens"
    )
    if summary["widths"]:
        there = ", ".join(f"{model}@{width}" for width in summary["widths"])
        typer.echo(f"the widest of several: {there}")
    if summary["zeros"] is not None:
        typer.echo(f"{summary['zeros']:.1%} of the layers' matrices are zero")
    print_tables(layers_table(summary["layers"]))
