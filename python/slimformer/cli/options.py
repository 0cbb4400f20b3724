"""Options that several commands share, and how their texts are read."""

from __future__ import annotations

import enum
import re
from typing import Annotated

import typer


class Weights(str, enum.Enum):
    """Types that the engine keeps weights in."""

    F32 = "f32"
    BF16 = "bf16"
    INT8 = "int8"
    INT4 = "int4"


class Sparse(str, enum.Enum):
    """When the engine keeps a matrix without its zeros."""

    AUTO = "auto"
    NEVER = "never"
    SMALLER = "smaller"


class Kv(str, enum.Enum):
    """Types that the engine keeps keys and values in."""

    F32 = "f32"
    BF16 = "bf16"
    INT8 = "int8"


ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A GGUF file, a model folder (with @0.8 for one of its widths), hf:org/name, or a "
        "packaged name such as smollm2-135m-instruct.",
        show_default=False,
    ),
]
WeightsOption = Annotated[
    Weights | None,
    typer.Option(
        "--weights",
        help="Type of the packed weights; bf16, or what a packed model holds.",
        show_default=False,
    ),
]
SparseOption = Annotated[
    Sparse, typer.Option("--sparse", help="When matrices are kept without their zeros.")
]
KvOption = Annotated[
    Kv | None,
    typer.Option("--kv", help="Type of cached keys and values; bf16 unless the weights are f32."),
]
WindowOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Keep no more than the last N tokens and the first few in sight: memory then stays as "
        "it is however long the text.",
    ),
]
SinksOption = Annotated[
    int | None,
    typer.Option(min=0, metavar="N", help="First tokens that stay in sight with --window; 4."),
]
ThreadsOption = Annotated[
    int, typer.Option("--threads", min=0, help="Threads; 0 takes all cores.", metavar="N")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="Seed of everything random.")]

_UNITS = {
    "": 1,
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
}


def parse_indices(text: str | None) -> tuple[int, ...]:
    """Read ``20,21`` or ``4-7,9`` as ascending indices; nothing gives none."""
    if text is None or not text.strip():
        return ()
    found: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,9})(?:-(\d{1,9}))?\s*", part)
        if match is None:
            raise typer.BadParameter(f"expected indices such as 20,21 or 4-7, found {text!r}")
        first = int(match.group(1))
        last = int(match.group(2) or first)
        if last < first or last - first > 1 << 20:
            raise typer.BadParameter(f"expected an ascending range, found {part.strip()!r}")
        found.update(range(first, last + 1))
    return tuple(sorted(found))


def parse_protected(text: str | None) -> tuple[int, ...] | None:
    """Read ``0,1,-1`` as layers, ``none`` as none of them; nothing leaves the default."""
    if text is None:
        return None
    if text.strip() == "none":
        return ()
    parts = text.split(",")
    if not all(re.fullmatch(r"\s*-?\d{1,9}\s*", part) for part in parts):
        raise typer.BadParameter(f"expected layers such as 0,1,-1 or none, found {text!r}")
    return tuple(int(part) for part in parts)


def parse_names(text: str | None) -> tuple[str, ...] | None:
    """Read ``heads,neurons`` as names; nothing leaves the default."""
    if text is None:
        return None
    return tuple(part.strip() for part in text.split(",") if part.strip())


def parse_size(text: str | None) -> int | None:
    """Read ``80MB``, ``1.5GiB`` or a plain number of bytes."""
    if text is None:
        return None
    match = re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,9})?)\s*([a-zA-Z]*)\s*", text)
    if match is None or match.group(2).upper() not in _UNITS:
        raise typer.BadParameter(f"expected a size such as 80MB, found {text!r}")
    size = int(float(match.group(1)) * _UNITS[match.group(2).upper()])
    if size < 1:
        raise typer.BadParameter(f"expected a size above 0, found {text!r}")
    return size


def parse_kept(texts: list[str], units: str) -> dict[int, tuple[int, ...]]:
    """Read ``4=0,1,2`` as the units 0, 1 and 2 that layer 4 keeps: its heads, say."""
    kept: dict[int, tuple[int, ...]] = {}
    for text in texts:
        layer, equals, kept_here = text.partition("=")
        if not equals or not layer.strip().isdecimal() or not kept_here.strip():
            raise typer.BadParameter(f"expected LAYER={units} such as 4=0,1,2, found {text!r}")
        if int(layer) in kept:
            raise typer.BadParameter(f"layer {int(layer)} is given twice")
        kept[int(layer)] = parse_indices(kept_here)
    return kept
