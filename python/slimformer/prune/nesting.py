"""Several budgets in one folder: a narrower model keeps some of the units of the wider ones.

Units are stored in the order of the narrowest model that keeps them, so that each model is the
leading corner of every tensor of the widest; see ``slimformer.checkpoint.nested``.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from slimformer.checkpoint.checkpoint import Checkpoint, DtypeChoice
from slimformer.checkpoint.nested import Narrower
from slimformer.checkpoint.saving import save_nested
from slimformer.errors import BudgetError, ConfigError, RecipeError
from slimformer.progress import Progress, silent
from slimformer.prune.allocate import Allocation
from slimformer.prune.effort import Effort
from slimformer.prune.importance import Criterion
from slimformer.prune.pipeline import prune
from slimformer.prune.planning import plan
from slimformer.prune.recipe import (
    HEAD_PARTS,
    KeptAttention,
    KeptExperts,
    KeptFfn,
    KeptLayer,
    KeptLink,
    NewLink,
    Recipe,
)
from slimformer.prune.repair import Repair
from slimformer.prune.surgery import apply

Units = tuple[int, ...]


def prune_nested(
    checkpoint: Checkpoint,
    keeps: Sequence[float],
    *,
    structures: Sequence[str] = ("neurons",),
    criterion: Criterion | None = None,
    allocation: Allocation | None = None,
    protect: Sequence[int] | None = None,
    repair: Repair = "refit",
    effort: Effort = "fast",
    calibration: Sequence[str] | None = None,
    tokens: int | None = None,
    dtype: DtypeChoice = "auto",
    state: Path | None = None,
    seed: int = 0,
    threads: int = 0,
    progress: Progress = silent,
) -> dict[float, Checkpoint]:
    """Models of several widths, each made of units that the wider ones have, too.

    What a narrower model loses is chosen on the model before it. It is repaired towards
    ``checkpoint``, as if it were made alone.

    Parameters
    ----------
    keeps
        Shares of the parameters outside embedding and head; 1 keeps them all.
    structures, criterion, allocation, protect
        See ``plan``.
    repair, dtype
        See ``prune``.
    effort, calibration, tokens, seed
        See both; ``tokens`` counts for either.
    state
        Folder that keeps unfinished work, as for ``prune``.

    Returns
    -------
    The models by width, the widest first, for ``nest``.

    Raises
    ------
    BudgetError
        No choice of these structures meets a budget.
    ConfigError
        Unknown or contradictory settings.
    DataError
        Calibration text that cannot be used.
    """
    if not keeps or not all(0 < keep <= 1 for keep in keeps):
        raise BudgetError(f"keep: expected shares above 0 and at most 1, found {list(keeps)}")
    total = checkpoint.config.non_embedding_parameters()
    models: dict[float, Checkpoint] = {}
    base, recipe = checkpoint, Recipe.identity(checkpoint)
    for keep in sorted(set(keeps), reverse=True):
        common: dict[str, Any] = {
            "effort": effort,
            "calibration": calibration,
            "tokens": tokens,
            "state": None if state is None else state / str(keep),
            "seed": seed,
            "threads": threads,
            "progress": progress,
        }
        share = keep * total / base.config.non_embedding_parameters()
        if share < 1:
            try:
                inside = plan(
                    base,
                    keep=share,
                    structures=structures,
                    criterion=criterion,
                    allocation=allocation,
                    protect=_still_there(protect, checkpoint, recipe),
                    **common,
                )
            except BudgetError as error:
                wider = min(models, default=1)
                raise BudgetError(f"width {keep} inside {wider}: of that, {error}") from error
            recipe = recipe.then(inside)
        base = models[keep] = prune(checkpoint, recipe, repair=repair, dtype=dtype, **common)
    return models


def nest(models: Mapping[float, Checkpoint], path: str | os.PathLike[str]) -> None:
    """Write models of several widths as one folder, without what they have in common twice.

    ``load`` and ``Engine`` open it at any of the widths; what comes is the same bit for bit as if
    it had been saved alone. Of a narrower model only those tensors are written that are no corners
    of the widest one's: what a refit has changed, or nothing after ``repair="none"``.

    Parameters
    ----------
    models
        By width, such as ``prune_nested`` makes; or any that were pruned from one source, by
        recipes of which each narrower one keeps a part of what the wider ones keep.
    path
        The folder to write, as for ``Checkpoint.save``.

    Raises
    ------
    RecipeError
        A model keeps what a wider one does not, or has other tokens or channels, or another source.
    ConfigError
        There are no models, or some are sparse.
    StorageError
        The folder cannot be written, or holds something else; nothing was changed.
    """
    if not models or not all(0 < width <= 1 for width in models):
        raise ConfigError(f"nest: expected models by widths from 0 to 1, found {list(models)}")
    widths = sorted(models, reverse=True)
    recipes = [_recipe_of(models[width]) for width in widths]
    for (wide, width), (outer, inner) in zip(
        itertools.pairwise(widths), itertools.pairwise(recipes), strict=True
    ):
        _check_inside(outer, inner, f"width {width} in {wide}")
    ordered = [
        apply(models[width], _reordered(models[width], recipe, recipes[1:]))
        for width, recipe in zip(widths, recipes, strict=True)
    ]
    place = {kept.source: index for index, kept in enumerate(recipes[0].layers)}
    narrower = [
        Narrower(width, model, tuple(place[kept.source] for kept in recipe.layers))
        for width, model, recipe in zip(widths[1:], ordered[1:], recipes[1:], strict=True)
    ]
    save_nested(ordered[0], widths[0], narrower, path)


def _recipe_of(model: Checkpoint) -> Recipe:
    return Recipe.identity(model) if model.recipe is None else Recipe.from_dict(model.recipe)


def _still_there(
    protect: Sequence[int] | None, checkpoint: Checkpoint, recipe: Recipe
) -> list[int] | None:
    """Layers of the source, negative ones counted from the end, as those of the pruned model."""
    if protect is None:
        return None
    count = len(checkpoint.config.layers)
    sources = {index % count for index in protect if -count <= index < count}
    return [index for index, kept in enumerate(recipe.layers) if kept.source in sources]


def _check_inside(outer: Recipe, inner: Recipe, where: str) -> None:
    """Raise RecipeError unless the inner recipe keeps nothing that the outer one does not."""
    for what in ("source_fingerprint", "vocabulary", "channels"):
        if getattr(outer, what) != getattr(inner, what):
            raise RecipeError(f"nest: {where}: expected models with the same {what}")
    there = {kept.source: kept for kept in outer.layers}
    for kept in inner.layers:
        if kept.source not in there:
            raise RecipeError(f"nest: {where}: layer {kept.source} is not kept in the wider model")
        outer_units = _units(there[kept.source])
        for name, units in _units(kept).items():
            if not _within(units, outer_units.get(name, ())):
                raise RecipeError(
                    f"nest: {where}: layer {kept.source}: expected {name} that the wider model "
                    "keeps; plan the narrower model on the wider one, as prune_nested does"
                )


def _within(inner: Units | None, outer: Units | None) -> bool:
    """Whether all units of the one are among those of the other; ``None`` is all there are."""
    return outer is None or (inner is not None and set(inner) <= set(outer))


def _units(kept: KeptLayer) -> dict[str, Units | None]:
    """All that is kept of a layer, by kind; ``None``: all there are."""
    units: dict[str, Units | None] = {}
    if isinstance(kept.attention, KeptAttention):
        units |= {
            name: getattr(kept.attention, name) for name in ("heads", "kv_heads", *HEAD_PARTS)
        }
    if isinstance(kept.ffn, KeptFfn):
        units["neurons"] = kept.ffn.neurons
    if isinstance(kept.ffn, KeptExperts):
        units["experts"] = kept.ffn.experts
        for expert, neurons in zip(kept.ffn.experts, kept.ffn.neurons, strict=True):
            units[f"neurons of expert {expert}"] = neurons
    return units


def _reordered(model: Checkpoint, recipe: Recipe, narrower: Sequence[Recipe]) -> Recipe:
    """What puts those units of a model first that more of the narrower recipes keep."""
    layers = []
    for index, kept in enumerate(recipe.layers):
        keepers = [
            _units(other) for one in narrower for other in one.layers if other.source == kept.source
        ]
        layers.append(_in_order(index, kept, keepers))
    return Recipe(model.name, model.fingerprint, tuple(layers))


def _in_order(
    index: int, kept: KeptLayer, keepers: Sequence[Mapping[str, Units | None]]
) -> KeptLayer:
    """All of the layer ``index``, which once was ``kept``, in the order of how many keep it."""

    def order(name: str, units: Units) -> Units:
        sets = [frozenset(keeper.get(name) or ()) for keeper in keepers]
        wanted = [-sum(unit in one for one in sets) for unit in units]
        return tuple(sorted(range(len(units)), key=lambda place: (wanted[place], units[place])))

    attention, ffn = kept.attention, kept.ffn
    if isinstance(attention, KeptAttention):
        attention = KeptAttention(
            order("heads", attention.heads), order("kv_heads", attention.kv_heads)
        )
    if isinstance(ffn, KeptFfn):
        ffn = KeptFfn(order("neurons", ffn.neurons))
    if isinstance(ffn, KeptExperts):
        experts = order("experts", ffn.experts)
        neurons = tuple(
            order(f"neurons of expert {ffn.experts[place]}", ffn.neurons[place])
            for place in experts
        )
        ffn = KeptExperts(experts, neurons)
    return KeptLayer(
        index,
        KeptLink() if isinstance(attention, NewLink) else attention,
        KeptLink() if isinstance(ffn, NewLink) else ffn,
    )
