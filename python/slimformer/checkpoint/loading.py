"""``load``: any model, wherever and in whatever format it is."""

from __future__ import annotations

import os
from pathlib import Path

from slimformer.checkpoint.checkpoint import Checkpoint
from slimformer.checkpoint.gguf import read_gguf
from slimformer.errors import ModelNotFoundError


def load(model: str | os.PathLike[str]) -> Checkpoint:
    """The model in a GGUF file."""
    path = Path(model)
    if not path.is_file():
        raise ModelNotFoundError(f"{model}: no such model")
    return read_gguf(path)
