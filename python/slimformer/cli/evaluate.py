"""``slimformer evaluate``: quality of models on texts and tasks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from slimformer.cli.console import print_json, print_tables, progress_display
from slimformer.cli.models import load_engine
from slimformer.cli.options import (
    JsonOption,
    KvOption,
    ThreadsOption,
    WeightsOption,
)

if TYPE_CHECKING:
    from slimformer.evaluate import ProbeResult, TaskResult, TextResult


def evaluate(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help="One model or more.")],
    text: Annotated[
        list[Path] | None,
        typer.Option("--text", metavar="FILE", help="Text for perplexity; may repeat."),
    ] = None,
    tasks: Annotated[
        list[Path] | None,
        typer.Option(
            "--tasks",
            metavar="FILE",
            help="Task files (*.jsonl), or a folder of them; may repeat, or list several.",
        ),
    ] = None,
    probe: Annotated[
        bool, typer.Option("--probe", help="Let the models answer a dozen prompts.")
    ] = False,
    context: Annotated[int, typer.Option(min=2, help="Tokens in a window of text.")] = 2048,
    max_windows: Annotated[
        int | None, typer.Option(min=1, help="Stop after so many windows of each text.")
    ] = None,
    max_items: Annotated[
        int | None, typer.Option(min=1, help="Answer so many items of each task.")
    ] = None,
    weights: WeightsOption = None,
    kv: KvOption = None,
    threads: ThreadsOption = 0,
    json: JsonOption = False,
) -> None:
    """Measure perplexity on texts and accuracy on tasks, several models side by side."""
    from slimformer.evaluate import (
        evaluate_task,
        evaluate_text,
        find_tasks,
        load_task,
        probe_generation,
        read_text,
    )

    # A shell turns `--tasks folder/*` into one option value and further arguments.
    names = [name for name in models if not name.endswith(".jsonl")]
    more_tasks = [Path(name) for name in models if name.endswith(".jsonl")]
    if not names:
        raise typer.BadParameter("expected a model")
    if not (text or tasks or probe):
        raise typer.BadParameter("expected --text, --tasks or --probe")
    texts = [(str(path), read_text(path)) for path in text or ()]
    questions = [load_task(path) for path in find_tasks([*(tasks or ()), *more_tasks])]

    rows: list[dict[str, Any]] = []
    probes: list[dict[str, Any]] = []
    for name in names:
        engine = load_engine(name, weights=weights, threads=threads, kv=kv)
        with progress_display() as progress:
            for path, contents in texts:
                result = evaluate_text(
                    engine, contents, context=context, max_windows=max_windows, progress=progress
                )
                rows.append(_text_row(name, path, result))
            for task in questions:
                answers = evaluate_task(engine, task, max_items=max_items, progress=progress)
                rows.append(_task_row(name, task.name, answers))
            if probe:
                probes.append(_probe_row(name, probe_generation(engine, progress=progress)))
        del engine
    if json:
        print_json({"results": rows, "probes": probes})
        return

    from slimformer.report.tables import evaluation_table, probe_table

    print_tables(*([evaluation_table(rows)] if rows else []))
    print_tables(*([probe_table(probes)] if probes else []))


def _text_row(model: str, text: str, result: TextResult) -> dict[str, Any]:
    return {
        "model": model,
        "text": text,
        "tokens": result.tokens,
        "windows": result.windows,
        "perplexity": result.perplexity,
        "bits_per_byte": result.bits_per_byte,
    }


def _task_row(model: str, task: str, result: TaskResult) -> dict[str, Any]:
    row = {
        "model": model,
        "task": task,
        "items": result.items,
        "accuracy": result.accuracy,
        "standard_error": result.standard_error,
        "target_perplexity": result.target_perplexity,
    }
    if result.accuracy_norm is not None:
        row["accuracy_norm"] = result.accuracy_norm
        row["standard_error_norm"] = result.standard_error_norm
    return row


def _probe_row(model: str, result: ProbeResult) -> dict[str, Any]:
    from slimformer.evaluate.probe import PROMPTS

    return {
        "model": model,
        "repetition": result.repetition,
        "distinct": list(result.distinct),
        "answers": dict(zip(PROMPTS, result.answers, strict=True)),
    }
