"""Work in progress on disk: what a recovery needs to go on where it was."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import torch

from slimformer.errors import ConfigError, FormatError, StorageError


def save_state(path: Path, identity: str, content: dict[str, Any]) -> None:
    """Write a state; what was there before stays until the new one is whole.

    ``identity`` says what work it belongs to.
    """
    staging = path.with_name(f".{path.name}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"identity": identity, **content}, staging)
        os.replace(staging, path)  # noqa: PTH105
    except (OSError, RuntimeError) as error:
        raise StorageError(f"{path}: cannot save the state of the work: {error}") from error
    finally:
        staging.unlink(missing_ok=True)


def load_state(path: Path, identity: str) -> dict[str, Any]:
    """Read a state of the same work. Nothing in the file is executed.

    Raises
    ------
    FormatError
        It is not what ``save_state`` writes.
    ConfigError
        It belongs to other work.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        first = str(error).splitlines()[:1]
        raise FormatError(f"{path}: not the state of a recovery, or not whole: {first}") from error
    if not isinstance(content, dict) or content.get("identity") != identity:
        raise ConfigError(
            f"{path}: the state of other work: another model, teacher, text or settings; remove it "
            "to start anew"
        )
    return content
