"""Feed-forward sub-blocks: dense ones, and routed ones that consist of experts."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Literal

from slimformer.checks import check, check_choice, check_dimension, check_flag

NormPlace = Literal["before", "after", "both", "stream"]
"""Whether a sub-block normalises what it reads, what it adds to the stream, both, or the stream
after it has been added."""

Activation = Literal["silu", "gelu_tanh", "gelu", "relu"]
"""``gelu_tanh`` is the approximation of ``gelu`` with a hyperbolic tangent."""

SoftmaxOver = Literal["experts", "chosen"]
"""What the probabilities that weight the chosen experts sum to 1 over."""

MAX_EXPERTS = 4096
"""Several times what any layer has; a hostile file claims more."""


@dataclasses.dataclass(frozen=True)
class FfnConfig:
    """Feed-forward sub-block of one layer.

    ``down(activation(gate(x)) * up(x))`` where it is ``gated``, else ``down(activation(up(x)))``.
    """

    n_neurons: int
    bias: bool = False
    norm_place: NormPlace = "before"
    activation: Activation = "silu"
    gated: bool = True

    def __post_init__(self) -> None:
        check_dimension("n_neurons", self.n_neurons)
        check_choice("norm_place", self.norm_place, NormPlace)
        check_choice("activation", self.activation, Activation)
        check_flag("gated", self.gated)

    @property
    def neuron_parts(self) -> tuple[str, ...]:
        """The matrices that have a row for each neuron."""
        return ("gate", "up") if self.gated else ("up",)


@dataclasses.dataclass(frozen=True)
class RoutedFfnConfig:
    """Feed-forward sub-block of which a token runs the few experts that a router chooses.

    ``experts`` is the number of neurons of each expert. The router gives every expert a logit;
    the ``top_k`` highest run (of equal ones the first), each a gated FFN, and add up, weighted by
    their probabilities. Those are a softmax over all ``experts`` or over the ``chosen`` ones. The
    latter is also what a softmax over all comes to whose chosen values are then divided by their
    sum.
    """

    experts: tuple[int, ...]
    top_k: int
    softmax_over: SoftmaxOver = "chosen"
    norm_place: NormPlace = "before"
    activation: Activation = "silu"

    def __post_init__(self) -> None:
        check(
            1 <= len(self.experts) <= MAX_EXPERTS,
            f"experts: expected 1 to {MAX_EXPERTS}, found {len(self.experts)}",
        )
        for neurons in self.experts:
            check_dimension("neurons of an expert", neurons)
        check_dimension("neurons of all experts", self.n_neurons)
        check_dimension("top_k", self.top_k)
        check(
            self.top_k <= len(self.experts),
            f"top_k: expected at most the {len(self.experts)} experts that there are, "
            f"found {self.top_k}",
        )
        check_choice("softmax_over", self.softmax_over, SoftmaxOver)
        check_choice("norm_place", self.norm_place, NormPlace)
        check_choice("activation", self.activation, Activation)

    @property
    def n_neurons(self) -> int:
        """Neurons of all experts."""
        return sum(self.experts)

    def expert(self, index: int) -> FfnConfig:
        """One expert as a dense FFN; the norms are the sub-block's."""
        return FfnConfig(self.experts[index], activation=self.activation)


def ffn_tensors(
    prefix: str, ffn: FfnConfig | RoutedFfnConfig, channels: int
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the tensors of an FFN, norms aside."""
    if isinstance(ffn, RoutedFfnConfig):
        yield f"{prefix}.router.weight", (len(ffn.experts), channels)
        for index in range(len(ffn.experts)):
            yield from ffn_tensors(f"{prefix}.experts.{index}", ffn.expert(index), channels)
        return
    for part in ffn.neuron_parts:
        yield f"{prefix}.{part}.weight", (ffn.n_neurons, channels)
        if ffn.bias:
            yield f"{prefix}.{part}.bias", (ffn.n_neurons,)
    yield f"{prefix}.down.weight", (channels, ffn.n_neurons)
    if ffn.bias:
        yield f"{prefix}.down.bias", (channels,)
