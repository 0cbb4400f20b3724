"""Several widths of one model in a folder, with no second copy of the weights.

The folder holds the widest model as it would without the others. Its units are stored in the order
of their importance, so that each tensor of a narrower model is the leading corner of the widest
one's, a view of the mapped file. `FILE` says what the narrower ones look like. Tensors of theirs
that are no such corners, as a repair has left them, are in `WEIGHTS`.

A width is the share of the source's parameters outside the embedding that a model was made for.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from slimformer.checkpoint import native
from slimformer.checkpoint.checkpoint import Checkpoint, Tensor
from slimformer.checkpoint.fields import Fields, parse_json_object, read_text
from slimformer.checkpoint.safetensors_files import open_file
from slimformer.config import MAX_LAYERS, ModelConfig
from slimformer.errors import ConfigError, FormatError

FILE = "nested.json"
WEIGHTS = "nested.safetensors"

SCHEMA = 1

MAX_BYTES = 256 << 20
"""The file holds a recipe for each width."""

MAX_WIDTHS = 64


@dataclasses.dataclass(frozen=True)
class Narrower:
    """A model that lies inside the widest one.

    Attributes
    ----------
    width:
        Its width.
    model:
        The model.
    layers:
        For each of its layers, the layer of the widest model that it lies in; ascending.
    """

    width: float
    model: Checkpoint
    layers: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Entry:
    """What `FILE` says of a narrower model; ``settings`` are those of its ``config.json``."""

    width: float
    layers: tuple[int, ...]
    settings: Fields
    recipe: Mapping[str, Any] | None


def corner(tensor: Tensor, shape: tuple[int, ...]) -> Tensor | None:
    """The leading entries of every axis, as a view; ``None`` where there are not so many."""
    if len(shape) != len(tensor.shape) or any(
        one > all_ for one, all_ in zip(shape, tensor.shape, strict=True)
    ):
        return None
    leading = tuple(slice(count) for count in shape)
    return Tensor(shape, tensor.dtype, lambda: tensor.read()[leading])


def describe(width: float, narrower: Sequence[Narrower]) -> dict[str, Any]:
    """The JSON form of `FILE` for a widest model of that width."""
    return {
        "schema": SCHEMA,
        "width": width,
        "narrower": [
            {
                "width": one.width,
                "layers": list(one.layers),
                "config": native.describe(one.model.config),
                "recipe": one.model.recipe,
            }
            for one in narrower
        ],
    }


def own_tensors(widest: Checkpoint, narrower: Sequence[Narrower]) -> dict[str, Tensor]:
    """What has to be stored of narrower models, under the names of `WEIGHTS`."""
    return {
        _stored_name(one.width, name): one.model.tensors[name]
        for one in narrower
        for name, shape in one.model.config.tensor_shapes().items()
        if not _same(_shared(widest, one.layers, name, shape), one.model.tensors[name])
    }


def widths(folder: Path) -> tuple[float, ...]:
    """The widths of a folder, the widest first; none where it holds a single model.

    Raises
    ------
    FormatError
        The file that lists them is damaged or hostile.
    """
    if not (folder / FILE).exists():
        return ()
    own, narrower = _read(folder)
    return (own, *(entry.width for entry in narrower))


def own_bytes(folder: Path, width: float) -> int:
    """Bytes of the tensors that are stored for a narrower width alone."""
    if not (folder / WEIGHTS).exists():
        return 0
    prefix = _stored_name(width, "")
    stored = open_file(folder / WEIGHTS)
    return sum(tensor.nbytes for name, tensor in stored.items() if name.startswith(prefix))


def find(folder: Path, width: float) -> Entry | None:
    """What a folder says of one width; ``None`` where that is the widest.

    Raises
    ------
    ConfigError
        It has no such width.
    FormatError
        The file that lists them is damaged or hostile.
    """
    if not (folder / FILE).exists():
        raise ConfigError(
            f"width {width}: {folder} holds a model of one width; leave the width out, or make a "
            "folder of several with slimformer prune --nested"
        )
    own, narrower = _read(folder)
    if width == own:
        return None
    for entry in narrower:
        if entry.width == width:
            return entry
    there = ", ".join(str(one) for one in (own, *(entry.width for entry in narrower)))
    raise ConfigError(f"width: {folder} has the widths {there}, found {width}")


def tensors_of(
    folder: Path, widest: Checkpoint, entry: Entry, config: ModelConfig
) -> dict[str, Tensor]:
    """The tensors of a narrower model, by canonical name.

    Raises
    ------
    FormatError
        Something is neither in the widest model nor stored apart.
    """
    where = folder / FILE
    if len(entry.layers) != len(config.layers) or any(
        index >= len(widest.config.layers) for index in entry.layers
    ):
        raise FormatError(
            f"{where}: width {entry.width}: layers: expected {len(config.layers)} of the "
            f"{len(widest.config.layers)} layers of the widest model, found {entry.layers}"
        )
    stored = open_file(folder / WEIGHTS) if (folder / WEIGHTS).exists() else {}
    tensors = {}
    for name, shape in config.tensor_shapes().items():
        tensor = stored.get(_stored_name(entry.width, name))
        if tensor is None:
            tensor = _shared(widest, entry.layers, name, shape)
        if tensor is None or tensor.shape != shape:
            found = "none" if tensor is None else str(tensor.shape)
            raise FormatError(
                f"{where}: width {entry.width}: tensor {name}: expected shape {shape} in "
                f"{WEIGHTS} or in a larger tensor of the widest model, found {found}"
            )
        tensors[name] = tensor
    return tensors


def _read(folder: Path) -> tuple[float, list[Entry]]:
    path = folder / FILE
    fields = Fields(str(path), parse_json_object(read_text(path, MAX_BYTES), str(path)))
    if fields.integer("schema") != SCHEMA:
        fields.fail("schema", f"{SCHEMA}; was it written by another version?", fields.raw("schema"))
    entries = fields.raw("narrower")
    if not isinstance(entries, list) or len(entries) > MAX_WIDTHS:
        fields.fail("narrower", f"a list of at most {MAX_WIDTHS} widths", entries)
    own = fields.number("width")
    narrower = [_read_entry(f"{path}: narrower[{i}]", entry) for i, entry in enumerate(entries)]
    all_widths = [own, *(entry.width for entry in narrower)]
    if all_widths != sorted(set(all_widths), reverse=True) or not 0 < min(all_widths) <= own <= 1:
        raise FormatError(f"{path}: expected falling widths from 1 to 0, found {all_widths}")
    return own, narrower


def _read_entry(where: str, entry: Any) -> Entry:
    if not isinstance(entry, dict):
        raise FormatError(f"{where}: expected an object, found {entry!r:.60}")
    fields = Fields(where, entry)
    layers = fields.raw("layers")
    if (
        not isinstance(layers, list)
        or len(layers) > MAX_LAYERS
        or not all(type(index) is int for index in layers)
        or layers != sorted(set(layers))
        or any(index < 0 for index in layers)
    ):
        fields.fail("layers", "ascending layers of the widest model", layers)
    recipe = fields.raw("recipe")
    if not isinstance(recipe, dict | None):
        fields.fail("recipe", "an object", recipe)
    return Entry(fields.number("width"), tuple(layers), fields.child("config"), recipe)


def _stored_name(width: float, name: str) -> str:
    return f"{width}.{name}"


def _shared(
    widest: Checkpoint, layers: tuple[int, ...], name: str, shape: tuple[int, ...]
) -> Tensor | None:
    """A tensor of a narrower model as it is in the widest one; ``None`` where that has none."""
    if name.startswith("layers."):
        _, index, part = name.split(".", 2)
        name = f"layers.{layers[int(index)]}.{part}"
    tensor = widest.tensors.get(name)
    return None if tensor is None else corner(tensor, shape)


def _same(shared: Tensor | None, tensor: Tensor) -> bool:
    return (
        shared is not None
        and shared.dtype == tensor.dtype
        and bool(np.array_equal(_bits(shared), _bits(tensor)))
    )


def _bits(tensor: Tensor) -> npt.NDArray[np.uint8]:
    return np.ascontiguousarray(tensor.read()).reshape(-1).view(np.uint8)
