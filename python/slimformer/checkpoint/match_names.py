"""A file's tensors by Slimformer's names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol, TypeVar

from slimformer.config import ModelConfig
from slimformer.errors import FormatError


class _Shaped(Protocol):
    @property
    def shape(self) -> tuple[int, ...]: ...


_T = TypeVar("_T", bound=_Shaped)


def match_names(
    path: Path, config: ModelConfig, name_in_file: Callable[[str], str], stored: Mapping[str, _T]
) -> dict[str, _T]:
    """The stored tensors under their canonical names: none missing, none left, shapes right.

    Parameters
    ----------
    path:
        The file or folder, for messages.
    config:
        The shape that the tensors must have.
    name_in_file:
        Gives the stored name of a canonical one.
    stored:
        What there is, by stored name.
    """
    left = dict(stored)
    found = {}
    for name, shape in config.tensor_shapes().items():
        stored_name = name_in_file(name)
        tensor = left.pop(stored_name, None)
        if tensor is None:
            raise FormatError(f"{path}: tensor {stored_name}: expected, found none")
        if tensor.shape != shape:
            raise FormatError(
                f"{path}: tensor {stored_name}: expected shape {shape}, found {tensor.shape}"
            )
        found[name] = tensor
    if left:
        raise FormatError(f"{path}: unexpected tensors {sorted(left)[:5]}")
    return found
