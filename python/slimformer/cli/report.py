"""``slimformer report``: the HTML page again, from what was saved."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from slimformer.cli.console import print_json
from slimformer.cli.options import JsonOption


def report(
    folder: Annotated[
        Path, typer.Argument(metavar="OUT", help="What `slimformer demo --output` wrote.")
    ],
    json: JsonOption = False,
) -> None:
    """Write the HTML page of a comparison again, from its results.json."""
    from slimformer.report.html import write_report
    from slimformer.report.results import FILE_NAME, Results

    results = Results.load(folder / FILE_NAME)
    page = write_report(results, folder)
    if json:
        print_json({"report": str(page)})
    else:
        typer.echo(page)
