"""A recipe as a mask: the same model as after surgery, at run time, on untouched weights."""

from __future__ import annotations

from slimformer.config import ModelConfig
from slimformer.engine import Mask
from slimformer.errors import RecipeError
from slimformer.prune.recipe import (
    KeptAttention,
    KeptExperts,
    KeptFfn,
    NewLink,
    Recipe,
    keep_all,
)


def to_mask(recipe: Recipe, config: ModelConfig) -> Mask:
    """The mask that makes a model of that shape run as if ``recipe`` had been applied to it.

    Raises
    ------
    RecipeError
        The recipe keeps something that such a model does not have, or drops tokens, channels or
        rotary pairs, which no mask does.
    """
    recipe.check_shape(config)
    for what in ("vocabulary", "channels"):
        if getattr(recipe, what) is not None:
            raise RecipeError(f"recipe: {what}: no mask does without some; apply the recipe")
    kept = {layer.source: layer for layer in recipe.layers}
    skip_attention, skip_ffn = [], []
    heads: dict[int, tuple[int, ...]] = {}
    value_dims: dict[int, tuple[int, ...]] = {}
    neurons: dict[int, tuple[int, ...]] = {}
    experts: dict[int, tuple[int, ...]] = {}
    expert_neurons: dict[int, dict[int, tuple[int, ...]]] = {}
    for index, layer in enumerate(config.layers):
        stays = kept.get(index)
        attention = None if stays is None else stays.attention
        ffn = None if stays is None else stays.ffn
        # Until a repair fits it, a new link adds nothing.
        attention = None if isinstance(attention, NewLink) else attention
        ffn = None if isinstance(ffn, NewLink) else ffn
        if attention is None and layer.attention is not None:
            skip_attention.append(index)
        if ffn is None and layer.ffn is not None:
            skip_ffn.append(index)
        whole = keep_all(index, layer)
        if isinstance(attention, KeptAttention) and attention != whole.attention:
            if attention.rotary_pairs is not None:
                raise RecipeError(
                    f"recipe: layer {index}: rotary_pairs: no mask does without some; apply the "
                    "recipe"
                )
            heads[index] = tuple(sorted(attention.heads))
            if attention.value_dims is not None:
                value_dims[index] = tuple(sorted(attention.value_dims))
        if isinstance(ffn, KeptFfn) and ffn != whole.ffn:
            neurons[index] = tuple(sorted(ffn.neurons))
        if isinstance(ffn, KeptExperts) and isinstance(whole.ffn, KeptExperts):
            if ffn.experts != whole.ffn.experts:
                experts[index] = tuple(sorted(ffn.experts))
            expert_neurons[index] = {
                expert: tuple(sorted(own))
                for expert, own in zip(ffn.experts, ffn.neurons, strict=True)
                if own != whole.ffn.neurons[expert]
            }
    return Mask(
        skip_attention=tuple(skip_attention),
        skip_ffn=tuple(skip_ffn),
        heads=heads,
        value_dims=value_dims,
        neurons=neurons,
        experts=experts,
        expert_neurons=expert_neurons,
    )
