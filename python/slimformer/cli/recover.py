"""``slimformer recover``: train a pruned model on text and what the dense one makes of it."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from slimformer.cli.console import print_json, print_note, progress_display
from slimformer.cli.models import load_checkpoint
from slimformer.cli.options import JsonOption, SeedOption, ThreadsOption

if TYPE_CHECKING:
    from slimformer.checkpoint import Checkpoint
    from slimformer.progress import Progress
    from slimformer.train import Recovery, Step
    from slimformer.train.settings import Report

STATE = ".recovery"
"""Ending of the file beside the output that work in progress is kept in."""

LINE_EVERY = 0.05
"""Without a terminal, a line is printed each time that such a share of the budget is used up."""


def recover(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="A folder that prune wrote.", show_default=False)
    ],
    teacher: Annotated[
        str,
        typer.Option(
            "--teacher",
            metavar="MODEL",
            help="The dense model that it was made from.",
            show_default=False,
        ),
    ],
    data: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="PATH",
            help="Text to read (txt, jsonl, a folder); may repeat. Without any the teacher "
            "writes some; where it runs out, the teacher writes on.",
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(metavar="OUT", help="Where the result goes; else over DIR.")
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(min=0.01, help="Time to train; 10 if nothing is said.")
    ] = None,
    tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens to train on; the same seed then gives the same bytes."),
    ] = None,
    lora: Annotated[
        int | None,
        typer.Option(min=1, metavar="RANK", help="Train low-rank updates, merged at the end."),
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="Highest rate of AdamW; else by the weights' size.")
    ] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Tokens of a step.")] = None,
    labels: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=1.0,
            help="Share of the text's own next tokens in what is learnt; 0 learns from the "
            "teacher alone.",
        ),
    ] = None,
    seed: SeedOption = 0,
    threads: ThreadsOption = 0,
    json: JsonOption = False,
) -> None:
    """Train a pruned model on text and what the dense one makes of it; needs the extra `train`.

    Weights are kept only where held-out text confirms them. Interrupted work goes on when the
    command is given again.
    """
    from slimformer.checkpoint import check_output
    from slimformer.prune import load_calibration
    from slimformer.train import Settings
    from slimformer.train import recover as train
    from slimformer.train.optional import require_torch

    require_torch("slimformer recover")
    target = output or folder
    check_output(target)
    chosen = {
        "tokens": tokens,
        "lora": lora,
        "learning_rate": learning_rate,
        "batch": batch,
        "labels": labels,
    }
    settings = Settings(
        minutes=10.0 if minutes is None and tokens is None else minutes,
        seed=seed,
        **{name: value for name, value in chosen.items() if value is not None},  # type: ignore[arg-type]
    )
    texts = load_calibration(data) if data else None
    state = target.with_name(target.name + STATE)
    student, dense = load_checkpoint(str(folder)), load_checkpoint(teacher)
    check_output(target, needed_bytes=student.nbytes)
    with _display() as (progress, report):
        recovery = train(
            student,
            dense,
            settings,
            texts=texts,
            state=state,
            threads=threads,
            progress=progress,
            report=report,
        )
    calibrated_on = _calibrated_on(folder)
    recovery.checkpoint.save(target)
    state.unlink(missing_ok=True)
    read = ", ".join(map(str, data)) if data else f"text that the teacher wrote (seed {seed})"
    if recovery.written:
        read += f" ({recovery.written:,} of them continuations that the teacher wrote)"
    note = (
        f"Recovered on {recovery.tokens:,} tokens of {read} in {recovery.seconds / 60:.1f} "
        f"minutes, with {teacher} as teacher; loss on held-out text {recovery.before:.4f} before, "
        f"{recovery.after:.4f} after."
    )
    _save_outline(teacher, dense, target, calibrated_on, note)
    _tell(recovery, target, note, json=json)


def _calibrated_on(folder: Path) -> str:
    """What pruning left word of beside the model; saving over it takes that away."""
    from slimformer.report.results import FILE_NAME, Results

    path = folder / FILE_NAME
    return Results.load(path).calibrated_on if path.exists() else "unknown text"


def _save_outline(
    teacher: str, dense: Checkpoint, target: Path, calibrated_on: str, note: str
) -> None:
    """Leave beside the model what ``slimformer report`` shows of it, if its recipe is known."""
    import dataclasses

    from slimformer.checkpoint import load
    from slimformer.prune import Recipe
    from slimformer.report.comparison import Candidate, outline

    recovered = load(target)
    if recovered.recipe is None:
        return
    candidates = (
        Candidate.dense(teacher, dense),
        Candidate.pruned(target, recovered, Recipe.from_dict(recovered.recipe)),
    )
    results = outline(*candidates, calibrated_on=calibrated_on)
    dataclasses.replace(results, notes=[*results.notes, note]).save(target)


def _tell(recovery: Recovery, target: Path, note: str, *, json: bool) -> None:
    if json:
        print_json(
            {
                "output": str(target),
                "tokens": recovery.tokens,
                "tokens_written": recovery.written,
                "text_tokens": recovery.text_tokens,
                "seconds": recovery.seconds,
                "loss_before": recovery.before,
                "loss_after": recovery.after,
            }
        )
        return
    typer.echo(f"{target}: {note}")
    if recovery.after >= recovery.before:
        typer.echo("Held-out text confirmed nothing, so the model is as it was.")
    if recovery.readings > 1:
        typer.echo(
            f"Its {recovery.text_tokens:,} tokens of text were read {recovery.readings:.1f} times, "
            "and what is read again teaches less: with more text (--data) more comes back."
        )


@contextlib.contextmanager
def _display() -> Iterator[tuple[Progress, Report]]:
    """Show preparations and training on standard error: bars on a terminal, else some lines."""
    if not sys.stderr.isatty():
        with progress_display() as progress:
            yield progress, _Lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, TaskID, TextColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[text]}"))
    tasks: dict[str, TaskID] = {}
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:

        def show(what: str, done: float, total: float, text: str = "") -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, text="")
            bars.update(tasks[what], completed=done, total=total, text=text)

        yield show, lambda step: show("train", step.share, 1.0, _line(step))


class _Lines:
    """A line now and then, so that a log stays readable."""

    def __init__(self) -> None:
        self._next = 0.0

    def __call__(self, step: Step) -> None:
        if step.share >= self._next:
            self._next = step.share + LINE_EVERY
            print_note(f"train {step.share:.0%}, {_line(step)}")


def _line(step: Step) -> str:
    minutes, seconds = divmod(round(step.seconds_left), 60)
    return (
        f"{step.tokens:,} tokens, loss {step.loss:.3f}, held-out {step.held_out:.3f}, "
        f"{step.tokens_per_second:.0f} tokens/s, {minutes}:{seconds:02d} left"
    )
