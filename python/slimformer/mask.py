"""The structures that a session leaves out."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping


@dataclasses.dataclass(frozen=True)
class Mask:
    """Structures that a session leaves out; the packed weights stay as they are.

    Parameters
    ----------
    skip_attention, skip_ffn:
        Layers whose sub-block does not run.
    exit_after:
        The last layer that runs.
    heads, neurons:
        By layer, the query heads and FFN neurons that are kept.
    value_dims:
        By layer, the entries of all value heads that are kept. They stay in the cache all the same.
    experts:
        By layer, the experts of a routed FFN that are kept, as if the router knew no others.
    expert_neurons:
        By layer and expert, the neurons that are kept.
    """

    skip_attention: tuple[int, ...] = ()
    skip_ffn: tuple[int, ...] = ()
    exit_after: int | None = None
    heads: Mapping[int, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    value_dims: Mapping[int, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    neurons: Mapping[int, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    experts: Mapping[int, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    expert_neurons: Mapping[int, Mapping[int, tuple[int, ...]]] = dataclasses.field(
        default_factory=dict
    )

    @staticmethod
    def skip_layers(layers: Iterable[int]) -> Mask:
        """Leaves out both sub-blocks of each of these layers."""
        indices = tuple(sorted(set(layers)))
        return Mask(skip_attention=indices, skip_ffn=indices)
