"""``plan``: what to keep so that a budget is met."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

from slimformer.checkpoint.checkpoint import Checkpoint
from slimformer.engine import Weights
from slimformer.errors import BudgetError, ConfigError
from slimformer.progress import Progress, silent
from slimformer.prune.allocate import Allocation, allocate
from slimformer.prune.budget import Budget, bytes_budget, keep_budget
from slimformer.prune.calibrate import calibration_windows
from slimformer.prune.depth import DepthSearch
from slimformer.prune.effort import Effort, work
from slimformer.prune.importance import (
    BLOCKS,
    PREDICTING,
    Criterion,
    check_criterion,
    default_criterion,
    score_model,
)
from slimformer.prune.importance.scores import Scores
from slimformer.prune.journal import Journal, digest
from slimformer.prune.latency import dense_time, hit, time_budget
from slimformer.prune.pricing import draft_of, in_nats, measure_prices, smooth, temper
from slimformer.prune.recipe import KeptLayer, Recipe
from slimformer.prune.search import search
from slimformer.prune.structures import check_structures
from slimformer.prune.surgery import apply
from slimformer.prune.timing import Phase, Setting, compare, latency_table

PROTECT = (0, -1)
"""Layers that stay whole where a criterion does not know what their errors do to the predictions:
the first carries the analysis of the text, the last the choice of the token."""

AIM = 0.99
"""Share of the time asked for that plans aim at: of several choices that are timed, the one that is
taken was rather lucky, and who asks for a speed wants it at least."""

FARTHEST = 0.03
"""How far from the time wanted, as a share of it, a plan may be."""


def plan(
    checkpoint: Checkpoint,
    *,
    keep: float | None = None,
    max_bytes: int | None = None,
    speedup: float | None = None,
    decode_tokens_per_second: float | None = None,
    weights: Weights = "bf16",
    phase: Phase = "decode",
    structures: Sequence[str] = ("neurons",),
    links: bool = False,
    criterion: Criterion | None = None,
    allocation: Allocation | None = None,
    effort: Effort = "fast",
    calibration: Sequence[str] | None = None,
    tokens: int | None = None,
    protect: Sequence[int] | None = None,
    state: Path | None = None,
    seed: int = 0,
    threads: int = 0,
    progress: Progress = silent,
) -> Recipe:
    """Choose what to keep so that a budget is met, one of the first four.

    Parameters
    ----------
    keep
        Share of the parameters outside embedding and head that may stay, above 0, at most 1.
    max_bytes
        Bytes of all tensors, as ``prune`` stores them by default.
    speedup
        Times as fast as the dense model, on this machine: by a table of what the parts of a layer
        take, timed once, and then by timing what was chosen, until it is hit within 3 %.
    decode_tokens_per_second
        Speed of decoding one sequence, hit in the same way.
    weights, phase
        What a budget of time is for: the type of the packed weights, and ``decode`` or
        ``prefill``. ``threads`` are those that it runs on.
    structures
        What may go: some of layers, attention, ffn, kv_groups, heads, value_dims, rotary_pairs,
        experts, neurons. Of each expert that stays one neuron stays.
    links
        Whether constants and linear maps may stand in for layers and sub-blocks, where held-out
        text says that they are worth their weight; with the criterion greedy_loss.
    criterion
        What a unit costs: obs, loss, activation, magnitude; for layers, attention and ffn also
        block_influence and greedy_loss, which tries each, and experts, on the model as it is cut
        already. By default greedy_loss where only layers and sub-blocks may go, else loss; but
        obs for an encoder, which makes no predictions to lose.
    allocation
        ``global``: wherever in the model it costs least. ``uniform``: the same share of every
        layer that is not protected. By default global for the criterion loss, whose costs may
        be compared between layers, and uniform for others.
    effort
        fast, balanced or thorough: on how much text units are priced, and how long the search
        for a better allocation goes on after that (criterion loss).
    calibration
        Texts; without any the model writes some itself.
    tokens
        About how many tokens of them to price units on; by default what the effort says.
    protect
        Layers that stay whole; negative ones count from the end. By default none for the
        criteria loss and greedy_loss, which price them all, and the first and the last for others.
    state
        Folder that keeps unfinished work, as for ``prune``: layers that are rated already are
        not rated again, and a finished plan is not made again.
    seed
        Of the choice of text. The same seed gives the same recipe, unless time decides.

    Raises
    ------
    BudgetError
        No choice of these structures meets the budget; the message says what is possible.
    ConfigError
        Unknown or contradictory settings.
    DataError
        Calibration text that cannot be used.
    """
    budgets = (keep, max_bytes, speedup, decode_tokens_per_second)
    if sum(budget is not None for budget in budgets) != 1:
        raise ConfigError(
            "plan: give either keep or max_bytes or speedup or decode_tokens_per_second"
        )
    wanted = check_structures(tuple(structures), checkpoint.config)
    if criterion is None:
        criterion = default_criterion(checkpoint.config, wanted)
    if links and (criterion != "greedy_loss" or not set(wanted) <= set(BLOCKS)):
        raise ConfigError(
            f"links: stand in for layers and sub-blocks that the criterion greedy_loss removes, "
            f"not for what {criterion} does; leave out links, or allow no structures but "
            f"{', '.join(BLOCKS)}"
        )
    check_criterion(criterion, wanted)
    if criterion in PREDICTING and not checkpoint.config.causal:
        raise ConfigError(f"criterion: {criterion} is of predictions, and an encoder makes none")
    if allocation is None:
        allocation = "global" if criterion == "loss" else "uniform"
    if allocation not in ("global", "uniform"):
        raise ConfigError(f"allocation: expected global or uniform, found {allocation!r}")
    if protect is None:
        protect = () if criterion in ("loss", "greedy_loss") else PROTECT
    protected = _layer_indices(checkpoint, protect)
    n_tokens = work(effort).plan_tokens if tokens is None else tokens
    rounds = work(effort).search_rounds
    key: dict[str, object] = {}
    if state is not None:
        key = {
            "work": "plan",
            "source": checkpoint.fingerprint,
            "budget": budgets,
            "setting": (weights, phase, threads),
            "structures": wanted,
            "links": links,
            "criterion": criterion,
            "allocation": allocation,
            "protect": sorted(protected),
            "calibration": digest(calibration),
            "tokens": n_tokens,
            "search_rounds": rounds,
            "seed": seed,
        }

    def journal_of(name: str) -> Journal | None:
        return None if state is None else Journal(state / name, key)

    journal = journal_of("plan")
    finished = None if journal is None else journal.finished()
    if finished is not None:
        return Recipe.from_json(finished)

    def chooser(budget: Budget) -> Callable[[Budget], Recipe]:
        """Price the units once, for about this budget, and allocate for any."""
        windows = None
        if criterion != "magnitude":
            windows = calibration_windows(
                checkpoint, calibration, n_tokens, seed, threads, progress
            )
        if criterion == "greedy_loss" and set(wanted) <= set(BLOCKS):
            assert windows is not None
            depth = DepthSearch(
                checkpoint,
                windows,
                structures=wanted,
                links=links,
                protect=protected,
                journal=journal,
                threads=threads,
                progress=progress,
            )
            return lambda budget: recipe(depth.choose(budget))
        scores = score_model(
            checkpoint,
            windows,
            budget,
            criterion=criterion,
            structures=wanted,
            protect=protected,
            journal=journal,
            threads=threads,
            progress=progress,
        )
        if criterion == "loss":
            assert windows is not None
            sparing = protected | _layer_indices(checkpoint, PROTECT)
            draft = draft_of(checkpoint.config, scores, budget, wanted, sparing)
            prices = measure_prices(
                checkpoint,
                scores,
                draft,
                windows,
                structures=wanted,
                journal=journal_of("prices"),
                threads=threads,
                progress=progress,
            )
            found = search(
                checkpoint,
                scores,
                temper(smooth(prices)),
                lambda prices: choose(in_nats(scores, prices), budget),
                windows,
                rounds=rounds,
                structures=wanted,
                journal=journal_of,
                threads=threads,
                progress=progress,
            )
            scores = in_nats(scores, found)
        return functools.partial(choose, scores)

    def choose(scores: Scores, budget: Budget) -> Recipe:
        kept = allocate(
            checkpoint.config,
            scores,
            budget,
            structures=wanted,
            allocation=allocation,
            protect=protected,
        )
        return recipe(kept)

    def recipe(kept: tuple[KeptLayer, ...]) -> Recipe:
        return Recipe(checkpoint.name, checkpoint.fingerprint, kept)

    if keep is not None or max_bytes is not None:
        budget = (
            bytes_budget(checkpoint, max_bytes or 0)
            if keep is None
            else keep_budget(checkpoint, keep)
        )
        chosen = chooser(budget)(budget)
    else:
        setting = Setting("decode" if speedup is None else phase, weights, threads)
        chosen = _in_time(
            checkpoint, wanted, setting, speedup, decode_tokens_per_second, chooser, progress
        )
    if journal is not None:
        journal.finish(chosen.to_json())
    return chosen


def _in_time(
    checkpoint: Checkpoint,
    structures: Sequence[str],
    setting: Setting,
    speedup: float | None,
    tokens_per_second: float | None,
    chooser: Callable[[Budget], Callable[[Budget], Recipe]],
    progress: Progress,
) -> Recipe:
    """The recipe that is as fast as asked for when it is timed."""
    name = "speedup" if speedup is not None else "decode_tokens_per_second"
    asked = speedup if speedup is not None else tokens_per_second
    if asked is None or not 0 < asked < float("inf"):
        raise BudgetError(f"{name}: expected a number above 0, found {asked}")
    if "experts" in structures:
        raise ConfigError(
            f"{name}: with an expert less a token runs as many and takes as long; let others of "
            "the structures go, such as neurons, or give keep or max_bytes"
        )
    table = latency_table(checkpoint, setting, progress=progress)
    whole = dense_time(table, checkpoint.config)
    if speedup is None:
        whole = compare(checkpoint, checkpoint, setting)[0]
    target = whole / asked if speedup is not None else 1e9 / asked
    if target >= whole:
        return Recipe.identity(checkpoint)

    def budget(limit: float) -> Budget:
        return time_budget(table, limit, f"{name} {asked}")

    choose = chooser(budget(AIM * target))

    def measure(recipe: Recipe) -> float:
        time, ratio = compare(checkpoint, apply(checkpoint, recipe), setting)
        return (whole if speedup is not None else time) * ratio

    recipe, missed = hit(AIM * target, lambda limit: choose(budget(limit)), measure)
    if abs(missed - 1) > FARTHEST:
        raise BudgetError(
            f"{name} {asked}: the closest choice of {', '.join(structures)} takes {missed:.2f} of "
            "the time wanted; allow smaller structures, or try again while the machine is idle"
        )
    return recipe


def _layer_indices(checkpoint: Checkpoint, layers: Sequence[int]) -> frozenset[int]:
    """Layers by index, negative ones from the end; those a short model lacks are ignored."""
    count = len(checkpoint.config.layers)
    return frozenset(index % count for index in layers if -count <= index < count)
