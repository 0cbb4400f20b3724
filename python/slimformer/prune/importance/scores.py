"""What a criterion says of a model: the cost of removing each unit of each layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from slimformer.checkpoint.checkpoint import Tensor
from slimformer.config import AttentionConfig, FfnConfig, LayerConfig, RoutedFfnConfig
from slimformer.errors import DataError
from slimformer.prune.recipe import HEAD_PARTS, HeadPart, part_count

Array = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class LayerScores:
    """Cost of removing each unit of one layer, in a currency that the criterion states.

    Higher is dearer; costs of one criterion may be compared and added across units, layers
    and structures. ``None`` where the layer has no such unit or the criterion does not rate
    that structure.
    """

    layers: float | None = None
    attention: float | None = None
    ffn: float | None = None
    kv_groups: Array | None = None  # [n_kv_heads]
    heads: Array | None = None  # [n_heads]
    neurons: Array | None = None  # [n_neurons], of experts one after another
    experts: Array | None = None  # [n_experts]
    value_dims: Array | None = None  # [value_dim], of all heads of the layer
    rotary_pairs: Array | None = None  # [pairs], likewise; None also where they were not asked for

    def part(self, part: HeadPart) -> Array | None:
        """What each of those costs that heads consist of."""
        return self.value_dims if part == "value_dims" else self.rotary_pairs

    def pack(self, prefix: str) -> dict[str, npt.NDArray[np.float32]]:
        """The scores bit for bit as pairs of float32, which files of tensors can hold."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {
            prefix + name: np.atleast_1d(np.asarray(value, np.float64)).view(np.float32)
            for name, value in fields.items()
            if value is not None
        }

    @staticmethod
    def unpack(packed: Mapping[str, Tensor], prefix: str) -> LayerScores:
        """What ``pack`` has packed."""
        values: dict[str, Any] = {}
        for field in dataclasses.fields(LayerScores):
            if prefix + field.name in packed:
                scores = packed[prefix + field.name].read().view(np.float64)
                single = field.name in ("layers", "attention", "ffn")
                values[field.name] = float(scores[0]) if single else scores
        return LayerScores(**values)


Scores = tuple[LayerScores, ...]
"""One entry for each layer of the model."""


def sum_groups(attention: AttentionConfig, heads: Array) -> Array:
    """Cost of each KV group, [n_kv_heads], as the sum over the query heads that read it."""
    groups = np.zeros(attention.n_kv_heads)
    np.add.at(groups, list(attention.q_to_kv), heads)
    return groups


def check_scores(scores: Scores, layers: tuple[LayerConfig, ...]) -> None:
    """Raise DataError where a score is not finite; assert the shapes of the contract."""
    for index, (rated, layer) in enumerate(zip(scores, layers, strict=True)):
        for field in dataclasses.fields(rated):
            value = getattr(rated, field.name)
            if value is not None and not np.all(np.isfinite(value)):
                raise DataError(
                    f"layer {index}: scores of {field.name} are not finite; the weights or the "
                    f"activations on the calibration text overflow"
                )
        if rated.heads is not None:
            assert isinstance(layer.attention, AttentionConfig)
            assert rated.heads.shape == (layer.attention.n_heads,)
        if rated.kv_groups is not None:
            assert isinstance(layer.attention, AttentionConfig)
            assert rated.kv_groups.shape == (layer.attention.n_kv_heads,)
        for part in HEAD_PARTS:
            costs = rated.part(part)
            if costs is not None:
                assert isinstance(layer.attention, AttentionConfig)
                assert costs.shape == (part_count(layer.attention, part),)
        if rated.neurons is not None:
            assert isinstance(layer.ffn, (FfnConfig, RoutedFfnConfig))
            assert rated.neurons.shape == (layer.ffn.n_neurons,)
        if rated.experts is not None:
            assert isinstance(layer.ffn, RoutedFfnConfig)
            assert rated.experts.shape == (len(layer.ffn.experts),)
