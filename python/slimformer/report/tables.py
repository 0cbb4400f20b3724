"""Tables for the terminal, 80 columns wide."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from slimformer.report.results import Results
from slimformer.report.summary import group_layers


def comparison_table(results: Results) -> Table:
    """One column a model, one row a figure, with ratios to the first model."""
    table = _table(results.title)
    table.add_column("")
    for model in results.models:
        table.add_column(model.name, justify="right")
    for row in comparison_rows(results):
        table.add_row(*row)
    return table


def comparison_rows(results: Results) -> list[list[str]]:
    """The rows of the comparison: a label, and a text for each model."""
    models = results.models
    rows = [
        _compared("parameters", [model.parameters for model in models], millions),
        _compared(
            "outside the embedding", [model.non_embedding_parameters for model in models], millions
        ),
    ]
    timings = [model.timing for model in models if model.timing is not None]
    if len(timings) == len(models):
        rows += [
            _compared("packed weights", [timing.weight_bytes for timing in timings], megabytes),
            _compared("peak memory", [timing.peak_memory_bytes for timing in timings], megabytes),
            ["load", *(f"{timing.load_s:.2f} s" for timing in timings)],
            [
                "prefill tokens/s",
                *(_ratio(timing.prefill_tokens_per_s, timing.prefill_ratio) for timing in timings),
            ],
            [
                "decode tokens/s",
                *(_ratio(timing.decode_tokens_per_s, timing.decode_ratio) for timing in timings),
            ],
        ]
    for same in zip(*(model.quality for model in models), strict=True):
        name = same[0].name
        if same[0].accuracy is None:
            rows.append(_compared(f"perplexity, {name}", [q.perplexity for q in same], number))
        else:
            rows.append(
                [f"accuracy %, {name}", *(share(q.accuracy, q.standard_error) for q in same)]
            )
    return rows


def layers_table(layers: Sequence[Mapping[str, Any]]) -> Table:
    """The shape of every layer, equal neighbours in one row; its window if any layer has one."""
    table = _table()
    for name in ("layers", "query heads", "KV heads", "head width", "neurons"):
        table.add_column(name, justify="right")
    windows = any(layer.get("window") for layer in layers)
    if windows:
        table.add_column("window", justify="right")
    for first, last, layer in group_layers([dict(layer) for layer in layers]):
        attention = layer["attention_link"] and f"{layer['attention_link']} link"
        table.add_row(
            str(first) if first == last else f"{first}-{last}",
            attention or _count(layer["heads"]),
            _count(layer["kv_heads"]),
            _head_width(layer),
            _ffn(layer),
            *([_count(layer["window"])] if windows else []),
        )
    return table


def widths_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The models of a folder of several widths, and what it holds for each alone."""
    table = _table()
    table.add_column("model", overflow="fold")
    for name in ("parameters", "outside the embedding", "bytes", "of its own"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            _short(row["model"]),
            millions(row["parameters"]),
            millions(row["non_embedding_parameters"]),
            megabytes(row["bytes"]),
            megabytes(row["own_bytes"]),
        )
    return table


def evaluation_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Texts and tasks by model, from the rows of ``evaluate --json``."""
    table = _table()
    table.add_column("model", overflow="fold")
    table.add_column("text or task", overflow="fold")
    for name in ("perplexity", "bits/byte", "accuracy", "by length"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            _short(row["model"]),
            _short(row.get("text") or row["task"]),
            number(row["perplexity"]) if "perplexity" in row else "",
            number(row.get("bits_per_byte")) if "bits_per_byte" in row else "",
            share(row.get("accuracy"), row.get("standard_error")),
            share(row.get("accuracy_norm"), row.get("standard_error_norm")),
        )
    return table


def probe_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """What models wrote, prompt by prompt, from the probes of ``evaluate --json``."""
    table = _table()
    table.add_column("", overflow="fold")
    for row in rows:
        table.add_column(_short(row["model"]), overflow="fold")
    table.add_row("phrases repeated", *(percent(row["repetition"]) for row in rows))
    for size in (1, 2, 3):
        label = f"distinct phrases of {size}"
        table.add_row(label, *(percent(row["distinct"][size - 1]) for row in rows))
    for prompt in rows[0]["answers"]:
        table.add_row(escape(prompt), *(escape(row["answers"][prompt].strip()) for row in rows))
    return table


def bench_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Speed and memory by model, from the rows of ``bench --json``."""
    table = _table()
    table.add_column("", overflow="fold")
    for row in rows:
        table.add_column(_short(row["model"]), justify="right", overflow="fold")
    figures: tuple[tuple[str, Callable[[Mapping[str, Any]], str]], ...] = (
        ("prefill tokens/s", lambda row: _spread(row, "prefill")),
        ("  x the first", lambda row: f"{row['prefill_ratio']:.2f}"),
        ("  GFLOP/s", lambda row: _known(row, "prefill_gflops", number)),
        ("  of the peak", lambda row: percent(row.get("prefill_share_of_peak"))),
        ("decode tokens/s", lambda row: _spread(row, "decode")),
        ("  x the first", lambda row: f"{row['decode_ratio']:.2f}"),
        ("  GB/s", lambda row: _known(row, "decode_gb_per_s", number)),
        ("  of the memory's", lambda row: percent(row.get("decode_share_of_peak"))),
        ("load", lambda row: _known(row, "load_s", _seconds)),
        ("  to the first token", lambda row: _known(row, "first_token_s", _seconds)),
        ("peak memory", lambda row: _known(row, "peak_memory_bytes", megabytes)),
        ("packed weights", lambda row: _known(row, "weight_bytes", megabytes)),
    )
    for label, text in figures:
        table.add_row(label, *(text(row) for row in rows))
    return table


def _known(row: Mapping[str, Any], key: str, text: Callable[[Any], str]) -> str:
    """What a row says; other engines leave some of it open."""
    return text(row[key]) if key in row else ""


def _seconds(value: float) -> str:
    return f"{value:.2f} s"


def number(value: float | None) -> str:
    """Three significant digits or more; an overflow says so."""
    if value is None:
        return "overflow"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.2f}" if abs(value) < 100 else f"{value:.1f}"


def millions(value: float | None) -> str:
    """Parameters, in millions."""
    return "" if value is None else f"{value / 1e6:,.2f} M"


def megabytes(value: float | None) -> str:
    """Bytes, in megabytes of a million."""
    return "" if value is None else f"{value / 1e6:,.1f} MB"


def percent(value: float | None) -> str:
    """A share, in per cent; nothing where there is none."""
    return "" if value is None else f"{100 * value:.0f} %"


def share(value: float | None, error: float | None) -> str:
    """An accuracy with its standard error, in per cent; nothing where there is none."""
    if value is None:
        return ""
    return f"{100 * value:.1f}" if error is None else f"{100 * value:.1f} ± {100 * error:.1f}"


def _table(title: str | None = None) -> Table:
    return Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)


def _short(path: str) -> str:
    """The last part of a path: a table has no room for more."""
    return Path(path).name or path


def _compared(
    label: str, values: Sequence[float | None], text: Callable[[float | None], str]
) -> list[str]:
    """A row of values, each but the first with its ratio to the first."""
    first = values[0]
    row = [label]
    for index, value in enumerate(values):
        if index > 0 and value is not None and first:
            row.append(f"{text(value)} ({value / first:.2f}x)")
        else:
            row.append(text(value))
    return row


def _ratio(value: float, ratio: float) -> str:
    return f"{number(value)} ({ratio:.2f}x)"


def _head_width(layer: Mapping[str, Any]) -> str:
    """64; 64, values 48."""
    same = layer["value_dim"] == layer["head_dim"]
    return _count(layer["head_dim"]) + ("" if same else f", values {layer['value_dim']}")


def _ffn(layer: Mapping[str, Any]) -> str:
    """Neurons: 64; 2 of 8 experts with 64; 1 of 3 experts with 7 to 64."""
    if layer["ffn_link"]:
        return f"{layer['ffn_link']} link"
    experts = layer.get("experts")
    if not experts:
        return _count(layer["neurons"])
    least, most = min(experts), max(experts)
    width = str(least) if least == most else f"{least} to {most}"
    return f"{layer['experts_run']} of {len(experts)} experts with {width}"


def _count(value: int | None) -> str:
    return "-" if value is None else str(value)


def _spread(row: Mapping[str, Any], kind: str) -> str:
    low, high = row[f"{kind}_range"]
    return f"{number(row[f'{kind}_tokens_per_s'])} ({low:.0f}-{high:.0f})"
