"""``load``: any model, wherever and in whatever format it is."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from slimformer.checkpoint import hub, packages
from slimformer.checkpoint.checkpoint import Checkpoint
from slimformer.checkpoint.folder import is_model_folder, read_folder
from slimformer.checkpoint.pulling import locate
from slimformer.checkpoint.replace_folder import recover
from slimformer.errors import ModelNotFoundError, StorageError, UnsupportedModelError
from slimformer.progress import Progress, silent


def load(model: str | os.PathLike[str], *, progress: Progress = silent) -> Checkpoint:
    """Open a model; tensors are read when they are asked for.

    Parameters
    ----------
    model:
        A GGUF file, a Hugging Face folder, a folder that Slimformer wrote, the name of a
        packaged model (fetched if it is not in the cache), or ``hf:org/name`` with an
        optional ``@revision``. A path that exists goes before a packaged name.
    progress:
        Told of a download.

    Raises
    ------
    ModelNotFoundError
        There is nothing under that name.
    FormatError
        The files are truncated, hostile or contradict each other.
    UnsupportedModelError
        The model's family or one of its features does not run here.
    DownloadError
        The model had to be fetched and could not be.
    """
    name = os.fspath(model)
    if name.startswith(hub.PREFIX):
        return dataclasses.replace(read_folder(hub.fetch(name)), name=name)
    path = Path(name)
    if _exists(path) and name:
        return _read_path(path)
    if name in packages.PACKAGES:
        return _read_path(locate(name, progress=progress))
    raise ModelNotFoundError(
        f"{name}: no such model; give a GGUF file, a model folder, "
        f"{hub.PREFIX}org/name, or one of {', '.join(packages.PACKAGES)}"
    )


def _exists(path: Path) -> bool:
    try:
        recover(path)
        return path.exists()
    except StorageError:
        raise
    except (OSError, ValueError):  # too long for a path, or with a NUL in it
        return False


def _read_path(path: Path) -> Checkpoint:
    if path.is_dir():
        if not is_model_folder(path):
            raise ModelNotFoundError(f"{path}: no model in this folder: expected config.json")
        return read_folder(path)

    from slimformer.checkpoint.gguf import is_gguf, read_gguf  # slow, and folders do without

    if path.is_file() and is_gguf(path):
        return read_gguf(path)
    if path.suffix in (".safetensors", ".bin", ".pt", ".pth"):
        raise UnsupportedModelError(
            f"{path}: weights alone do not describe a model; give the folder with its config.json"
        )
    raise UnsupportedModelError(f"{path}: not a GGUF file; give one, or a model folder")
