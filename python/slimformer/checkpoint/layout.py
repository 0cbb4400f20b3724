"""How a format keeps a model's tensors: under which names, in which form.

A layout is a list of stored tensors and what each of them holds. It is used in both directions:
readers take a stored tensor apart, writers put it together. Nothing is read or copied before a
tensor is asked for.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from slimformer.checkpoint import native
from slimformer.checkpoint.checkpoint import DTYPES, Tensor
from slimformer.checkpoint.families.family import Family, Name, Packed, RowOrder
from slimformer.config import AttentionConfig, ModelConfig


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """One tensor of a format.

    Attributes
    ----------
    name, shape:
        As the format has them.
    parts:
        Canonical tensors and the rows of the stored one that they are, all of it where that is
        ``None``; of stacked tensors the one that it is.
    transposed:
        Whether it is stored as [inputs, outputs]; rows are counted along the outputs.
    added:
        What the stored values are more than ours.
    """

    name: str
    shape: tuple[int, ...]
    parts: tuple[tuple[str, RowOrder | int | None], ...]
    transposed: bool = False
    added: float = 0.0

    def take(self, stored: Tensor) -> dict[str, Tensor]:
        """The canonical tensors."""
        return {name: self._part(stored, rows) for name, rows in self.parts}

    def join(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """The stored tensor that holds the canonical ones."""
        parts = [(tensors[name], rows) for name, rows in self.parts]
        ((first, every),) = parts[:1]
        if len(parts) == 1 and every is None and not self.transposed and not self.added:
            return first
        dtypes = {tensor.dtype for tensor, _ in parts}
        dtype = dtypes.pop() if len(dtypes) == 1 and not self.added else "f32"

        def read() -> npt.NDArray[Any]:
            shape = self.shape[::-1] if self.transposed else self.shape
            values = np.empty(shape, DTYPES[dtype])
            for tensor, rows in parts:
                values[slice(None) if rows is None else rows] = tensor.read()
            if self.added:
                values += np.float32(self.added)
            return np.ascontiguousarray(values.T) if self.transposed else values

        return Tensor(self.shape, dtype, read)

    def _part(self, stored: Tensor, rows: RowOrder | int | None) -> Tensor:
        if isinstance(rows, int):
            return stored.entry(rows)
        if rows is None and not self.transposed and not self.added:
            return stored
        shape = stored.shape[::-1] if self.transposed else stored.shape
        if rows is not None:
            shape = (len(rows), *shape[1:])

        def read() -> npt.NDArray[Any]:
            values = stored.read()
            values = values.T if self.transposed else values
            values = values if rows is None else values[rows]
            if self.added:
                values = values.astype(np.float32) - np.float32(self.added)
            return np.ascontiguousarray(values)

        return Tensor(shape, "f32" if self.added else stored.dtype, read)


Layout = list[StoredTensor]


def folder_layout(family: Family, config: ModelConfig, *, plain: bool) -> Layout:
    """How a folder keeps the tensors.

    ``plain`` is the form of the family's class in ``transformers``; otherwise every tensor is
    kept by itself as it is, under a name that is the same in all families.
    """
    packed = _packed(family.packed if plain else (), config)
    name_of = family.huggingface_name if plain else native.tensor_name
    return [
        *packed,
        *(
            StoredTensor(name_of(name), shape, ((name, None),))
            for name, shape in _others(packed, config)
        ),
    ]


def gguf_layout(family: Family, config: ModelConfig) -> Layout:
    """How a GGUF file keeps them: norm weights include their offset, rotary rows are reordered."""
    packed = _packed(family.gguf_packed, config)
    return [
        *packed,
        *(
            StoredTensor(
                family.gguf_name(name),
                shape,
                ((name, family.gguf_row_order(config, name)),),
                added=config.norm_offset if name.endswith("norm.weight") else 0.0,
            )
            for name, shape in _others(packed, config)
        ),
    ]


def _others(packed: Layout, config: ModelConfig) -> Iterable[tuple[str, tuple[int, ...]]]:
    taken = {part for stored in packed for part, _ in stored.parts}
    return [item for item in config.tensor_shapes().items() if item[0] not in taken]


def _packed(table: tuple[Packed, ...], config: ModelConfig) -> Layout:
    """The packed tensors of a table that a model of that shape has."""
    holders = {part: entry for entry in table for part in entry.parts}
    shapes = config.tensor_shapes()
    found: dict[str, tuple[Packed, list[str]]] = {}
    for name in shapes:
        split = Name.of(name)
        if split.stem in holders:
            stored = split.put_into(holders[split.stem].name)
            found.setdefault(stored, (holders[split.stem], []))[1].append(name)
    return [
        _stack(stored, entry, {name: shapes[name] for name in names}, config)
        for stored, (entry, names) in found.items()
    ]


def _stack(
    stored: str, entry: Packed, shapes: Mapping[str, tuple[int, ...]], config: ModelConfig
) -> StoredTensor:
    """The parts one after another, head by head, or as the experts of one tensor."""
    if entry.stacked:
        (one,) = set(shapes.values())
        return StoredTensor(
            stored, (len(shapes), *one), tuple(zip(shapes, range(len(shapes)), strict=True))
        )
    counts = [shape[0] for shape in shapes.values()]
    starts = np.cumsum([0, *counts])
    rows: list[RowOrder | int | None] = [
        np.arange(start, start + count) for start, count in zip(starts, counts, strict=False)
    ]
    if len(shapes) == 1:
        rows = [None]
    elif entry.by_head:
        layer = Name.of(next(iter(shapes))).layer
        attention = config.layers[int(layer)].attention
        assert isinstance(attention, AttentionConfig)
        width = attention.head_dim
        heads = np.arange(attention.n_heads)[:, None] * (len(counts) * width)
        rows = [(heads + i * width + np.arange(width)).ravel() for i in range(len(counts))]
    inner = {shape[1:] for shape in shapes.values()}
    assert len(inner) == 1
    whole = (sum(counts), *inner.pop())
    transposed = entry.transposed and len(whole) == 2
    return StoredTensor(
        stored,
        whole[::-1] if transposed else whole,
        tuple(zip(shapes, rows, strict=True)),
        transposed,
    )
