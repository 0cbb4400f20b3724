"""The way from a model to a smaller one: plan, prune, and what explains them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from slimformer.checkpoint import cast
from slimformer.checkpoint.checkpoint import Checkpoint
from slimformer.config import AttentionConfig, FfnConfig
from slimformer.errors import ConfigError, RecipeError
from slimformer.progress import Progress, silent
from slimformer.prune.allocate import Allocation, allocate
from slimformer.prune.budget import Budget, bytes_budget, keep_budget
from slimformer.prune.calibrate import make_windows
from slimformer.prune.effort import Effort, work
from slimformer.prune.importance import Criterion, check_criterion, magnitude, score_model
from slimformer.prune.importance.statistics import layer_statistics
from slimformer.prune.recipe import KeptFfn, KeptLayer, KeptLink, Recipe, keep_all, keep_heads
from slimformer.prune.remainder import dearest_neurons
from slimformer.prune.repair import REPAIRS, Repair
from slimformer.prune.repair import repair as repair_weights
from slimformer.prune.rounds import in_rounds
from slimformer.prune.sample import sample_calibration
from slimformer.prune.stream import Windows
from slimformer.prune.structures import check_structures
from slimformer.prune.surgery import apply

PROFILE_TOKENS = 4096
"""Block influence is a mean over tokens, and needs few."""

PROTECT = (0, -1)
"""Layers that stay whole where a criterion does not know what their errors do to the predictions:
the first carries the analysis of the text, the last the choice of the token."""


@dataclasses.dataclass(frozen=True)
class Profile:
    """Importance of each layer, attention and FFN by block influence, 0 where absent.

    Block influence is ``1 - cos`` between the residual stream before and after.
    """

    layers: tuple[float, ...]
    attention: tuple[float, ...]
    ffn: tuple[float, ...]


def plan(
    checkpoint: Checkpoint,
    *,
    keep: float | None = None,
    max_bytes: int | None = None,
    structures: Sequence[str] = ("neurons",),
    criterion: Criterion = "obs",
    allocation: Allocation | None = None,
    effort: Effort = "fast",
    calibration: Sequence[str] | None = None,
    tokens: int | None = None,
    protect: Sequence[int] | None = None,
    seed: int = 0,
    threads: int = 0,
    progress: Progress = silent,
) -> Recipe:
    """Choose what to keep so that a budget is met.

    Parameters
    ----------
    keep
        Share of the parameters outside embedding and head that may stay, above 0, at most 1.
    max_bytes
        Instead of ``keep``: bytes of all tensors, as ``prune`` stores them by default.
    structures
        What may go: some of layers, attention, ffn, kv_groups, heads, neurons.
    criterion
        What a unit costs: obs, loss, activation, magnitude; for layers, attention and ffn also
        block_influence and greedy_loss.
    allocation
        ``global``: wherever in the model it costs least. ``uniform``: the same share of every
        layer that is not protected. By default global for the criterion loss, whose costs may
        be compared between layers, and uniform for others.
    effort
        fast, balanced or thorough: in how many rounds the criterion loss prices and removes
        units, and on how much text; see ``slimformer.prune.effort``.
    calibration
        Texts; without any the model writes some itself.
    tokens
        About how many tokens of them to price units on; by default what the effort says.
    protect
        Layers that stay whole; negative ones count from the end. By default none for the
        criterion loss, which prices them all, and the first and the last for others.
    seed
        Of the choice of text. The same seed gives the same recipe.

    Raises
    ------
    BudgetError
        No choice of these structures meets the budget; the message says what is possible.
    ConfigError
        Unknown or contradictory settings.
    DataError
        Calibration text that cannot be used.
    """
    if (keep is None) == (max_bytes is None):
        raise ConfigError("plan: give either keep or max_bytes")
    wanted = check_structures(tuple(structures))
    check_criterion(criterion, wanted)
    if allocation is None:
        allocation = "global" if criterion == "loss" else "uniform"
    if allocation not in ("global", "uniform"):
        raise ConfigError(f"allocation: expected global or uniform, found {allocation!r}")

    def budget_of(model: Checkpoint) -> Budget:
        if keep is not None:
            return keep_budget(model, keep)
        return bytes_budget(model, max_bytes or 0)

    budget = budget_of(checkpoint)
    rounds = work(effort).rounds if criterion == "loss" else 1
    if protect is None:
        protect = () if criterion == "loss" else PROTECT
    protected = _layer_indices(checkpoint, protect)
    windows = None
    if criterion != "magnitude":
        n_tokens = work(effort).plan_tokens if tokens is None else tokens
        windows = _windows(checkpoint, calibration, n_tokens, seed, threads, progress)

    def choose(model: Checkpoint, made_by: Recipe, budget: Budget) -> Recipe:
        whole = frozenset(i for i, kept in enumerate(made_by.layers) if kept.source in protected)
        scores = score_model(
            model,
            windows,
            budget,
            criterion=criterion,
            structures=wanted,
            protect=whole,
            threads=threads,
            progress=progress,
        )
        kept = allocate(
            model.config,
            scores,
            budget,
            structures=wanted,
            allocation=allocation,
            protect=whole,
        )
        return Recipe(model.name, model.fingerprint, kept)

    def repaired(recipe: Recipe) -> Checkpoint:
        return prune(
            checkpoint,
            recipe,
            calibration=calibration,
            tokens=work(effort).round_tokens,
            seed=seed,
            threads=threads,
            progress=progress,
        )

    return in_rounds(
        checkpoint, budget, lambda model: budget_of(model).rate, rounds, choose, repaired
    )


def prune(
    checkpoint: Checkpoint,
    recipe: Recipe,
    *,
    repair: Repair = "refit",
    effort: Effort = "fast",
    calibration: Sequence[str] | None = None,
    tokens: int | None = None,
    dtype: Literal["auto", "f32", "bf16", "f16"] = "auto",
    seed: int = 0,
    threads: int = 0,
    progress: Progress = silent,
) -> Checkpoint:
    """Remove what the recipe does not keep and repair what stays.

    Parameters
    ----------
    recipe
        Made for exactly this model.
    repair
        ``refit``: least squares towards the dense model's residual stream. ``mean``: only the
        mean output of what went is made up for. ``none``: surgery alone.
    effort
        fast, balanced or thorough: how much text the repair is fitted on.
    calibration, seed
        As for ``plan``.
    tokens
        About how many tokens to fit on, instead of what the effort says.
    dtype
        Element type of the result. ``auto``: as the source has it, bf16 if it is quantised.

    Returns
    -------
    The pruned model; what it is in memory is what saving it writes.

    Raises
    ------
    RecipeError
        The recipe belongs to another model.
    ConfigError
        Unknown repair.
    DataError
        Calibration text that cannot be used.
    """
    if repair not in REPAIRS:
        raise ConfigError(f"repair: expected one of {', '.join(REPAIRS)}, found {repair!r}")
    work(effort)
    stored = "bf16" if dtype == "auto" and checkpoint.quantised else dtype
    slim = dataclasses.replace(cast(apply(checkpoint, recipe), stored), quantised=False)
    if repair == "none":
        return slim
    n_tokens = work(effort).repair_tokens if tokens is None else tokens
    windows = _windows(checkpoint, calibration, n_tokens, seed, threads, progress)
    return repair_weights(
        checkpoint, slim, recipe, windows, method=repair, threads=threads, progress=progress
    )


def explicit(
    checkpoint: Checkpoint,
    *,
    drop_layers: Sequence[int] = (),
    drop_attention: Sequence[int] = (),
    drop_ffn: Sequence[int] = (),
    heads: Mapping[int, Sequence[int]] | None = None,
    neurons: int | Mapping[int, Sequence[int]] | None = None,
) -> Recipe:
    """A recipe from lists.

    Parameters
    ----------
    drop_layers, drop_attention, drop_ffn
        Layers that lose everything, their attention or their FFN.
    heads
        For some layers, the query heads that stay.
    neurons
        For some layers, the neurons that stay; or for all layers how many stay, those with the
        largest weights.

    Raises
    ------
    RecipeError
        A layer, head or neuron that the model does not have.
    """
    config = checkpoint.config
    gone = _existing(checkpoint, "drop_layers", drop_layers)
    without_attention = _existing(checkpoint, "drop_attention", drop_attention) | gone
    without_ffn = _existing(checkpoint, "drop_ffn", drop_ffn) | gone
    kept_heads = dict(heads or {})
    _existing(checkpoint, "heads", kept_heads)
    if isinstance(neurons, Mapping):
        _existing(checkpoint, "neurons", neurons)
    layers = []
    for index, layer in enumerate(config.layers):
        kept = keep_all(index, layer)
        if index in kept_heads:
            if not isinstance(layer.attention, AttentionConfig):
                raise RecipeError(f"heads: layer {index} has no attention heads")
            count = layer.attention.n_heads
            units = _units(f"heads: layer {index}", kept_heads[index], count)
            kept = dataclasses.replace(kept, attention=keep_heads(layer.attention, units))
        if neurons is not None:
            kept = dataclasses.replace(kept, ffn=_kept_neurons(checkpoint, kept, neurons))
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
    windows = _windows(checkpoint, calibration, tokens, seed, threads, progress)
    flow = list(
        layer_statistics(checkpoint, windows, inputs="none", threads=threads, progress=progress)
    )
    return Profile(
        tuple(one.layer.influence for one in flow),
        tuple(one.attention.influence for one in flow),
        tuple(one.ffn.influence for one in flow),
    )


def _windows(
    checkpoint: Checkpoint,
    calibration: Sequence[str] | None,
    tokens: int,
    seed: int,
    threads: int,
    progress: Progress,
) -> Windows:
    texts = calibration
    if texts is None:
        texts = sample_calibration(checkpoint, seed=seed, threads=threads, progress=progress)
    return make_windows(checkpoint, texts, tokens=tokens, seed=seed)


def _layer_indices(checkpoint: Checkpoint, layers: Sequence[int]) -> frozenset[int]:
    """Layers by index, negative ones from the end; those a short model lacks are ignored."""
    count = len(checkpoint.config.layers)
    return frozenset(index % count for index in layers if -count <= index < count)


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


def _kept_neurons(
    checkpoint: Checkpoint, kept: KeptLayer, neurons: int | Mapping[int, Sequence[int]]
) -> KeptFfn | KeptLink | None:
    """What stays of the FFN of one layer."""
    ffn = checkpoint.config.layers[kept.source].ffn
    if isinstance(neurons, Mapping):
        if kept.source not in neurons:
            return kept.ffn
        if not isinstance(ffn, FfnConfig):
            raise RecipeError(f"neurons: layer {kept.source} has no neurons")
        where = f"neurons: layer {kept.source}"
        units = _units(where, neurons[kept.source], ffn.n_neurons)
        return KeptFfn(units) if units else None
    if neurons < 1:
        raise RecipeError(f"neurons: expected at least 1, found {neurons}; use drop_ffn for none")
    if not isinstance(ffn, FfnConfig) or neurons >= ffn.n_neurons:
        return kept.ffn
    return KeptFfn(dearest_neurons(magnitude.score(checkpoint, kept.source), neurons))
