"""Removing in rounds: units are priced on the model as it is being pruned."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from slimformer.checkpoint.checkpoint import Checkpoint
from slimformer.prune.budget import Budget
from slimformer.prune.recipe import Recipe
from slimformer.prune.remainder import Remainder
from slimformer.prune.structures import Rate


def in_rounds(
    checkpoint: Checkpoint,
    budget: Budget,
    rate_of: Callable[[Checkpoint], Rate],
    rounds: int,
    choose: Callable[[Checkpoint, Recipe, Budget], Recipe],
    repaired: Callable[[Recipe], Checkpoint],
) -> Recipe:
    """A recipe that meets a budget, made in steps of equal weight.

    Parameters
    ----------
    budget
        Of ``checkpoint``.
    rate_of
        The rate of the budget for a model pruned from it, which has other tensors.
    choose
        The recipe for a model, which another recipe made of ``checkpoint``, that meets a budget.
    repaired
        The model that a recipe makes of ``checkpoint``.
    """
    whole = Remainder(checkpoint.config, (), budget).weight
    excess = max(0.0, whole - budget.limit)
    recipe = Recipe.identity(checkpoint)
    current = checkpoint
    for rounds_left in reversed(range(rounds)):
        limit = budget.limit + excess * rounds_left / rounds
        step = dataclasses.replace(budget, limit=limit, rate=rate_of(current))
        recipe = recipe.then(choose(current, recipe, step))
        if rounds_left:
            current = repaired(recipe)
    return recipe
