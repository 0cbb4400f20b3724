"""From a recipe to a smaller model, recipes from lists, and what layers do."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from slimformer.checkpoint import cast
from slimformer.checkpoint.checkpoint import Checkpoint, DtypeChoice
from slimformer.config import AttentionConfig, FfnConfig, LayerConfig, RoutedFfnConfig
from slimformer.errors import ConfigError, RecipeError
from slimformer.progress import Progress, silent
from slimformer.prune.calibrate import calibration_windows
from slimformer.prune.channels import repair_narrow
from slimformer.prune.effort import Effort, work
from slimformer.prune.importance import magnitude
from slimformer.prune.importance.statistics import layer_statistics
from slimformer.prune.journal import Journal, digest
from slimformer.prune.kept import KeptOfAttention
from slimformer.prune.recipe import (
    KeptAttention,
    KeptExperts,
    KeptFfn,
    KeptLayer,
    KeptLink,
    NewLink,
    Recipe,
    keep_all,
    keep_heads,
    part_count,
)
from slimformer.prune.remainder import dearest_units
from slimformer.prune.repair import REPAIRS, Repair
from slimformer.prune.repair import repair as repair_weights
from slimformer.prune.stream import embed
from slimformer.prune.surgery import apply
from slimformer.prune.zeros.adding import Wish, add_zeros, choose_zeros
from slimformer.prune.zeros.choice import Method, Sharing, Zeros
from slimformer.prune.zeros.pattern import ANYWHERE

PROFILE_TOKENS = 4096
"""Block influence is a mean over tokens, and needs few."""


@dataclasses.dataclass(frozen=True)
class Profile:
    """Importance of each layer, attention and FFN by block influence, 0 where absent.

    Block influence is ``1 - cos`` between the residual stream before and after.
    """

    layers: tuple[float, ...]
    attention: tuple[float, ...]
    ffn: tuple[float, ...]


def prune(
    checkpoint: Checkpoint,
    recipe: Recipe,
    *,
    repair: Repair = "refit",
    effort: Effort = "fast",
    calibration: Sequence[str] | None = None,
    tokens: int | None = None,
    dtype: DtypeChoice = "auto",
    sparsity: float | None = None,
    pattern: str = ANYWHERE,
    zeros: Method = "sparsegpt",
    sharing: Sharing = "even",
    vocabulary_sparsity: float = 0.0,
    state: Path | None = None,
    seed: int = 0,
    threads: int = 0,
    progress: Progress = silent,
) -> Checkpoint:
    """Remove what the recipe does not keep and repair what stays; then the same with zeros.

    Tokens go first: what stays is repaired on text as the pruned model will read it. Channels go
    next, and what reads and writes them is refitted before units go.

    Parameters
    ----------
    recipe
        Made for exactly this model.
    repair
        ``refit``: least squares towards the dense model's residual stream. ``mean``: only the
        mean output of what went is made up for. ``none``: surgery alone, and the recipe's new
        links do nothing.
    effort
        fast, balanced or thorough: how much text the repair is fitted on, and how often what is
        left of FFNs learns from it, by default never.
    calibration, seed
        As for ``plan``.
    tokens
        About how many tokens to fit on, instead of what the effort says.
    dtype
        Element type of the result. ``auto``: as the source has it, bf16 if it is quantised.
    sparsity
        Share of the weights in the layers' matrices that become zero, once the rest has been
        repaired; the survivors are refitted, unless ``repair`` is not ``refit``. By default what
        the recipe says.
    pattern
        Where zeros may stand: ``any``, ``2:4`` (two of four neighbouring inputs stay, which is a
        sparsity of itself) or blocks of outputs and inputs such as ``1x16``.
    zeros
        How they are chosen: ``sparsegpt``, ``wanda`` or ``magnitude``.
    sharing
        ``even``: the same share everywhere. ``loss``: more of them where they cost less.
    vocabulary_sparsity
        Share of embedding and head that becomes zero besides.
    state
        Folder that keeps unfinished work: after an interruption the same call goes on with the
        layer after the last one that is written there, to the same result. The weights of the
        result may be read from there; remove it once the model is saved.

    Returns
    -------
    The pruned model; what it is in memory is what saving it writes. With zeros it is ``sparse``.

    Raises
    ------
    RecipeError
        The recipe belongs to another model.
    ConfigError
        Unknown repair, new links in the recipe that ``mean`` cannot fit, or settings of zeros that
        are unknown or contradict each other.
    DataError
        Calibration text that cannot be used.
    """
    if repair not in REPAIRS:
        raise ConfigError(f"repair: expected one of {', '.join(REPAIRS)}, found {repair!r}")
    if repair == "mean" and any(
        isinstance(part, NewLink) for kept in recipe.layers for part in (kept.attention, kept.ffn)
    ):
        raise ConfigError("repair mean: cannot fit the recipe's links; use repair refit")
    passes = work(effort).passes
    wish = None
    if sparsity is not None or pattern != ANYWHERE:
        wish = Wish(sparsity, pattern, zeros, sharing, vocabulary_sparsity)
    checkpoint, recipe = _first("vocabulary", checkpoint, recipe)
    stored: DtypeChoice = "bf16" if dtype == "auto" and checkpoint.quantised else dtype
    slim = _stored(apply(checkpoint, recipe), stored)
    damaged = slim.config != checkpoint.config or recipe.channels is not None
    wanted = recipe.zeros
    if wanted is None and slim.recipe is not None:  # a source that has zeros already
        wanted = Recipe.from_dict(slim.recipe).zeros
    windows = None
    if (repair != "none" and damaged) or _needs_text(wish, wanted, refit=repair == "refit"):
        n_tokens = work(effort).repair_tokens if tokens is None else tokens
        windows = calibration_windows(checkpoint, calibration, n_tokens, seed, threads, progress)
    key = {
        "source": checkpoint.fingerprint,
        "recipe": recipe.to_dict(),
        "repair": repair,
        "passes": passes,
        "dtype": dtype,
        "calibration": digest(calibration),
        "tokens": None if windows is None else windows.size,
        "seed": seed,
    }

    def journal(name: str, **more: object) -> Journal | None:
        return None if state is None else Journal(state / name, {"work": name, **key, **more})

    common: dict[str, Any] = {"threads": threads, "progress": progress}
    if damaged and repair != "none" and recipe.channels is not None:
        assert windows is not None
        channels = recipe.channels
        narrow, recipe = _first("channels", checkpoint, recipe)
        narrow = _stored(narrow, stored)
        if repair == "refit":
            narrow = repair_narrow(checkpoint, narrow, channels, windows, **common)
        checkpoint = narrow
        recipe = dataclasses.replace(recipe, source_fingerprint=narrow.fingerprint)
        slim = _stored(apply(checkpoint, recipe), stored)
    if repair != "none" and slim.config != checkpoint.config:
        assert windows is not None
        slim = repair_weights(
            checkpoint,
            slim,
            recipe,
            windows,
            method=repair,
            passes=passes,
            journal=journal("repair"),
            **common,
        )
    refit = repair == "refit"
    if wish is not None:
        asked = dataclasses.asdict(wish)
        draft = journal("draft", wish=asked)
        wanted = choose_zeros(slim, wish, windows, journal=draft, **common)
    if wanted is None:
        return slim
    filling = journal("zeros", zeros=wanted.to_dict())
    return add_zeros(slim, wanted, windows, refit=refit, journal=filling, **common)


def _needs_text(wish: Wish | None, zeros: Zeros | None, *, refit: bool) -> bool:
    """Whether zeros are chosen by what flows past, or made up for by it."""
    method = wish.method if wish is not None else None if zeros is None else zeros.method
    return method is not None and (refit or method != "magnitude")


def explicit(
    checkpoint: Checkpoint,
    *,
    drop_layers: Sequence[int] = (),
    drop_attention: Sequence[int] = (),
    drop_ffn: Sequence[int] = (),
    heads: Mapping[int, Sequence[int]] | None = None,
    value_dims: int | None = None,
    rotary_pairs: Mapping[int, Sequence[int]] | None = None,
    neurons: int | Mapping[int, Sequence[int]] | None = None,
    experts: Mapping[int, Sequence[int]] | None = None,
    expert_neurons: Mapping[int, Mapping[int, Sequence[int]]] | None = None,
) -> Recipe:
    """A recipe from lists.

    Parameters
    ----------
    drop_layers, drop_attention, drop_ffn
        Layers that lose everything, their attention or their FFN.
    heads
        For some layers, the query heads that stay.
    value_dims
        How many entries of their value heads all layers keep, the first ones: those that matter
        most of a model from ``align_values``.
    rotary_pairs
        For some layers, the rotary pairs of queries and keys that stay; ``dearest_pairs`` finds
        those that matter most.
    neurons
        For some layers, the neurons that stay; or for all layers, and each of their experts, how
        many stay, those with the largest weights.
    experts
        For some layers, the experts that stay.
    expert_neurons
        For some layers and experts, the neurons that stay.

    Raises
    ------
    RecipeError
        A layer, head, rotary pair, neuron or expert that the model does not have.
    """
    config = checkpoint.config
    gone = _existing(checkpoint, "drop_layers", drop_layers)
    without_attention = _existing(checkpoint, "drop_attention", drop_attention) | gone
    without_ffn = _existing(checkpoint, "drop_ffn", drop_ffn) | gone
    kept_heads = dict(heads or {})
    _existing(checkpoint, "heads", kept_heads)
    if isinstance(neurons, Mapping):
        _existing(checkpoint, "neurons", neurons)
    kept_experts, kept_neurons = dict(experts or {}), dict(expert_neurons or {})
    _existing(checkpoint, "experts", kept_experts)
    _existing(checkpoint, "expert_neurons", kept_neurons)
    kept_pairs = dict(rotary_pairs or {})
    _existing(checkpoint, "rotary_pairs", kept_pairs)
    layers = []
    for index, layer in enumerate(config.layers):
        kept = keep_all(index, layer)
        if index in kept_heads:
            if not isinstance(layer.attention, AttentionConfig):
                raise RecipeError(f"heads: layer {index} has no attention heads")
            count = layer.attention.n_heads
            units = _units(f"heads: layer {index}", kept_heads[index], count)
            kept = dataclasses.replace(kept, attention=keep_heads(layer.attention, units))
        if value_dims is not None:
            kept = dataclasses.replace(kept, attention=_kept_values(layer, kept, value_dims))
        if index in kept_pairs:
            kept = dataclasses.replace(kept, attention=_kept_pairs(layer, kept, kept_pairs[index]))
        if neurons is not None:
            kept = dataclasses.replace(kept, ffn=_kept_neurons(checkpoint, kept, neurons))
        if index in kept_experts or index in kept_neurons:
            if not isinstance(kept.ffn, KeptExperts) or not isinstance(layer.ffn, RoutedFfnConfig):
                raise RecipeError(f"experts: layer {index} has no experts")
            chosen = kept_experts.get(index, kept.ffn.experts)
            own = {**dict(enumerate(kept.ffn.neurons)), **kept_neurons.get(index, {})}
            ffn = _kept_experts(layer.ffn, chosen, own, index)
            kept = dataclasses.replace(kept, ffn=ffn)
        if index in without_attention:
            kept = dataclasses.replace(kept, attention=None)
        if index in without_ffn:
            kept = dataclasses.replace(kept, ffn=None)
        if kept.attention is not None or kept.ffn is not None or kept == keep_all(index, layer):
            layers.append(kept)
    return Recipe(checkpoint.name, checkpoint.fingerprint, tuple(layers))


def profile(
    checkpoint: Checkpoint,
    *,
    calibration: Sequence[str] | None = None,
    tokens: int = PROFILE_TOKENS,
    seed: int = 0,
    threads: int = 0,
    progress: Progress = silent,
) -> Profile:
    """Measure how much each layer and sub-block does, on calibration text."""
    windows = calibration_windows(checkpoint, calibration, tokens, seed, threads, progress)
    flow = list(
        layer_statistics(
            checkpoint,
            embed(checkpoint, windows),
            inputs="none",
            threads=threads,
            progress=progress,
        )
    )
    return Profile(
        tuple(one.layer.influence for one in flow),
        tuple(one.attention.influence for one in flow),
        tuple(one.ffn.influence for one in flow),
    )


def _stored(checkpoint: Checkpoint, dtype: DtypeChoice) -> Checkpoint:
    """The model in the element type that it is saved in."""
    return dataclasses.replace(cast(checkpoint, dtype), quantised=False)


def _first(
    what: Literal["vocabulary", "channels"], checkpoint: Checkpoint, recipe: Recipe
) -> tuple[Checkpoint, Recipe]:
    """The model with those tokens or channels that stay, and what the recipe says of its rest."""
    if getattr(recipe, what) is None:
        return checkpoint, recipe
    recipe.check(checkpoint)
    alone: dict[str, Any] = {what: getattr(recipe, what)}
    cut = apply(checkpoint, dataclasses.replace(Recipe.identity(checkpoint), **alone))
    rest: dict[str, Any] = {what: None, "source_fingerprint": cut.fingerprint}
    return cut, dataclasses.replace(recipe, **rest)


def _existing(checkpoint: Checkpoint, what: str, layers: Iterable[int]) -> frozenset[int]:
    count = len(checkpoint.config.layers)
    found = frozenset(layers)
    for index in found:
        if not 0 <= index < count:
            raise RecipeError(f"{what}: the model has layers 0 to {count - 1}, found {index}")
    return found


def _units(where: str, units: Sequence[int], count: int) -> tuple[int, ...]:
    """Units in ascending order, each once."""
    for unit in units:
        if not 0 <= unit < count:
            raise RecipeError(f"{where}: the model has 0 to {count - 1}, found {unit}")
    return tuple(sorted(set(units)))


def _kept_values(layer: LayerConfig, kept: KeptLayer, count: int) -> KeptOfAttention | None:
    """What stays of the attention of one layer with the first ``count`` entries of its values."""
    if count < 1:
        raise RecipeError(f"value_dims: expected at least 1, found {count}")
    if not isinstance(layer.attention, AttentionConfig) or count >= layer.attention.value_dim:
        return kept.attention
    if not isinstance(kept.attention, KeptAttention):
        return kept.attention
    return dataclasses.replace(kept.attention, value_dims=tuple(range(count)))


def _kept_pairs(
    layer: LayerConfig, kept: KeptLayer, pairs: Sequence[int]
) -> KeptOfAttention | None:
    """What stays of the attention of one layer with those rotary pairs."""
    where = f"rotary_pairs: layer {kept.source}"
    count = 0
    if isinstance(layer.attention, AttentionConfig):
        count = part_count(layer.attention, "rotary_pairs")
    if not count or not isinstance(kept.attention, KeptAttention):
        raise RecipeError(f"{where} has no rotary pairs of which some may go")
    return dataclasses.replace(kept.attention, rotary_pairs=_units(where, pairs, count))


def _kept_neurons(
    checkpoint: Checkpoint, kept: KeptLayer, neurons: int | Mapping[int, Sequence[int]]
) -> KeptFfn | KeptExperts | KeptLink | NewLink | None:
    """What stays of the FFN of one layer."""
    ffn = checkpoint.config.layers[kept.source].ffn
    if isinstance(neurons, Mapping):
        if kept.source not in neurons:
            return kept.ffn
        if not isinstance(ffn, FfnConfig):
            hint = "; its experts have: use expert_neurons"
            raise RecipeError(
                f"neurons: layer {kept.source} has no neurons of its own"
                f"{hint if isinstance(ffn, RoutedFfnConfig) else ''}"
            )
        where = f"neurons: layer {kept.source}"
        units = _units(where, neurons[kept.source], ffn.n_neurons)
        return KeptFfn(units) if units else None
    if neurons < 1:
        raise RecipeError(f"neurons: expected at least 1, found {neurons}; use drop_ffn for none")
    if isinstance(ffn, RoutedFfnConfig):
        return _dearest_of_experts(checkpoint, kept.source, ffn, neurons)
    if not isinstance(ffn, FfnConfig) or neurons >= ffn.n_neurons:
        return kept.ffn
    return KeptFfn(dearest_units(magnitude.score(checkpoint, kept.source).neurons, neurons))


def _dearest_of_experts(
    checkpoint: Checkpoint, index: int, ffn: RoutedFfnConfig, neurons: int
) -> KeptExperts:
    """All experts with at most that many neurons each, those with the largest weights."""
    scores = magnitude.score(checkpoint, index).neurons
    assert scores is not None
    own = np.split(scores, np.cumsum(ffn.experts)[:-1])
    dearest = (dearest_units(one, min(neurons, len(one))) for one in own)
    return KeptExperts(tuple(range(len(own))), tuple(dearest))


def _kept_experts(
    ffn: RoutedFfnConfig, experts: Sequence[int], neurons: Mapping[int, Sequence[int]], index: int
) -> KeptExperts | None:
    """Some experts of a layer, each with those neurons."""
    where = f"experts: layer {index}"
    chosen = _units(where, experts, len(ffn.experts))
    kept = []
    for expert in chosen:
        own = _units(f"{where}: expert {expert}", neurons[expert], ffn.experts[expert])
        if not own:
            raise RecipeError(f"{where}: expert {expert} keeps no neuron; leave it out instead")
        kept.append(own)
    return KeptExperts(chosen, tuple(kept)) if chosen else None
