"""A file's tensors against what a layout expects."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from slimformer.checkpoint.layout import Layout
from slimformer.errors import FormatError


class _Shaped(Protocol):
    @property
    def shape(self) -> tuple[int, ...]: ...


def check_names(path: Path, layout: Layout, stored: Mapping[str, _Shaped]) -> None:
    """Raise ``FormatError`` unless the stored tensors are those of the layout.

    Parameters
    ----------
    path:
        The file or folder, for messages.
    layout:
        What there must be.
    stored:
        What there is, by stored name.
    """
    for expected in layout:
        tensor = stored.get(expected.name)
        if tensor is None:
            raise FormatError(f"{path}: tensor {expected.name}: expected, found none")
        if tensor.shape != expected.shape:
            raise FormatError(
                f"{path}: tensor {expected.name}: expected shape {expected.shape}, "
                f"found {tensor.shape}"
            )
    left = stored.keys() - {expected.name for expected in layout}
    if left:
        raise FormatError(f"{path}: unexpected tensors {sorted(left)[:5]}")
