"""GGUF files: one file with metadata, tokenizer and (mostly quantised) tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf.constants import GGMLQuantizationType

from slimformer.checkpoint.checkpoint import DTYPES, Checkpoint, Tensor
from slimformer.checkpoint.dequantise import QUANTISED, dequantise
from slimformer.checkpoint.families import Family, by_gguf_architecture
from slimformer.checkpoint.families.family import RowOrder
from slimformer.checkpoint.gguf_header import MAGIC, GgufFile, GgufTensor, open_gguf
from slimformer.checkpoint.gguf_tokenizer import tokenizer_from_gguf
from slimformer.checkpoint.match_names import match_names
from slimformer.config import ModelConfig
from slimformer.errors import ConfigError, FormatError, StorageError, UnsupportedModelError

_PLAIN = {
    GGMLQuantizationType.F32: "f32",
    GGMLQuantizationType.F16: "f16",
    GGMLQuantizationType.BF16: "bf16",
}


def is_gguf(path: Path) -> bool:
    """Whether the file starts like a GGUF file."""
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError as error:
        raise StorageError(f"{path}: cannot read: {error}") from error


def read_gguf(path: Path) -> Checkpoint:
    """The model in a GGUF file, mapped: tensors are dequantised when they are read.

    Raises
    ------
    FormatError
        The file is truncated, contradicts itself, or lacks tensors.
    UnsupportedModelError
        Its family, element types, tokenizer or features do not run here.
    """
    file = open_gguf(path)
    if file.metadata.integer("split.count", 1) > 1:
        raise UnsupportedModelError(
            f"{path}: one of several pieces of a model; join them first, with llama.cpp's "
            "'llama-gguf-split --merge'"
        )
    family = by_gguf_architecture(file.metadata.text("general.architecture"), str(path))
    try:
        config = family.from_gguf(file)
    except ConfigError as error:
        raise FormatError(f"{path}: {error}") from error
    weights = _weights(file, family, config)
    tensors = {
        name: _lazy_tensor(file, tensor, family.gguf_row_order(config, name))
        for name, tensor in weights.items()
    }
    return Checkpoint(
        name=path.stem,
        config=config,
        tensors=tensors,
        tokenizer=tokenizer_from_gguf(file.metadata, config.vocab_size),
        quantised=any(tensor.quantisation in QUANTISED for tensor in weights.values()),
    )


def _weights(file: GgufFile, family: Family, config: ModelConfig) -> dict[str, GgufTensor]:
    """Stored tensors by canonical name, of types that are read here."""
    stored = {name: t for name, t in file.tensors.items() if name not in family.gguf_consumed}
    weights = match_names(file.path, config, family.gguf_name, stored)
    for tensor in weights.values():
        if tensor.quantisation not in _PLAIN and tensor.quantisation not in QUANTISED:
            raise UnsupportedModelError(
                f"{file.path}: tensor {tensor.name}: element type {tensor.quantisation.name} "
                "is not read here"
            )
    return weights


def _lazy_tensor(file: GgufFile, tensor: GgufTensor, row_order: RowOrder | None) -> Tensor:
    dtype = _PLAIN.get(tensor.quantisation, "f32")

    def read() -> npt.NDArray[Any]:
        data = file.tensor_bytes(tensor)
        if tensor.quantisation in QUANTISED:
            values: npt.NDArray[Any] = dequantise(data, tensor.shape, tensor.quantisation)
        else:
            values = data.view(DTYPES[dtype]).reshape(tensor.shape)
        return values if row_order is None else np.ascontiguousarray(values[row_order])

    return Tensor(tensor.shape, dtype, read)
