"""What every baseline is asked for, and what several of them do in the same way."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from slimformer.checkpoint import cast
from slimformer.checkpoint.checkpoint import Checkpoint
from slimformer.config import FfnConfig, RoutedFfnConfig
from slimformer.errors import BudgetError, ConfigError
from slimformer.progress import Progress, silent
from slimformer.prune import Recipe, apply, explicit
from slimformer.prune.allocate import Allocation, allocate
from slimformer.prune.budget import Budget, keep_budget
from slimformer.prune.importance.scores import Scores
from slimformer.prune.stream import Windows
from slimformer.prune.structures import Structure, parameters_price


@dataclasses.dataclass(frozen=True)
class Task:
    """A model to be pruned to a share of its parameters outside the embedding.

    ``windows`` is the calibration text, [windows, tokens].
    """

    dense: Checkpoint
    keep: float
    windows: Windows
    threads: int = 0
    progress: Progress = silent

    def __post_init__(self) -> None:
        if any(isinstance(layer.ffn, RoutedFfnConfig) for layer in self.dense.config.layers):
            raise ConfigError(
                f"{self.dense.name}: the methods to compare with know no experts; use plan"
            )

    @property
    def budget(self) -> Budget:
        """What the result may weigh, in parameters."""
        return keep_budget(self.dense, self.keep)

    def cut(self, recipe: Recipe) -> Checkpoint:
        """What the recipe keeps, in the types that a pruned model is stored in."""
        slim = cast(apply(self.dense, recipe), "bf16" if self.dense.quantised else "auto")
        return dataclasses.replace(slim, quantised=False)

    def neurons(self, kept: Mapping[int, Sequence[int]]) -> Checkpoint:
        """The model with those neurons of some layers."""
        return self.cut(explicit(self.dense, neurons=kept))

    def cheapest(
        self,
        scores: Scores,
        structures: tuple[Structure, ...],
        allocation: Allocation,
        protect: frozenset[int] = frozenset(),
    ) -> Checkpoint:
        """The model without the units of lowest score."""
        kept = allocate(
            self.dense.config,
            scores,
            self.budget,
            structures=structures,
            allocation=allocation,
            protect=protect,
        )
        return self.cut(Recipe(self.dense.name, self.dense.fingerprint, kept))

    def even_neurons(self) -> dict[int, int]:
        """How many neurons each layer keeps if all lose the same share and nothing else goes.

        Raises
        ------
        BudgetError
            The neurons weigh less than what is to go.
        """
        config, budget = self.dense.config, self.budget
        counts, price = {}, {}
        for index, layer in enumerate(config.layers):
            if isinstance(layer.ffn, FfnConfig):
                counts[index] = layer.ffn.n_neurons
                price[index] = parameters_price(config, index).neuron
        total = sum(counts[index] * price[index] for index in counts)
        excess = config.non_embedding_parameters() - budget.limit
        share = 1 - excess / total if total else 0.0
        kept = {index: int(share * count + 1e-9) for index, count in counts.items()}
        if min(kept.values(), default=0) < 1:
            raise BudgetError(f"{budget.label}: the neurons alone weigh too little")
        return kept
