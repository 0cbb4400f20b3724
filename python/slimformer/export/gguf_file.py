"""A checkpoint as one GGUF file, in the architecture that says its shape."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType, GGUFValueType, GGUFWriter, LlamaFileType
from gguf.constants import GGML_QUANT_SIZES, GGML_QUANT_VERSION
from gguf.quants import quantize

import slimformer
from slimformer.checkpoint import Checkpoint, Tensor
from slimformer.checkpoint.families import Family, by_name, writers_of_gguf
from slimformer.checkpoint.gguf import is_gguf
from slimformer.checkpoint.gguf_shape import GgufShape, gguf_shape
from slimformer.checkpoint.layout import StoredTensor, gguf_layout
from slimformer.errors import FormatError, StorageError, UnsupportedModelError
from slimformer.export.blocks import Change
from slimformer.export.gguf_tokenizer import tokenizer_metadata
from slimformer.export.rewrite import ragged_layers, with_plain_positions

GgufType = Literal["auto", "f32", "f16", "bf16", "q8_0", "q4_0"]

_FILE_TYPES = {
    GGMLQuantizationType.F32: LlamaFileType.ALL_F32,
    GGMLQuantizationType.F16: LlamaFileType.MOSTLY_F16,
    GGMLQuantizationType.BF16: LlamaFileType.MOSTLY_BF16,
    GGMLQuantizationType.Q8_0: LlamaFileType.MOSTLY_Q8_0,
    GGMLQuantizationType.Q4_0: LlamaFileType.MOSTLY_Q4_0,
}

_FAR_REACHING = ("embedding", "head")
"""Matrices that Q4_0 keeps as Q8_0: nothing averages an embedding row, nothing follows the head."""

_ROUTER = "ffn_gate_inp.weight"
"""What rounding it loses would decide which experts run."""


@dataclasses.dataclass(frozen=True)
class _Stored:
    """One tensor of the file."""

    name: str
    tensor: Tensor
    kind: GGMLQuantizationType

    @property
    def size(self) -> int:
        """Number of its values."""
        return math.prod(self.tensor.shape)

    def values(self) -> npt.NDArray[Any]:
        """Its bytes as the writer takes them."""
        values = self.tensor.read().astype(np.float32)
        with np.errstate(over="ignore"):
            stored = np.asarray(quantize(values, self.kind))
        if self.kind is GGMLQuantizationType.F16 and not np.isfinite(stored).all():
            raise FormatError(
                f"tensor {self.name}: values beyond the range of f16; write bf16 or f32"
            )
        return stored


def write_gguf(checkpoint: Checkpoint, path: Path, *, dtype: GgufType = "auto") -> list[Change]:
    """Write a model so that llama.cpp and its kin open it, tensor by tensor.

    The same model gives the same bytes. An interrupted write leaves the old file or the new one.

    Parameters
    ----------
    checkpoint:
        The model, of any shape.
    path:
        The file. One that is there is replaced if it is a GGUF file.
    dtype:
        The type of the matrices; norms and biases are float32. ``auto`` keeps each tensor's own.
        Quantised types leave rows that are no multiple of their blocks in F16, and Q4_0 keeps
        embedding and head as Q8_0.

    Returns
    -------
    What had to be rewritten to be said in GGUF.

    Raises
    ------
    UnsupportedModelError
        The family is not written as GGUF, or the shape has no equivalent there.
    StorageError
        The file cannot be written.
    """
    family, shape, checkpoint, changes = _expressible(checkpoint)
    assert family.gguf_architecture is not None
    config = checkpoint.config
    stored = _stored_tensors(family, shape, checkpoint, dtype)
    metadata = {
        **_general(checkpoint, stored),
        **shape.settings,
        **tokenizer_metadata(checkpoint.tokenizer, config.vocab_size, framed=not config.causal),
    }
    if not config.causal:  # llama.cpp asks for a number even where there is no table of them
        metadata["tokenizer.ggml.token_type_count"] = max(1, config.token_types)
    with _replacing(path) as staging:
        _write(staging, family.gguf_architecture, metadata, stored)
    return changes


def _expressible(checkpoint: Checkpoint) -> tuple[Family, GgufShape, Checkpoint, list[Change]]:
    """The family in whose words it is said, the shape in them, and the model in that shape."""
    checkpoint = with_plain_positions(checkpoint)
    said = _said(checkpoint)
    if said is not None:
        return *said, checkpoint, []
    if not checkpoint.config.causal:
        raise UnsupportedModelError(
            f"{checkpoint.name}: GGUF has encoders with layers that are alike, whose heads are "
            "together as wide as the residual stream; fill the layers up with --pad, or export "
            "it to huggingface"
        )
    rewritten, changes = ragged_layers(checkpoint)
    said = _said(rewritten)
    if said is None:
        raise UnsupportedModelError(
            f"{checkpoint.name}: GGUF has no word for this shape of family "
            f"{checkpoint.config.family}, or the scaling of its rotation; fill its layers "
            "up with --pad, or export it to huggingface"
        )
    return *said, rewritten, changes


def _said(checkpoint: Checkpoint) -> tuple[Family, GgufShape] | None:
    own = by_name(checkpoint.config.family, checkpoint.name)
    for family in writers_of_gguf(own):
        config = dataclasses.replace(checkpoint.config, family=family.name)
        shape = gguf_shape(family, config)
        if shape is not None:
            return family, shape
    return None


def _stored_tensors(
    family: Family, shape: GgufShape, checkpoint: Checkpoint, dtype: GgufType
) -> list[_Stored]:
    parts = [
        _Stored(name, Tensor.of(values), GGMLQuantizationType.F32)
        for name, values in shape.tensors.items()
    ]
    for stored in gguf_layout(family, checkpoint.config):
        tensor = stored.join(checkpoint.tensors)
        parts.append(_Stored(stored.name, tensor, _kind(stored, tensor, dtype)))
    return parts


def _kind(stored: StoredTensor, tensor: Tensor, dtype: GgufType) -> GGMLQuantizationType:
    if len(tensor.shape) == 1 or stored.name.endswith(_ROUTER):
        return GGMLQuantizationType.F32
    kind = GGMLQuantizationType[(tensor.dtype if dtype == "auto" else dtype).upper()]
    if kind is GGMLQuantizationType.Q4_0 and _reaches_far(stored):
        kind = GGMLQuantizationType.Q8_0
    block, _ = GGML_QUANT_SIZES[kind]
    return kind if tensor.shape[-1] % block == 0 else GGMLQuantizationType.F16


def _reaches_far(stored: StoredTensor) -> bool:
    return any(name.split(".")[0] in _FAR_REACHING for name, _ in stored.parts)


def _general(checkpoint: Checkpoint, stored: list[_Stored]) -> dict[str, Any]:
    """What the file is and what it came from."""
    weight: dict[GGMLQuantizationType, int] = {}
    for tensor in stored:
        weight[tensor.kind] = weight.get(tensor.kind, 0) + tensor.size
    commonest = max(weight, key=lambda kind: weight[kind])
    metadata: dict[str, Any] = {
        "general.type": "model",
        "general.name": checkpoint.name,
        "general.file_type": int(_FILE_TYPES[commonest]),
        "general.quantization_version": GGML_QUANT_VERSION,
        "slimformer.version": slimformer.__version__,
    }
    if checkpoint.recipe is not None:
        metadata["slimformer.recipe"] = json.dumps(checkpoint.recipe, ensure_ascii=False)
    return metadata


def _write(
    path: Path, architecture: str, metadata: Mapping[str, Any], stored: list[_Stored]
) -> None:
    """Write a file that holds one tensor at a time in memory."""
    writer = GGUFWriter(path, architecture)
    for key, value in metadata.items():
        _add(writer, key, value)
    for tensor in stored:
        block, block_bytes = GGML_QUANT_SIZES[tensor.kind]
        nbytes = tensor.size // block * block_bytes
        shape, values = tensor.tensor.shape, np.dtype(np.float32)
        writer.add_tensor_info(tensor.name, shape, values, nbytes, raw_dtype=tensor.kind)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in stored:
            writer.write_tensor_data(tensor.values())
    finally:
        writer.close()


def _add(writer: GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        element = {int: GGUFValueType.INT32, float: GGUFValueType.FLOAT32}.get(
            type(value[0]), GGUFValueType.STRING
        )
        writer.add_key_value(key, value, GGUFValueType.ARRAY, sub_type=element)


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Give a name beside ``path`` to write to; at the end it takes the place of ``path``."""
    place = Path(os.path.realpath(path))
    if place.exists() and not (place.is_file() and is_gguf(place)):
        raise StorageError(f"{path}: not a GGUF file; choose another name or remove it")
    staging = place.with_name(f".{place.name}.{secrets.token_hex(8)}")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        yield staging
        with staging.open("rb") as file:
            os.fsync(file.fileno())
        staging.replace(place)
    except OSError as error:
        raise StorageError(f"{path}: cannot write: {error}; nothing was changed") from error
    finally:
        staging.unlink(missing_ok=True)
