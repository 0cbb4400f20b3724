"""Removing sub-blocks whole: what may go at once, and what stands in its place afterwards."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from slimformer.checkpoint.checkpoint import Checkpoint, Tensor
from slimformer.config import LayerConfig, LinkConfig, LinkKind, ModelConfig
from slimformer.prune.outputs import PROJECTIONS, SUB_BLOCKS, SubBlock
from slimformer.prune.recipe import KeptLayer, NewLink, keep_all
from slimformer.prune.structures import Structure
from slimformer.prune.surgery import new_link

Floats = npt.NDArray[np.float32]

_KINDS: tuple[LinkKind, ...] = get_args(LinkKind)


@dataclasses.dataclass(frozen=True)
class Cut:
    """The sub-blocks of one layer that go together."""

    layer: int
    parts: tuple[SubBlock, ...]


@dataclasses.dataclass(frozen=True)
class Replacement:
    """A cut, what stands in its place, and what that does.

    Parameters
    ----------
    link
        The link in the place of the first sub-block that goes, if there is one.
    tensors
        Values of the link, or of the projection before the cut that does its work as well.
    divergence
        Nats a token from the dense model's predictions, with all cuts made so far.
    """

    cut: Cut
    link: LinkConfig | None
    tensors: Mapping[str, Floats]
    divergence: float

    def shape(self, config: ModelConfig) -> ModelConfig:
        """The shape of a model in which the replacement is made."""
        places: dict[str, Any] = dict.fromkeys(self.cut.parts)
        places[self.cut.parts[0]] = self.link
        layers = list(config.layers)
        layers[self.cut.layer] = dataclasses.replace(layers[self.cut.layer], **places)
        return dataclasses.replace(config, layers=tuple(layers))

    def apply(self, draft: Checkpoint) -> Checkpoint:
        """The draft with the replacement made; layers of which nothing is left stay, empty."""
        index = self.cut.layer
        gone = tuple(f"layers.{index}.{part}." for part in self.cut.parts)
        tensors = {
            name: tensor for name, tensor in draft.tensors.items() if not name.startswith(gone)
        }
        if self.link is not None:
            tensors.update(new_link(draft, index, index, self.cut.parts[0], self.link))
        tensors.update({name: Tensor.of(values) for name, values in self.tensors.items()})
        return dataclasses.replace(draft, config=self.shape(draft.config), tensors=tensors)

    def pack(self) -> dict[str, npt.NDArray[np.float32]]:
        """The replacement bit for bit as tensors; see ``unpack``."""
        kind = -1 if self.link is None else _KINDS.index(self.link.kind)
        rank = 0 if self.link is None else self.link.rank or 0
        parts = sum(1 << SUB_BLOCKS.index(part) for part in self.cut.parts)
        numbers = np.array([self.cut.layer, parts, kind, rank, self.divergence], np.float64)
        return {**self.tensors, "replacement": numbers.view(np.float32)}

    @staticmethod
    def unpack(packed: Mapping[str, Tensor]) -> Replacement:
        """What ``pack`` has packed."""
        layer, parts, kind, rank, divergence = packed["replacement"].read().view(np.float64)
        link = None if kind < 0 else LinkConfig(_KINDS[int(kind)], int(rank) or None)
        there = (part for bit, part in enumerate(SUB_BLOCKS) if int(parts) >> bit & 1)
        tensors = {name: tensor.read() for name, tensor in packed.items() if name != "replacement"}
        return Replacement(Cut(int(layer), tuple(there)), link, tensors, float(divergence))


def cuts(
    config: ModelConfig, structures: tuple[Structure, ...], protect: frozenset[int]
) -> list[Cut]:
    """All cuts that the structures allow; links stay."""
    found: list[Cut] = []
    for index, layer in enumerate(config.layers):
        present = [part for part in SUB_BLOCKS if getattr(layer, part) is not None]
        units = tuple(part for part in present if part_is_whole(layer, part))
        if index in protect or not units:
            continue
        choices: list[tuple[SubBlock, ...]] = [(part,) for part in units if part in structures]
        if "layers" in structures and len(units) == len(present) and units not in choices:
            choices.append(units)
        found += [Cut(index, parts) for parts in choices]
    return found


def part_is_whole(layer: LayerConfig, part: SubBlock) -> bool:
    """Whether the sub-block is there, and no link."""
    found: Any = getattr(layer, part)
    return found is not None and not isinstance(found, LinkConfig)


def output_tensors(model: Checkpoint, index: int, part: SubBlock) -> tuple[str, ...]:
    """The tensors whose rows are channels of what a sub-block adds to the stream.

    None where a norm is behind them, or a sub-block has several such projections.
    """
    found: Any = getattr(model.config.layers[index], part)
    if found.norm_place != "before":
        return ()
    prefix = f"layers.{index}."
    names = [f"{prefix}{PROJECTIONS[part]}.weight", f"{prefix}{PROJECTIONS[part]}.bias"]
    if isinstance(found, LinkConfig):
        last = {"full": ["weight"], "low_rank": ["up"], "diagonal": [], "constant": ["bias"]}
        names = [f"{prefix}{part}.link.{name}" for name in last[found.kind]]
    return tuple(name for name in names if name in model.tensors)


def kept_layers(dense: ModelConfig, draft: ModelConfig) -> tuple[KeptLayer, ...]:
    """What is left in a draft with as many layers as the dense model, as layers of a recipe."""
    layers = []
    for index, (before, after) in enumerate(zip(dense.layers, draft.layers, strict=True)):
        kept = whole = keep_all(index, before)
        for part in SUB_BLOCKS:
            left = getattr(after, part)
            if left != getattr(before, part):
                place: dict[str, Any] = {part: left and NewLink(left)}
                kept = dataclasses.replace(kept, **place)
        if kept == whole or kept.attention is not None or kept.ffn is not None:
            layers.append(kept)
    return tuple(layers)
