"""Greedy depth: again and again goes the sub-block, or layer, that costs least for what it saves.

As in SLEB (Song et al. 2024, arXiv 2402.09025) and BlockPruner (Zhong et al. 2024, arXiv
2406.10594) each candidate is tried on the model as it is cut already. Here it is tried with what is
to take its place, on text that this was not fitted on, and judged by the divergence from the dense
model's predictions.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from slimformer.checkpoint.checkpoint import Checkpoint
from slimformer.config import AttentionConfig, LinkConfig, ModelConfig
from slimformer.errors import BudgetError
from slimformer.progress import Progress, silent
from slimformer.prune.budget import Budget
from slimformer.prune.cuts import Cut, Replacement, cuts, kept_layers
from slimformer.prune.journal import Journal
from slimformer.prune.outputs import SUB_BLOCKS
from slimformer.prune.recipe import KeptLayer
from slimformer.prune.remainder import whole
from slimformer.prune.stream import Windows
from slimformer.prune.structures import Structure
from slimformer.prune.trials import Trials
from slimformer.prune.windows import shortened, split

TRIAL_SHARE = 0.125
"""Share of the windows that cuts are judged on; what takes their place is fitted on the others."""

SCREENED_SHARE = 0.25
"""Share of those that all cuts are tried on in the beginning, with nothing in their place: enough
to know which to try first."""

WINDOW = 256
"""Tokens in a window: shorter windows hold more different text."""


TRIED = 8
"""Cuts that are tried in a round: those that cost least when they were tried last.
What a cut costs grows as others are made, so those that were dear are not cheap now, and those that
have not been tried for long come up again."""


class DepthSearch:
    """The model while it is cut, round by round."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        windows: Windows,
        *,
        structures: tuple[Structure, ...],
        links: bool,
        protect: frozenset[int] = frozenset(),
        journal: Journal | None = None,
        threads: int = 0,
        progress: Progress = silent,
    ) -> None:
        """Nothing is cut yet, or what a journal knows of.

        Parameters
        ----------
        windows
            Calibration tokens, [windows, tokens].
        structures
            What may go: some of layers, attention and ffn.
        links
            Whether links may stand in for what goes. Without them what goes is made up for by the
            projection before it alone.
        protect
            Layers that stay whole.
        journal
            Where finished rounds are written down.
        """
        self._structures = structures
        self._protect = protect
        self._journal = journal
        self._progress = progress
        fit, judged = split(shortened(windows, WINDOW), TRIAL_SHARE)
        screened = judged[: max(1, round(SCREENED_SHARE * len(judged)))]
        self._screening, self._trials = (
            Trials(checkpoint, *text, links=links, threads=threads, progress=progress)
            for text in ((fit[:0], screened), (fit, judged))
        )
        self._dense = checkpoint.config
        self._drafts = [checkpoint]  # after each round
        self._divergence = 0.0
        self._known: dict[Cut, float] = {}  # cost for what is saved, when last tried
        self._resume()

    def choose(self, budget: Budget) -> tuple[KeptLayer, ...]:
        """What stays of the model if it is cut until a budget is met.

        Raises
        ------
        BudgetError
            Making every cut is not enough.
        DataError
            Activations on the text that are not finite.
        """
        while model_weight(self._drafts[-1].config, budget) > budget.limit:
            self._round(budget)
        met = (d.config for d in self._drafts if model_weight(d.config, budget) <= budget.limit)
        return kept_layers(self._dense, next(met))

    def _round(self, budget: Budget) -> None:
        """Make the cut that costs least for what it saves."""
        draft = self._drafts[-1]
        weight = model_weight(draft.config, budget)
        excess = weight - budget.limit
        left = cuts(draft.config, self._structures, self._protect)
        if not left:
            raise BudgetError(
                f"{budget.label}: cannot be met by removing {', '.join(self._structures)} with "
                f"{len(self._protect)} of {len(self._dense.layers)} layers protected; possible is "
                f"{budget.describe(weight)} to "
                f"{budget.describe(model_weight(self._dense, budget))}"
            )

        def gain(cut: Cut, link: LinkConfig | None) -> float:
            """What a cut saves, as far as it is wanted."""
            trial = Replacement(cut, link, {}, 0.0).shape(draft.config)
            saved = _layer_weight(draft.config, cut.layer, budget) - _layer_weight(
                trial, cut.layer, budget
            )
            return min(float(saved), excess)

        def attempt(trials: Trials, tried: list[Cut], what: str) -> Replacement:
            found = trials.run(draft, tried, gain, what)
            costs = [(one.divergence - self._divergence) / gain(one.cut, one.link) for one in found]
            self._known.update(zip((one.cut for one in found), costs, strict=True))
            return found[int(np.argmin(costs))]

        if not self._known:
            attempt(self._screening, left, "try all cuts")
            self._record({})
        left.sort(key=lambda cut: self._known.get(cut, -np.inf))
        best = attempt(self._trials, left[:TRIED], f"try cuts, round {len(self._drafts)}")
        self._make(best)
        self._record(best.pack())

    def _record(self, found: dict[str, npt.NDArray[np.float32]]) -> None:
        """Write down what the last round has found; step 0 is the first look at all cuts."""
        if self._journal is not None:
            step = len(self._drafts) - 1
            named = {f"{step}.{name}": values for name, values in found.items()}
            self._journal.record(step, named, {"known": self._pack_known()})

    def _make(self, chosen: Replacement) -> None:
        self._drafts.append(chosen.apply(self._drafts[-1]))
        self._divergence = chosen.divergence

    def _resume(self) -> None:
        resumed = None if self._journal is None else self._journal.resume()
        if resumed is None:
            return
        last, found, standing = resumed
        for step in range(1, last + 1):
            prefix = f"{step}."
            self._make(
                Replacement.unpack(
                    {
                        name.removeprefix(prefix): tensor
                        for name, tensor in found.items()
                        if name.startswith(prefix)
                    }
                )
            )
        rows = standing["known"].read().view(np.float64).reshape(-1, 2 + len(SUB_BLOCKS))
        for layer, cost, *flags in rows:
            parts = (part for part, flag in zip(SUB_BLOCKS, flags, strict=True) if flag)
            self._known[Cut(int(layer), tuple(parts))] = float(cost)

    def _pack_known(self) -> npt.NDArray[np.float32]:
        rows = [
            (cut.layer, cost, *(part in cut.parts for part in SUB_BLOCKS))
            for cut, cost in self._known.items()
        ]
        return np.asarray(rows, np.float64).reshape(-1).view(np.float32)


def model_weight(config: ModelConfig, budget: Budget) -> int:
    """Weight of a whole model."""
    layers = range(len(config.layers))
    return budget.fixed + sum(_layer_weight(config, index, budget) for index in layers)


def _layer_weight(config: ModelConfig, index: int, budget: Budget) -> int:
    all_of_it = whole(config, index)
    attention = config.layers[index].attention
    return budget.price(config, index).of(
        len(all_of_it.heads or ()),
        attention.n_kv_heads if isinstance(attention, AttentionConfig) else 0,
        all_of_it.neurons or 0,
        attention=all_of_it.attention,
        ffn=all_of_it.ffn,
        experts=len(all_of_it.experts or ()),
    )
