"""``export``: a model as a file or folder of another engine."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

from slimformer.checkpoint import Checkpoint
from slimformer.checkpoint.checkpoint import DTYPES
from slimformer.checkpoint.families import by_name
from slimformer.errors import ConfigError
from slimformer.export.blocks import Change
from slimformer.export.gguf_file import GgufType, write_gguf
from slimformer.export.huggingface import write_huggingface
from slimformer.export.rewrite import uniform_layers

Format = Literal["gguf", "huggingface"]


@dataclasses.dataclass(frozen=True)
class Export:
    """What an export did: where the model is now, and how it had to be rewritten.

    ``dtype`` is what most of the matrices are kept as.
    """

    path: Path
    format: Format
    dtype: str
    parameters: int
    changes: Sequence[Change]

    @property
    def added_parameters(self) -> int:
        """What the rewriting gave back of what pruning had removed."""
        return sum(change.parameters for change in self.changes)


def export(
    checkpoint: Checkpoint,
    path: str | os.PathLike[str],
    *,
    to: Format,
    dtype: GgufType = "auto",
    pad: bool = False,
) -> Export:
    """Write a model for another engine, as an equivalent where its format cannot say the shape.

    Parameters
    ----------
    checkpoint:
        The model, of any shape.
    path:
        The GGUF file, or the folder.
    to:
        ``gguf``: one file for llama.cpp and its kin; layers that differ are said as ``deci``.
        ``huggingface``: a folder for ``transformers``; layers that differ come with a modelling
        file.
    dtype:
        The type of the matrices; ``auto`` keeps each tensor's own. ``q8_0`` and ``q4_0`` are of
        GGUF only.
    pad:
        Fill all layers up with zeros to the widest, so that the model is a plain one of its
        family.

    Raises
    ------
    ConfigError
        A setting is not one of those offered.
    UnsupportedModelError
        The model has no equivalent in that format.
    StorageError
        The file or folder cannot be written, or holds something else.
    """
    if to not in get_args(Format):
        raise ConfigError(f"to: expected {' or '.join(get_args(Format))}, found {to!r}")
    types = get_args(GgufType) if to == "gguf" else ("auto", *DTYPES)
    if dtype not in types:
        raise ConfigError(f"dtype: expected one of {', '.join(types)} for {to}, found {dtype!r}")
    family = by_name(checkpoint.config.family, checkpoint.name)
    before = checkpoint.config.parameters()
    stored_as = _main_type(checkpoint) if dtype == "auto" else dtype
    changes: list[Change] = []
    if pad and family.to_huggingface(checkpoint.config) is None:
        checkpoint, changes = uniform_layers(checkpoint)
    if to == "gguf":
        changes += write_gguf(checkpoint, Path(path), dtype=dtype)
    else:
        assert dtype in ("auto", "f32", "f16", "bf16")
        write_huggingface(checkpoint, path, dtype=dtype)
    added = sum(change.parameters for change in changes)
    return Export(Path(path), to, stored_as, before + added, changes)


def _main_type(checkpoint: Checkpoint) -> str:
    """The type that most of a model's bytes are of."""
    sizes: dict[str, int] = {}
    for tensor in checkpoint.tensors.values():
        sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.nbytes
    return max(sizes, key=lambda name: sizes[name])
