"""The HTML page: one file that needs nothing else."""

from __future__ import annotations

from pathlib import Path

import jinja2

from slimformer.errors import StorageError
from slimformer.report.plots import importance_plot, kept_plot, tradeoff_plot
from slimformer.report.results import Results
from slimformer.report.summary import group_layers
from slimformer.report.tables import comparison_rows

FILE_NAME = "report.html"


def write_report(results: Results, folder: Path) -> Path:
    """Write the page into a folder.

    Raises
    ------
    StorageError
        The file cannot be written.
    """
    path = folder / FILE_NAME
    try:
        path.write_text(render(results), encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror}") from error
    return path


def render(results: Results) -> str:
    """The page as a text."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("slimformer.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    dense, *others = results.models
    return environment.get_template("report.html.jinja").render(
        results=results,
        rows=comparison_rows(results),
        importance=results.importance and importance_plot(results.importance),
        kept=[(model.name, kept_plot(dense, model)) for model in others],
        tradeoff=tradeoff_plot(results.models) if _is_measured(results) else None,
        shapes=[(model.name, list(group_layers(model.layers))) for model in results.models],
    )


def _is_measured(results: Results) -> bool:
    return len(results.models) > 1 and all(
        model.timing is not None and model.quality for model in results.models
    )
