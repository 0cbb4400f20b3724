"""What is shown of a comparison: the saved results, tables, plots and the page."""

from __future__ import annotations

import dataclasses
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from slimformer.errors import DataError, StorageError
from slimformer.report import plots, tables
from slimformer.report.html import render, write_report
from slimformer.report.results import Importance, ModelResults, Quality, Results, Timing
from slimformer.report.summary import group_layers


def layer(heads: int | None, neurons: int | None) -> dict[str, Any]:
    return {
        "heads": heads,
        "kv_heads": heads,
        "head_dim": heads and 8,
        "value_dim": heads and (8 if heads > 1 else 5),
        "q_to_kv": heads and list(range(heads)),
        "neurons": neurons,
        "attention_link": None,
        "ffn_link": None,
    }


def model(name: str, layers: list[dict[str, Any]], sources: list[int], cost: float) -> ModelResults:
    return ModelResults(
        name=name,
        parameters=int(134e6 / cost),
        non_embedding_parameters=int(106e6 / cost),
        layers=layers,
        source_layers=sources,
        quality=[
            Quality("prose", 20.0 * cost, 0.9, tokens=6000),
            Quality("drama", None, None, tokens=6000),
            Quality("last words", 9.0, accuracy=0.5, standard_error=0.05, items=80),
        ],
        timing=Timing(500 * cost, 60 * cost, cost, cost, 1.5, 400_000_000, 270_000_000),
        sample=f" {name} <b>&",
    )


@pytest.fixture
def results() -> Results:
    dense = model("dense", [layer(4, 64)] * 4, [0, 1, 2, 3], 1.0)
    pruned = model("pruned", [layer(4, 64), layer(None, 32), layer(1, None)], [0, 1, 3], 1.25)
    return Results(
        title="some model, pruned to 80 %",
        version="1.2.3",
        measured_with="scalar kernels",
        calibrated_on="one text",
        evaluated_on="two texts",
        prompt="Once",
        models=[dense, pruned],
        importance=Importance("influence", [0.3, None, 0.1, 0.2], [0.001, 0.2, 0.1, 0.4]),
        warnings=["collapse: it is broken"],
        notes=["It took a while."],
    )


@pytest.fixture
def outline(results: Results) -> Results:
    """The same where only the shapes are known."""
    return dataclasses.replace(
        results,
        measured_with=None,
        evaluated_on=None,
        prompt=None,
        importance=None,
        models=[
            dataclasses.replace(found, quality=[], timing=None, sample=None)
            for found in results.models
        ],
    )


def test_results_come_back_as_they_were(results: Results, outline: Results, tmp_path: Path) -> None:
    for some in (results, outline):
        assert Results.load(some.save(tmp_path)) == some


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"schema_version": 2}', '{"schema_version": 1, "models": [{}]}']
)
def test_other_files_are_not_results(tmp_path: Path, text: str) -> None:
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(DataError, match=re.escape(str(path))):
        Results.load(path)


def test_unknown_fields_and_missing_files_are_refused(results: Results, tmp_path: Path) -> None:
    path = results.save(tmp_path)
    fields = json.loads(path.read_text())
    path.write_text(json.dumps({**fields, "surprise": 1}))
    with pytest.raises(DataError, match="surprise"):
        Results.load(path)
    with pytest.raises(StorageError):
        Results.load(tmp_path / "missing")
    with pytest.raises(StorageError):
        results.save(tmp_path / "missing")


class _Page(HTMLParser):
    """Collects what a page asks for from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.outside: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href") and not (value or "").startswith("#"):
                self.outside.append(f"{tag} {name}={value}")


def test_the_page_needs_nothing_else(results: Results, tmp_path: Path) -> None:
    page = write_report(results, tmp_path)
    parser = _Page()
    text = page.read_text(encoding="utf-8")
    parser.feed(text)
    assert parser.outside == []
    assert "script" not in parser.tags
    assert parser.tags.count("svg") == 3
    for part in (results.title, "collapse: it is broken", "It took a while.", "one text"):
        assert part in text
    assert "dense &lt;b&gt;&amp;" in text
    with pytest.raises(StorageError):
        write_report(results, tmp_path / "missing")


def test_a_page_of_shapes_alone(outline: Results) -> None:
    parser = _Page()
    text = render(outline)
    parser.feed(text)
    assert parser.tags.count("svg") == 1
    assert "have not been measured" in text


def test_plots_are_the_same_each_time(results: Results) -> None:
    dense, pruned = results.models
    assert plots.kept_plot(dense, pruned) == plots.kept_plot(dense, pruned)
    assert plots.tradeoff_plot(results.models) == plots.tradeoff_plot(results.models)


def printed(table: Any) -> str:
    console = Console(file=io.StringIO(), width=80)
    console.print(table)
    output = console.file
    assert isinstance(output, io.StringIO)
    return output.getvalue()


def test_the_comparison_fits_a_terminal(results: Results) -> None:
    text = printed(tables.comparison_table(results))
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    assert "(1.25x)" in text
    assert "overflow" in text
    assert "50.0 ± 5.0" in text


def test_equal_neighbours_share_a_row() -> None:
    layers = [layer(4, 64), layer(4, 64), layer(None, 64), layer(4, 64)]
    runs = [(first, last) for first, last, _ in group_layers(layers)]
    assert runs == [(0, 1), (2, 2), (3, 3)]
    text = printed(tables.layers_table(layers))
    assert "0-1" in text
    assert "-" in text.splitlines()[-3]


def test_numbers_keep_what_matters() -> None:
    assert tables.number(1234567.0) == "1,234,567"
    assert tables.number(123.46) == "123.5"
    assert tables.number(1.239) == "1.24"
    assert tables.number(None) == "overflow"
    assert tables.share(None, None) == ""
    assert tables.share(0.5, None) == "50.0"
