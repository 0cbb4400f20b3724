"""``slimformer prune --nested``: one folder of several widths."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from slimformer.cli.console import print_json, print_tables, progress_display
from slimformer.cli.models import load_checkpoint
from slimformer.cli.prune_outcome import calibrated_on, save_outline

NestedOption = Annotated[
    str | None,
    typer.Option(
        metavar="LIST",
        help="With --keep: narrower widths, such as 0.8,0.7, that OUT holds as well. Give OUT@0.8 "
        "to any command, or width=0.8 to Engine.",
        rich_help_panel="Budget",
    ),
]


def parse_widths(text: str | None) -> tuple[float, ...]:
    """Read ``0.8,0.7``; nothing gives none."""
    if text is None:
        return ()
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"expected widths such as 0.8,0.7, found {text!r}") from None


def prune_nested(
    model: str,
    output: Path,
    keep: float | None,
    narrower: tuple[float, ...],
    *,
    calibration: list[Path] | None,
    state: Path,
    seed: int,
    threads: int,
    json: bool,
    **options: Any,
) -> None:
    """Make the models, write the folder and tell of it; for ``options`` see the function."""
    if keep is None or not all(0 < width < keep for width in narrower):
        raise typer.BadParameter("--nested goes with --keep, and names widths below that")

    from slimformer.checkpoint import check_output
    from slimformer.prune import Recipe, align_values, load_calibration, nest
    from slimformer.prune import prune_nested as make

    check_output(output)
    source = load_checkpoint(model)
    texts = load_calibration(calibration) if calibration else None
    with progress_display() as progress:
        reading: dict[str, Any] = {
            "calibration": texts,
            "seed": seed,
            "threads": threads,
            "progress": progress,
        }
        if "value_dims" in options.get("structures", ()):
            source = align_values(source, **reading)
        models = make(source, (keep, *narrower), state=state, **reading, **options)
        nest(models, output)
    recipe = Recipe.from_dict(models[keep].recipe or {})
    save_outline(model, source, output, recipe, calibrated_on(calibration, seed))
    found = _describe(output)
    if json:
        print_json({"output": str(output), "widths": found})
        return

    from slimformer.report.tables import widths_table

    print_tables(widths_table(found))


def _describe(folder: Path) -> list[dict[str, Any]]:
    """What each width is, and what the folder holds for it alone."""
    from slimformer.checkpoint import load, nested

    described = []
    widest, *_ = nested.widths(folder)
    for width in nested.widths(folder):
        model = load(folder, width=width)
        described.append(
            {
                "model": f"{folder}@{width}",
                "width": width,
                "parameters": model.config.parameters(),
                "non_embedding_parameters": model.config.non_embedding_parameters(),
                "bytes": model.nbytes,
                "own_bytes": model.nbytes if width == widest else nested.own_bytes(folder, width),
            }
        )
    return described
