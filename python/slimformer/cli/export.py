"""``slimformer export``: a model for llama.cpp and its kin, or for transformers."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from slimformer.cli.console import print_json, print_note
from slimformer.cli.models import load_checkpoint
from slimformer.cli.options import JsonOption, ModelArgument, ThreadsOption

if TYPE_CHECKING:
    from slimformer.export import Change
    from slimformer.export.verify import Verification


MAX_PLACES = 6
"""More places than that are counted, not listed."""


class To(str, enum.Enum):
    """Formats to export to."""

    GGUF = "gguf"
    HUGGINGFACE = "huggingface"


class Type(str, enum.Enum):
    """Types to store matrices in."""

    AUTO = "auto"
    F32 = "f32"
    F16 = "f16"
    BF16 = "bf16"
    Q8_0 = "q8_0"
    Q4_0 = "q4_0"


def export(
    model: ModelArgument,
    output: Annotated[
        Path,
        typer.Argument(metavar="OUT", help="The GGUF file, or the folder.", show_default=False),
    ],
    to: Annotated[
        To,
        typer.Option(
            "--to", help="gguf for llama.cpp, huggingface for transformers.", show_default=False
        ),
    ],
    dtype: Annotated[
        Type, typer.Option("--type", help="Type of the matrices; auto keeps their own.")
    ] = Type.AUTO,
    pad: Annotated[
        bool,
        typer.Option(
            "--pad", help="Fill layers up with zeros until all are alike, to open anywhere."
        ),
    ] = False,
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Let that engine read a text, and compare with our own."),
    ] = False,
    threads: ThreadsOption = 0,
    json: JsonOption = False,
) -> None:
    """Write a model for another engine, whatever its layers look like."""
    from slimformer.errors import DataError, MissingPackageError
    from slimformer.export import export as write
    from slimformer.report.summary import file_bytes
    from slimformer.report.tables import megabytes, millions

    checkpoint = load_checkpoint(model)
    done = write(checkpoint, output, to=to.value, dtype=dtype.value, pad=pad)
    changes = _summed(done.changes)
    stored = file_bytes(output)
    found: Verification | None = None
    reason = None
    if verify:
        from slimformer.export.verify import verify as check

        try:
            found = check(checkpoint, done, threads=threads)
        except (MissingPackageError, DataError) as error:
            reason = str(error)
    if json:
        print_json(
            {
                "output": str(output),
                "format": done.format,
                "bytes": stored,
                "parameters": done.parameters,
                "added_parameters": done.added_parameters,
                "changes": changes,
                "verification": None if found is None else _row(found),
            }
        )
    else:
        for change in changes:
            where = change["where"]
            places = ", ".join(where) if len(where) <= MAX_PLACES else f"{len(where)} sub-blocks"
            print_note(f"{change['what']}: {places} ({change['parameters']:+,} parameters)")
        told = f", {done.added_parameters:+,} of them given back" if changes else ""
        typer.echo(f"{output}: {millions(done.parameters)} parameters{told}, {megabytes(stored)}")
        if found is not None:
            typer.echo(
                f"{found.measure} of {found.tokens} tokens: {found.theirs:.4f} by {found.engine}, "
                f"{found.ours:.4f} by our own engine ({found.difference:.2%} apart)"
            )
    if reason is not None:
        print_note(reason)
    if found is not None:
        found.check()


def _summed(changes: Sequence[Change]) -> list[dict[str, Any]]:
    """One entry for all places that were rewritten in the same way."""
    found: dict[str, dict[str, Any]] = {}
    for change in changes:
        entry = found.setdefault(change.what, {"what": change.what, "where": [], "parameters": 0})
        entry["where"].append(change.where)
        entry["parameters"] += change.parameters
    return list(found.values())


def _row(found: Verification) -> dict[str, Any]:
    return {
        "engine": found.engine,
        "tokens": found.tokens,
        found.measure: found.theirs,
        f"our_{found.measure}": found.ours,
        "difference": found.difference,
        "same_tokens": found.same_tokens,
    }
