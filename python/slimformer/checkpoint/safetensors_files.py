"""Tensors in safetensors files: mapped and checked when read, streamed when written."""

from __future__ import annotations

import json
import mmap
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from slimformer.checkpoint.checkpoint import STORED_DTYPES, Tensor
from slimformer.checkpoint.fields import Fields, parse_json_object, read_json
from slimformer.errors import FormatError, ModelNotFoundError, StorageError, UnsupportedModelError

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

_DTYPE_NAMES = {"F32": "f32", "F16": "f16", "BF16": "bf16"}
_MASK_NAMES = {"U8": "u8"}
_STORED_NAMES = {name: stored for stored, name in (_DTYPE_NAMES | _MASK_NAMES).items()}


def open_folder(folder: Path, without: tuple[str, ...] = ()) -> dict[str, Tensor]:
    """Every tensor of a folder's safetensors files, by its name there, lazily.

    Those whose names end in one of ``without`` are left out, whatever their type.

    Raises
    ------
    FormatError
        A file or the index is truncated, hostile or contradicts the other.
    UnsupportedModelError
        The weights are pickled, or a tensor is of a type that is not read here.
    ModelNotFoundError
        The folder holds no weights.
    """
    if (folder / SINGLE_FILE).exists():
        return open_file(folder / SINGLE_FILE, without)
    if (folder / INDEX_FILE).exists():
        return _open_shards(folder, without)
    pickled = sorted(folder.glob("pytorch_model*.bin*")) + sorted(folder.glob("*.pt*"))
    if pickled:
        raise UnsupportedModelError(
            f"{pickled[0]}: pickled weights can run code when they are opened and are not read "
            "here; save the model with transformers' save_pretrained to get safetensors"
        )
    raise ModelNotFoundError(f"{folder}: expected {SINGLE_FILE} or {INDEX_FILE}, found neither")


def _open_shards(folder: Path, without: tuple[str, ...]) -> dict[str, Tensor]:
    index = folder / INDEX_FILE
    weight_map = Fields(str(index), read_json(index)).child("weight_map")
    if not list(weight_map):
        raise FormatError(f"{index}: weight_map: expected tensors, found none")
    files = {name: weight_map.text(name) for name in weight_map}
    tensors: dict[str, Tensor] = {}
    for file in sorted(set(files.values())):
        if Path(file).name != file or "\\" in file or not file.endswith(".safetensors"):
            raise FormatError(
                f"{index}: expected the name of a .safetensors file in this folder, found {file!r}"
            )
        if not (folder / file).is_file():
            raise FormatError(f"{index}: {file}: expected in this folder, found none")
        shard = open_file(folder / file, without)
        listed = {
            name for name, home in files.items() if home == file and not name.endswith(without)
        }
        if shard.keys() != listed:
            differing = sorted(shard.keys() ^ listed)[:5]
            raise FormatError(f"{index}: {file}: index and file disagree about {differing}")
        tensors.update(shard)
    return tensors


def open_file(
    path: Path, without: tuple[str, ...] = (), *, masks: tuple[str, ...] = ()
) -> dict[str, Tensor]:
    """Every tensor of one file but those ``without``; values are views of the mapped file.

    Those whose names end in one of ``masks`` are bytes, all others are not.

    The ``safetensors`` library checks the header: sizes, overlaps, gaps, the end. The views
    are made here because the library copies, and older versions know no bfloat16 in numpy.
    """
    try:
        with safe_open(path, framework="numpy"):
            pass
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except SafetensorError as error:
        raise FormatError(f"{path}: not a valid safetensors file: {error}") from error
    except OSError as error:
        raise StorageError(f"{path}: cannot read: {error}") from error
    (size,) = struct.unpack_from("<Q", data)
    header = parse_json_object(data[8 : 8 + size].decode("utf-8"), f"{path}: header")
    header.pop("__metadata__", None)
    return {
        name: _view(path, name, entry, data, 8 + size, name.endswith(masks))
        for name, entry in header.items()
        if not name.endswith(without)
    }


def _view(
    path: Path, name: str, entry: Mapping[str, Any], data: mmap.mmap, start: int, is_mask: bool
) -> Tensor:
    names = _MASK_NAMES if is_mask else _DTYPE_NAMES
    if entry["dtype"] not in names:
        raise UnsupportedModelError(
            f"{path}: tensor {name}: element type {entry['dtype']} is not read here; known: "
            f"{', '.join(names)}"
        )
    shape = tuple(entry["shape"])
    dtype = names[entry["dtype"]]
    begin, end = entry["data_offsets"]

    def read() -> npt.NDArray[Any]:
        stored = np.frombuffer(data, np.uint8, end - begin, start + begin)
        return stored.view(STORED_DTYPES[dtype]).reshape(shape)

    return Tensor(shape, dtype, read)


def write_file(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors one after the other, holding one at a time.

    The bytes depend on the tensors and their order alone. Wider types come first, so that
    every tensor lies aligned.
    """
    ordered = sorted(tensors.items(), key=lambda item: -STORED_DTYPES[item[1].dtype].itemsize)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, tensor in ordered:
        end = position + tensor.nbytes
        header[name] = {
            "dtype": _STORED_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, tensor in ordered:
            values = np.ascontiguousarray(tensor.read())
            if values.shape != tensor.shape or values.dtype != STORED_DTYPES[tensor.dtype]:
                raise FormatError(
                    f"tensor {name}: expected {tensor.dtype} of shape {tensor.shape}, read "
                    f"{values.dtype} of shape {values.shape}"
                )
            file.write(values.reshape(-1).view(np.uint8).data)
