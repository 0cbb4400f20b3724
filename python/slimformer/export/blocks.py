"""A model as the sequence of its sub-blocks, to be rewritten and put into layers again.

Every sub-block adds to the residual stream on its own, so a model is what its sub-blocks do one
after the other; which layer holds which is a matter of naming. Formats that cannot say a shape
are given an equivalent one, and every rewriting that costs something is told as a `Change`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from slimformer.checkpoint import Checkpoint, Tensor
from slimformer.checkpoint.checkpoint import DTYPES
from slimformer.config import (
    AttentionConfig,
    FfnConfig,
    LayerConfig,
    LinkConfig,
    ModelConfig,
    RoutedFfnConfig,
)
from slimformer.errors import UnsupportedModelError

Entries = npt.NDArray[np.intp]
Shape = AttentionConfig | FfnConfig | RoutedFfnConfig | LinkConfig


_ADDING = ("before", "after", "both")
"""Places of norms with which all that a sub-block does to the stream is to add to it."""


@dataclasses.dataclass(frozen=True)
class Change:
    """What was rewritten in one place, and the parameters that it added."""

    where: str
    what: str
    parameters: int


@dataclasses.dataclass(frozen=True)
class Block:
    """One sub-block: its shape, its tensors by part (``q.weight``), and its place in the source."""

    shape: Shape
    tensors: Mapping[str, Tensor]
    where: str

    @property
    def parameters(self) -> int:
        """Number of its weights."""
        return sum(int(np.prod(tensor.shape)) for tensor in self.tensors.values())


Layer = tuple[Block | None, Block | None]
"""What stands in the place of the attention and of the FFN."""


def layers_of(checkpoint: Checkpoint) -> list[Layer]:
    """The layers of a model as they are."""

    def block(index: int, kind: str, shape: Shape | None) -> Block | None:
        prefix = f"layers.{index}.{kind}."
        tensors = {
            name.removeprefix(prefix): tensor
            for name, tensor in checkpoint.tensors.items()
            if name.startswith(prefix)
        }
        return None if shape is None else Block(shape, tensors, f"layer {index} {kind}")

    return [
        (block(index, "attention", layer.attention), block(index, "ffn", layer.ffn))
        for index, layer in enumerate(checkpoint.config.layers)
    ]


def blocks_of(layers: Iterable[Layer]) -> list[Block]:
    """The sub-blocks of layers in the order in which they run."""
    return [block for layer in layers for block in layer if block is not None]


def put_together(
    checkpoint: Checkpoint, layers: Iterable[Layer], *, parallel: bool = False
) -> Checkpoint:
    """The model of these layers; all that is not a layer stays as it is."""
    shapes = []
    tensors = {n: t for n, t in checkpoint.tensors.items() if not n.startswith("layers.")}
    for index, (attention, ffn) in enumerate(layers):
        for kind, block in (("attention", attention), ("ffn", ffn)):
            for part, tensor in block.tensors.items() if block is not None else ():
                tensors[f"layers.{index}.{kind}.{part}"] = tensor
        first = attention.shape if attention is not None else None
        second = ffn.shape if ffn is not None else None
        assert not isinstance(first, FfnConfig | RoutedFfnConfig)
        assert not isinstance(second, AttentionConfig)
        shapes.append(LayerConfig(first, second, parallel))
    config = dataclasses.replace(checkpoint.config, layers=tuple(shapes))
    return dataclasses.replace(checkpoint, config=config, tensors=tensors)


def pack_layers(blocks: Sequence[Block]) -> list[Layer]:
    """The fewest layers that run these sub-blocks in their order.

    A link takes the place of an attention, wherever it came from.
    """
    layers: list[Layer] = []
    for block in blocks:
        if not isinstance(block.shape, FfnConfig | RoutedFfnConfig):
            layers.append((block, None))
        elif layers and layers[-1][1] is None:
            layers[-1] = (layers[-1][0], block)
        else:
            layers.append((None, block))
    return layers


def reshaped(config: ModelConfig, block: Block, shape: Shape, made: Mapping[str, Tensor]) -> Block:
    """A block of another shape, with the tensors that were made for it.

    Of the others those that fit go along, and those that the block did not have are zeros.

    Raises
    ------
    UnsupportedModelError
        One of its other tensors does not fit.
    """
    tensors = {}
    for part, expected in part_shapes(config, shape).items():
        tensor = made.get(part) or block.tensors.get(part) or zeros(*expected)
        if tensor.shape != expected:
            raise UnsupportedModelError(
                f"{block.where}: {part} has no equivalent in the shape that was asked for; "
                "export it ragged, to huggingface"
            )
        tensors[part] = tensor
    return Block(shape, tensors, block.where)


def zero_block(config: ModelConfig, shape: Shape) -> Block:
    """A block of a model that adds nothing to the residual stream.

    Raises
    ------
    UnsupportedModelError
        Blocks of this kind do more to the stream than adding.
    """
    if shape.norm_place not in _ADDING:
        raise UnsupportedModelError(
            f"norms at {shape.norm_place!r}: no sub-block of zeros leaves the stream as it is; "
            "export it ragged, to huggingface"
        )
    return reshaped(config, Block(shape, {}, ""), shape, {})


def part_shapes(config: ModelConfig, shape: Shape) -> dict[str, tuple[int, ...]]:
    """The tensors, by part, that a sub-block of that shape has in a model."""
    if isinstance(shape, FfnConfig | RoutedFfnConfig):
        alone = LayerConfig(None, shape)
    else:
        alone = LayerConfig(shape, None)
    return {
        name.split(".", 3)[3]: size
        for name, size in dataclasses.replace(config, layers=(alone,)).tensor_shapes().items()
        if name.startswith("layers.")
    }


def zeros(*shape: int) -> Tensor:
    """A tensor of zeros, in the smallest type: every other can hold them."""
    return Tensor(shape, "bf16", lambda: np.zeros(shape, DTYPES["bf16"]))


def gathered(tensor: Tensor, entries: Entries, axis: int, factor: float = 1.0) -> Tensor:
    """The tensor with these entries along one axis, zeros where an entry is -1.

    A ``factor`` other than 1 makes it float32, in which the product loses next to nothing.
    """
    shape = list(tensor.shape)
    shape[axis] = len(entries)
    dtype = tensor.dtype if factor == 1.0 else "f32"

    def read() -> npt.NDArray[Any]:
        values = np.take(tensor.read(), np.maximum(entries, 0), axis=axis)
        if factor != 1.0:
            values = values.astype(np.float32) * np.float32(factor)
        present = entries >= 0
        if not present.all():
            values[~present if axis == 0 else (slice(None), ~present)] = 0
        return values

    return Tensor(tuple(shape), dtype, read)
