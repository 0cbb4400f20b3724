"""Down-projections of experts, each refitted on the tokens that run it.

The outputs of a token's experts add up, so what one expert leaves undone is left to the next: the
experts of a layer are refitted one after the other, each towards what is still wanted of the
tokens that run it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from slimformer.config import RoutedFfnConfig
from slimformer.engine import Engine
from slimformer.prune.evidence import EvidenceSums, Products, check_evidence
from slimformer.prune.expert_rows import ExpertRows
from slimformer.prune.outputs import Output
from slimformer.prune.refit import Evidence
from slimformer.prune.stream import TAPS, Hidden, chunks, grown, inverse_lengths

Array = npt.NDArray[np.float64]

Fit = tuple[Array, Sequence[Array]]
"""A change of an expert's weight as the stream sees it, [channels, neurons]; and for each part of
the text the change that was found without it."""

Solve = Callable[[int, list[list[Evidence]]], list[Fit]]
"""From an expert and its evidence, by wish and part, to what is made of each wish."""


@dataclasses.dataclass(frozen=True)
class ExpertEvidence:
    """What the experts of a layer read, and what more is wanted of them, in terms of the stream.

    wishes: each [tokens, channels]. scale: [tokens, 1]; see ``EvidenceSums``.
    """

    rows: ExpertRows
    wishes: tuple[Hidden, ...]
    scale: Hidden

    @staticmethod
    def gather(
        dense: Engine | None,
        pruned: Engine,
        ffn: RoutedFfnConfig,
        output: Output,
        stream: Hidden,
        read: Hidden,
        wanted: Hidden,
    ) -> ExpertEvidence:
        """Run a sub-block as it was and as it is on a stream.

        Two things are wanted: what it would add as it was, and what is missing even then; or only
        the latter, if it has lost nothing.

        Parameters
        ----------
        dense, pruned
            Engines that hold the sub-block; ``dense`` is ``None`` if it is as it was.
        ffn, output
            Shape and projection of the pruned one.
        stream, read
            What the sub-block adds to and what it reads, [windows, tokens, channels].
        wanted
            The stream that should come out.
        """
        rows = ExpertRows(ffn)
        lost = None if dense is None else np.empty_like(stream)
        drift = np.empty_like(stream)
        scale = np.empty((*stream.shape[:2], 1), np.float32)
        tap = TAPS["ffn"]
        before = None if dense is None else chunks(dense, read)
        for some, after, captured in chunks(pruned, read, capture=[tap]):
            divisors = output.divisors(stream[some], captured[tap])
            end = grown(stream[some], read[some], after)
            if before is not None and lost is not None:
                whole = grown(stream[some], read[some], next(before)[1])
                lost[some] = (whole - end) * divisors
                end = whole
            drift[some] = (wanted[some] - end) * divisors
            scale[some] = inverse_lengths(wanted[some]) / divisors
            rows.add(captured[tap])
        wishes = [wish for wish in (lost, drift) if wish is not None]
        channels = stream.shape[-1]
        return ExpertEvidence(
            rows, tuple(wish.reshape(-1, channels) for wish in wishes), scale.reshape(-1, 1)
        )

    def fit(
        self,
        name: str,
        n_experts: int,
        parts: Sequence[slice],
        solve: Solve,
        *,
        products: Products,
        threads: int,
    ) -> list[list[Fit]]:
        """Fit one expert after the other; by expert and by wish.

        Parameters
        ----------
        name
            Of the sub-block, for messages.
        parts
            Parts of the text, as stretches of tokens.
        """
        channels, wishes = self.wishes[0].shape[-1], self.wishes
        found = []
        for expert in range(n_experts):
            tokens, inputs = self.rows.of(expert)
            ends = [np.searchsorted(tokens, (part.start, part.stop)) for part in parts]
            stretches = [slice(int(start), int(stop)) for start, stop in ends]
            evidence = []
            for own in stretches:
                sums = EvidenceSums(inputs.shape[-1], channels, len(wishes), products, threads)
                if own.start < own.stop:
                    asked = tuple(wish[tokens[own]] for wish in wishes)
                    sums.add(inputs[own], asked, self.scale[tokens[own]])
                evidence.append(sums.evidence())
                check_evidence(f"{name}.experts.{expert}", *evidence[-1])
            fits = solve(expert, [list(parts) for parts in zip(*evidence, strict=True)])
            for wish, (_, without) in zip(wishes, fits, strict=True):
                for own, change in zip(stretches, without, strict=True):
                    wish[tokens[own]] -= inputs[own] @ change.T.astype(np.float32)
            found.append(fits)
        return found

    def output(
        self, parts: Sequence[slice], weights: Sequence[Sequence[npt.NDArray[np.float32]]]
    ) -> Hidden:
        """What experts with these weights, by expert and part, add in all, [tokens, channels]."""
        added = np.zeros_like(self.wishes[0])
        for expert, of_parts in enumerate(weights):
            tokens, inputs = self.rows.of(expert)
            for part, weight in zip(parts, of_parts, strict=True):
                start, stop = np.searchsorted(tokens, (part.start, part.stop))
                added[tokens[start:stop]] += inputs[start:stop] @ weight.T
        return added
