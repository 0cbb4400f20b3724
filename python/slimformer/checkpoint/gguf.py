"""GGUF files: one file with metadata, tokenizer and (mostly quantised) tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy.typing as npt
from gguf.constants import GGMLQuantizationType

from slimformer.checkpoint.check_names import check_names
from slimformer.checkpoint.checkpoint import DTYPES, Checkpoint, Tensor
from slimformer.checkpoint.dequantise import QUANTISED, dequantise
from slimformer.checkpoint.families import by_gguf_architecture
from slimformer.checkpoint.families.metadata import ALL_ROPE_FACTORS, has_experts
from slimformer.checkpoint.gguf_header import MAGIC, GgufFile, GgufTensor, open_gguf
from slimformer.checkpoint.gguf_tokenizer import tokenizer_from_gguf
from slimformer.checkpoint.layout import Layout, gguf_layout
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
    family = by_gguf_architecture(
        file.metadata.text("general.architecture"), str(path), experts=has_experts(file.metadata)
    )
    try:
        config = family.from_gguf(file)
    except ConfigError as error:
        raise FormatError(f"{path}: {error}") from error
    layout = gguf_layout(family, config)
    weights = _weights(file, layout)
    taken: dict[str, Tensor] = {}
    for stored in layout:
        taken |= stored.take(_lazy_tensor(file, weights[stored.name]))
    tensors = {name: taken[name] for name in config.tensor_shapes()}
    return Checkpoint(
        name=path.stem,
        config=config,
        tensors=tensors,
        tokenizer=tokenizer_from_gguf(file.metadata, config.vocab_size, framed=not config.causal),
        quantised=any(tensor.quantisation in QUANTISED for tensor in weights.values()),
    )


def _weights(file: GgufFile, layout: Layout) -> dict[str, GgufTensor]:
    """Stored tensors by name, those of the layout and of types that are read here."""
    weights = {
        name: tensor for name, tensor in file.tensors.items() if name not in ALL_ROPE_FACTORS
    }
    check_names(file.path, layout, weights)
    for tensor in weights.values():
        if tensor.quantisation not in _PLAIN and tensor.quantisation not in QUANTISED:
            raise UnsupportedModelError(
                f"{file.path}: tensor {tensor.name}: element type {tensor.quantisation.name} "
                "is not read here"
            )
    return weights


def _lazy_tensor(file: GgufFile, tensor: GgufTensor) -> Tensor:
    dtype = _PLAIN.get(tensor.quantisation, "f32")

    def read(part: GgufTensor = tensor) -> npt.NDArray[Any]:
        data = file.tensor_bytes(part)
        if part.quantisation in QUANTISED:
            return dequantise(data, part.shape, part.quantisation)
        return data.view(DTYPES[dtype]).reshape(part.shape)

    return Tensor(tensor.shape, dtype, read, lambda index: read(tensor.entry(index)))
