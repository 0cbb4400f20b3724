"""What ``slimformer prune`` leaves beside a model, and says of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from slimformer.cli.console import print_json, print_tables

if TYPE_CHECKING:
    from slimformer.checkpoint import Checkpoint
    from slimformer.prune import Recipe
    from slimformer.prune.mixes import Mix as Mixture


def calibrated_on(paths: list[Path] | None, seed: int) -> str:
    """What a report says of the text."""
    return names(paths) if paths else f"text that the dense model wrote itself (seed {seed})"


def names(paths: list[Path]) -> str:
    """All of them, to be read."""
    return ", ".join(str(path) for path in paths)


def save_outline(
    model: str, dense: Checkpoint, output: Path, recipe: Recipe, calibrated: str
) -> None:
    """Leave beside the model what ``slimformer report`` shows of it."""
    from slimformer.checkpoint import load
    from slimformer.report.comparison import Candidate, outline

    candidates = (
        Candidate.dense(model, dense),
        Candidate.pruned(output, load(output), recipe),
    )
    outline(*candidates, calibrated_on=calibrated).save(output)


def tell(
    slim: Checkpoint,
    output: Path,
    recipe: Recipe,
    gained: float | None,
    mix: Mixture | None,
    *,
    json: bool,
) -> None:
    """Say what has become of the model."""
    from slimformer.report.summary import describe_layers, file_bytes
    from slimformer.report.tables import layers_table, megabytes, millions

    config = slim.config
    stored = file_bytes(output)
    share = None if recipe.zeros is None else recipe.zeros.share(config)
    if json:
        print_json(
            {
                "output": str(output),
                "parameters": config.parameters(),
                "non_embedding_parameters": config.non_embedding_parameters(),
                "vocab_size": config.vocab_size,
                "channels": config.n_channels,
                "bytes": stored,
                "zeros": share,
                "speedup": gained,
                "mix": None if mix is None else dataclasses.asdict(mix),
                "recipe": recipe.to_dict(),
            }
        )
        return
    print_tables(layers_table(describe_layers(config)))
    typer.echo(
        f"{output}: {millions(config.parameters())} parameters, "
        f"{millions(config.non_embedding_parameters())} outside the embedding, "
        f"{config.vocab_size:,} tokens, {megabytes(stored)}"
    )
    if recipe.zeros is not None:
        typer.echo(
            f"zeros: {share:.1%} of the layers' matrices, by {recipe.zeros.method}, "
            f"pattern {recipe.zeros.pattern}"
        )
    if mix is not None:
        typer.echo(f"mix: {mix}; run it with --weights {mix.weights}")
    if gained is not None:
        typer.echo(f"measured: {gained:.2f} times as fast as the dense model")
