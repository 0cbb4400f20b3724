"""``load``: any model, wherever and in whatever format it is."""

from __future__ import annotations

import os
from pathlib import Path

from slimformer.checkpoint.checkpoint import Checkpoint
from slimformer.checkpoint.folder import read_folder
from slimformer.checkpoint.gguf import read_gguf
from slimformer.errors import ModelNotFoundError


def load(model: str | os.PathLike[str]) -> Checkpoint:
    """The model in a GGUF file or folder."""
    path = Path(model)
    if not path.exists():
        raise ModelNotFoundError(f"{model}: no such model")
    return read_folder(path) if path.is_dir() else read_gguf(path)
