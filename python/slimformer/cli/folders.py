"""Output folders, checked before minutes of work are spent on what goes into them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from slimformer.errors import StorageError


def check_model_output(folder: Path) -> None:
    """Refuse a folder that a model could not be saved to.

    A folder that holds a model is replaced; one that holds anything else is not.

    Raises
    ------
    StorageError
        The folder is a file, holds something else, or cannot be made or written.
    """
    if folder.exists():
        if not folder.is_dir():
            raise StorageError(f"{folder}: expected a folder, found a file")
        if any(folder.iterdir()) and not (folder / "config.json").is_file():
            raise StorageError(
                f"{folder}: expected a new or empty folder, or a model to replace, "
                f"found other files"
            )
    parent = _existing_parent(folder)
    if not parent.is_dir():
        raise StorageError(f"{parent}: expected a folder, found a file")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise StorageError(f"{parent}: no permission to write")


def check_space(folder: Path, needed_bytes: int) -> None:
    """Refuse a folder whose disk has less room than that.

    Raises
    ------
    StorageError
        There is too little.
    """
    parent = _existing_parent(folder)
    free = shutil.disk_usage(parent).free
    if free < needed_bytes:
        raise StorageError(
            f"{parent}: {needed_bytes / 1e6:,.0f} MB are needed at least, "
            f"{free / 1e6:,.0f} MB are free"
        )


def _existing_parent(folder: Path) -> Path:
    parent = folder.absolute().parent
    while not parent.exists():
        parent = parent.parent
    return parent
