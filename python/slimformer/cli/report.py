"""``slimformer report``: the HTML page of a pruned model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from slimformer.cli.console import print_json, progress_display
from slimformer.cli.models import load_checkpoint
from slimformer.cli.options import JsonOption, ThreadsOption

if TYPE_CHECKING:
    from slimformer.report.results import Results


def report(
    folder: Annotated[
        Path, typer.Argument(metavar="OUT", help="A folder that demo or prune wrote.")
    ],
    against: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL", help="Measure again, next to the model that it was made from."
        ),
    ] = None,
    threads: ThreadsOption = 0,
    json: JsonOption = False,
) -> None:
    """Write the HTML page of a pruned model again, from what was saved beside it.

    ``prune`` saves the shapes; with --against, quality and speed are measured too.
    """
    from slimformer.report.html import write_report
    from slimformer.report.results import FILE_NAME, Results

    results = Results.load(folder / FILE_NAME)
    if against is not None:
        results = _measured(results, folder, against, threads)
        results.save(folder)
    page = write_report(results, folder)
    if json:
        print_json({"report": str(page)})
    else:
        typer.echo(page)


def _measured(results: Results, folder: Path, against: str, threads: int) -> Results:
    from slimformer.errors import RecipeError
    from slimformer.prune import Recipe
    from slimformer.report.comparison import Candidate, measure

    pruned = load_checkpoint(str(folder))
    if pruned.recipe is None:
        raise RecipeError(f"{folder}: expected a pruned model with its recipe.json")
    dense = load_checkpoint(against)
    recipe = Recipe.from_dict(pruned.recipe)
    recipe.check(dense)
    candidates = (Candidate.dense(against, dense), Candidate.pruned(folder, pruned, recipe))
    with progress_display() as progress:
        return measure(results, candidates, threads=threads, progress=progress)
