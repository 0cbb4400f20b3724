"""Experts from the settings of ``config.json`` and back."""

from __future__ import annotations

from typing import Any

from slimformer.checkpoint.families.description import Blocks, Experts
from slimformer.checkpoint.fields import Fields
from slimformer.config import Activation, FfnConfig, RoutedFfnConfig, SoftmaxOver
from slimformer.ffn import MAX_EXPERTS

_OVER_CHOSEN = "norm_topk_prob"


def read_experts(
    config: Fields, blocks: Blocks, neurons: int, activation: Activation
) -> RoutedFfnConfig:
    """The FFN of every layer, whose experts have that many neurons each."""
    experts = blocks.experts
    assert experts is not None
    key = next((name for name in experts.counts if name in config), experts.counts[0])
    softmax_over: SoftmaxOver | None = experts.softmax_over
    if softmax_over is None:
        softmax_over = "chosen" if config.boolean(_OVER_CHOSEN, False) else "experts"
    return RoutedFfnConfig(
        experts=(neurons,) * config.dimension(key, limit=MAX_EXPERTS),
        top_k=config.dimension(experts.top_k),
        softmax_over=softmax_over,
        norm_place=blocks.norm_place,
        activation=activation,
    )


def expert_settings(
    experts: Experts | None, ffn: FfnConfig | RoutedFfnConfig
) -> dict[str | None, Any]:
    """How many experts there are and run; their width is a setting like any other's."""
    if experts is None or isinstance(ffn, FfnConfig):
        return {}
    settings: dict[str | None, Any] = {
        experts.counts[0]: len(ffn.experts),
        experts.top_k: ffn.top_k,
    }
    if experts.softmax_over is None:
        settings[_OVER_CHOSEN] = ffn.softmax_over == "chosen"
    return settings
