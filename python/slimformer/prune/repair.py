"""Repair of a whole pruned model, layer by layer, on the already repaired model before it.

The calibration text flows through the dense and through the pruned model side by side. Each
output- and down-projection of the pruned model is refitted so that the pruned residual stream
meets the dense one, whatever drift the layers before have left: its inputs are those of the
pruned stream, its target is the dense stream after the sub-block minus the pruned stream before
it. Calibrating on the dense model's inputs instead is far worse (Li et al. 2025,
Týr-the-Pruner, arXiv 2503.09657).
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from slimformer.checkpoint.checkpoint import DTYPES, Checkpoint, Tensor
from slimformer.config import FfnConfig, LinkConfig, RoutedFfnConfig
from slimformer.engine import Engine, Moments
from slimformer.progress import Progress, silent
from slimformer.prune.evidence import EvidenceSums, check_evidence, check_finite, gather
from slimformer.prune.expert_repair import compensate_experts, refit_experts
from slimformer.prune.journal import Journal
from slimformer.prune.links import fit_link, link_inputs
from slimformer.prune.neuron_repair import NeuronRepair, NeuronText
from slimformer.prune.outputs import PROJECTIONS, SUB_BLOCKS, Output, SubBlock
from slimformer.prune.recipe import KeptExperts, NewLink, Recipe, keep_all
from slimformer.prune.refit import Evidence, choose, for_kept, mean_compensation
from slimformer.prune.stream import (
    TAPS,
    Hidden,
    Windows,
    advance,
    chunks,
    embed,
    grown,
    inverse_lengths,
    layer_engine,
    precision,
    sub_block_engine,
)
from slimformer.prune.surgery import Entries, kept_columns, with_pairs
from slimformer.prune.windows import in_parts

Array = npt.NDArray[np.float64]

Repair = Literal["refit", "mean", "none"]
REPAIRS: tuple[Repair, ...] = get_args(Repair)

PARTS = 4
"""Parts of the text, each of which is held out once."""

PART_BYTES = 1 << 28
"""With Gram matrices larger than this there are two parts: each part has one in memory."""

FIRST_DAMPINGS = (0.1, 3.0)
"""A projection is refitted for two wishes: the output of what went, and the drift. Where the
search for their dampings begins, near where it ended for most sub-blocks on 18 thousand tokens."""


def repair(
    dense: Checkpoint,
    pruned: Checkpoint,
    recipe: Recipe,
    windows: Windows,
    *,
    method: Literal["refit", "mean"],
    passes: int = 0,
    journal: Journal | None = None,
    threads: int = 0,
    progress: Progress = silent,
) -> Checkpoint:
    """New weights for every output- and down-projection of ``pruned``.

    ``refit`` solves for the dense model's residual stream, see above. ``mean`` folds the mean
    output of the removed units into the kept columns and looks at no target.

    Parameters
    ----------
    dense, pruned
        The model before and after surgery with ``recipe``.
    windows
        Calibration tokens, [windows, tokens].
    passes
        With ``refit``: how often what is left of an FFN learns from the text before it is refitted;
        see ``neuron_repair.py``.
    journal
        Where finished layers are written down; those that are there already are not done again.

    Raises
    ------
    DataError
        Activations on the text that are not finite.
    """
    run = _Repair(dense, pruned, recipe, in_parts(windows, _parts(dense)), passes, threads)
    n_layers = len(dense.config.layers)
    for source in range(run.resume(journal), n_layers):
        progress("repair layers", source, n_layers)
        run.layer(source, method)
        if journal is not None:
            run.record(journal, source)
    progress("repair layers", n_layers, n_layers)
    return dataclasses.replace(pruned, tensors={**pruned.tensors, **run.weights})


class _Repair:
    """The two streams on their way through the layers, and the weights found so far."""

    def __init__(
        self,
        dense: Checkpoint,
        pruned: Checkpoint,
        recipe: Recipe,
        parts: list[Windows],
        passes: int,
        threads: int,
    ) -> None:
        self.dense = dense
        self.pruned = pruned
        self.recipe = recipe
        self.passes = passes
        self.threads = threads
        self._products = precision(dense)
        windows = np.concatenate(parts)
        ends = np.cumsum([len(part) for part in parts]).tolist()
        self.parts = [slice(start, end) for start, end in itertools.pairwise([0, *ends])]
        self.target = embed(dense, windows)  # the dense stream
        self.stream = self.target.copy()  # the pruned stream
        self.read = self.stream
        self.weights: dict[str, Tensor] = {}
        self.cut = False  # whether anything has been removed so far
        self._position = {kept.source: index for index, kept in enumerate(recipe.layers)}
        self._found: dict[str, npt.NDArray[Any]] = {}  # in the layer at hand

    def resume(self, journal: Journal | None) -> int:
        """Go on where a journal ends; the first layer that is left to do."""
        found = None if journal is None else journal.resume()
        if found is None:
            return 0
        last, weights, standing = found
        self.weights.update(weights)
        self.target = standing["target"].read().copy()
        self.stream = standing["stream"].read().copy()
        self.cut = bool(standing["cut"].read()[0])
        return last + 1

    def record(self, journal: Journal, source: int) -> None:
        """Write down what was found in a layer; from then on it is read from there."""
        standing = {
            "target": self.target,
            "stream": self.stream,
            "cut": np.array([self.cut], np.float32),
        }
        self.weights.update(journal.record(source, self._found, standing))
        self._found = {}

    def layer(self, source: int, method: Literal["refit", "mean"]) -> None:
        """Take both streams through the dense layer ``source`` and what is left of it."""
        index = self._position.get(source)
        following = source + 1
        self.cut |= self._changed(source) or (
            self._skipped(following, "attention") and self._changed(following)
        )
        if not self.cut:
            for rows, after, _ in chunks(self._layer_engine(source), self.target):
                self.target[rows] = self.stream[rows] = after
            return
        between = advance(self._layer_engine(source), self.target)
        if index is None:
            return
        layer = self.pruned.config.layers[index]
        goal = self._goal(source)
        # What sub-blocks read: the stream as it grows, or as it entered a parallel layer.
        self.read = self.stream.copy() if layer.parallel else self.stream
        for sub_block in SUB_BLOCKS:
            part = getattr(layer, sub_block)
            wanted = between if sub_block == "attention" and layer.ffn is not None else goal
            if isinstance(getattr(self.recipe.layers[index], sub_block), NewLink):
                self._fit_link(source, index, sub_block, wanted)
            elif isinstance(part, LinkConfig):
                self._pass(self.pruned, index, sub_block)
            elif isinstance(part, RoutedFfnConfig):
                self._experts(source, index, wanted, method)
            elif part is not None and method == "refit":
                if not self._learned(source, index, sub_block, wanted):
                    self._refit(source, index, sub_block, wanted)
            elif part is not None:
                self._compensate(source, index, sub_block)

    def _goal(self, source: int) -> Hidden:
        """The dense stream that the pruned model's next sub-block after this layer should read.

        What goes is made up for in the projection before it as well, as far as this knows of it:
        the idea of Shopkhoev et al. 2025, ReplaceMe, arXiv 2505.02819.
        """
        goal = self.target
        ahead = source + 1
        while self._skipped(ahead, "attention"):
            capture = [] if self._skipped(ahead, "ffn") else ["ffn_input"]
            flow = chunks(self._layer_engine(ahead), goal, capture=capture)
            goal = np.concatenate(
                [captured["ffn_input"] if capture else after for _, after, captured in flow]
            )
            if capture:
                break
            ahead += 1
        return goal

    def _changed(self, source: int) -> bool:
        """Whether anything of a dense layer goes."""
        index = self._position.get(source)
        whole = keep_all(source, self.dense.config.layers[source])
        return index is None or self.recipe.layers[index] != whole

    def _skipped(self, source: int, sub_block: SubBlock) -> bool:
        """Whether a dense layer is there, but not this sub-block of it in the pruned model."""
        if source >= len(self.dense.config.layers):
            return False
        index = self._position.get(source)
        return index is None or getattr(self.pruned.config.layers[index], sub_block) is None

    def _fit_link(self, source: int, index: int, sub_block: SubBlock, wanted: Hidden) -> None:
        """Fit a link, from what its sub-block would read, for the two wishes of ``_refit``."""
        prefix = f"layers.{index}.{sub_block}."
        shapes = self.pruned.config.layers[index]
        whole = sub_block == "attention" and shapes.ffn is None
        engine = (
            self._layer_engine(source) if whole else self._engine(self.dense, source, sub_block)
        )
        link: LinkConfig = getattr(shapes, sub_block)
        inputs = link_inputs(self.pruned, index, sub_block, self.read, reads=link.reads)
        added = np.concatenate([after for _, after, _ in chunks(engine, self.read)]) - self.read
        parts = [
            gather(
                inputs[rows],
                added[rows],
                wanted[rows] - self.stream[rows] - added[rows],
                scale=inverse_lengths(wanted[rows]),
                products=self._products,
                threads=self.threads,
            )
            for rows in self.parts
        ]
        check_evidence(f"{prefix}link", *itertools.chain(*parts))
        tensors, without = fit_link(list(zip(*parts, strict=True)), link)
        for name, values in tensors.items():
            self._store(prefix + name, values)
        for rows, unseen in zip(self.parts, without, strict=True):
            self.stream[rows] += inputs[rows] @ unseen.T.astype(np.float32)

    def _pass(self, checkpoint: Checkpoint, index: int, sub_block: SubBlock) -> None:
        """Move the pruned stream on through a sub-block as it is."""
        engine = self._engine(checkpoint, index, sub_block)
        for rows, after, _ in chunks(engine, self.read):
            self.stream[rows] = grown(self.stream[rows], self.read[rows], after)

    def _refit(self, source: int, index: int, sub_block: SubBlock, wanted: Hidden) -> None:
        """Solve for the projection whose output takes the pruned stream to ``wanted``.

        It has to make up for two things, each with a damping of its own: what the removed
        columns added and the kept ones have lost with rotary pairs, which these know much of, and
        the drift of the layers before, which they know little of.
        """
        name = f"layers.{index}.{PROJECTIONS[sub_block]}"
        layer = self.dense.config.layers[source]
        kept = kept_columns(layer, self.recipe.layers[index])[sub_block]
        output = Output(self.dense, source, sub_block)
        weight = output.stream_weight
        channels, width = weight.shape
        inputs = np.empty((*self.stream.shape[:2], width), np.float32)
        engine = self._engine(self.dense, source, sub_block)
        pairs = self.recipe.layers[index].rotary_pairs if sub_block == "attention" else None
        narrower = None
        if pairs is not None:
            narrower = self._engine(with_pairs(self.dense, source, pairs), source, sub_block)
        tap = TAPS[sub_block]

        def evidence_of(part: slice) -> tuple[Evidence, Evidence]:
            """The evidence of one part; its sums take a gigabyte in wide layers, and go with it."""
            wishes = 1 if narrower is None else 2
            sums = EvidenceSums(width, channels, wishes, self._products, self.threads)
            for rows, after, captured in chunks(engine, self.read[part], capture=[tap]):
                there = slice(part.start + rows.start, part.start + rows.stop)
                target = wanted[there]
                divisors = output.divisors(self.stream[there], captured[tap])
                ends = grown(self.stream[there], self.read[there], after)
                wanted_of = [(target - ends) * divisors]  # the drift
                inputs[there] = captured[tap]
                if narrower is not None:
                    ((_, _, left),) = chunks(narrower, self.read[there], capture=[tap])
                    inputs[there] = left[tap]
                    still = left[tap][..., kept] @ weight[:, kept].T
                    wanted_of.append(captured[tap] @ weight.T - still)
                sums.add(inputs[there], tuple(wanted_of), inverse_lengths(target) / divisors)
            found = sums.evidence()
            check_evidence(name, *found)
            if narrower is None:
                return for_kept(found[0], weight, kept)
            drift, lost = (one.of_columns(kept) for one in found)
            return lost, drift

        # By wish; what is known of one goes when it is met.
        wishes = [list(parts) for parts in zip(*map(evidence_of, self.parts), strict=True)]
        old = output.weight[:, kept].astype(np.float64)
        new, without = old, [old.astype(np.float32)] * len(self.parts)
        for first in FIRST_DAMPINGS:
            found = choose(wishes.pop(0), np.zeros_like(old), first=first)
            new = new + output.change(found.weight)
            without = [
                (w + output.change(unseen)).astype(np.float32)
                for w, unseen in zip(without, found.without, strict=True)
            ]
        self._finish(name, new, without, inputs, kept, output)

    def _learned(self, source: int, index: int, sub_block: SubBlock, wanted: Hidden) -> bool:
        """Let what is left of an FFN learn, and move the pruned stream on; or do nothing.

        With a norm behind it an FFN learns nothing: what that does to errors it would not see.
        """
        layer = self.dense.config.layers[source]
        ffn = layer.ffn
        if not self.passes or sub_block != "ffn" or not isinstance(ffn, FfnConfig):
            return False
        kept = kept_columns(layer, self.recipe.layers[index])["ffn"]
        if len(kept) == ffn.n_neurons or ffn.norm_place != "before":
            return False
        down = self.dense.read_f32(f"layers.{source}.ffn.down.weight")
        streams = self.stream, self.read, wanted
        neurons = NeuronRepair(
            NeuronText(self._engine(self.dense, source, "ffn"), down, *streams, self.parts),
            self.pruned,
            index,
            kept,
            passes=self.passes,
            first=FIRST_DAMPINGS,
            products=self._products,
            threads=self.threads,
        )
        after = neurons.run(self._store)
        if after is None:
            return False
        self.stream[:] = after
        return True

    def _compensate(self, source: int, index: int, sub_block: SubBlock) -> None:
        """Fold the mean output of what went from a sub-block into what stays."""
        name = f"layers.{index}.{PROJECTIONS[sub_block]}"
        layer = self.dense.config.layers[source]
        kept = kept_columns(layer, self.recipe.layers[index])[sub_block]
        without_pairs = with_pairs(self.dense, source, self.recipe.layers[index].rotary_pairs)
        inputs = self._inputs(without_pairs, source, sub_block)
        moments = Moments(inputs.shape[-1], gram=True, threads=self.threads)
        moments.update(inputs.reshape(-1, inputs.shape[-1]))
        check_finite(name, moments.sum)
        output = Output(self.dense, source, sub_block)
        new = mean_compensation(
            output.weight.astype(np.float64),
            kept,
            moments.sum / moments.count,
            moments.gram / moments.count,
        )
        without = (new,) * len(self.parts)
        self._finish(name, new, without, inputs, kept, output)

    def _experts(
        self, source: int, index: int, wanted: Hidden, method: Literal["refit", "mean"]
    ) -> None:
        """Repair the experts of a layer, and move the pruned stream on."""
        dense = self._engine(self.dense, source, "ffn")
        if method == "refit":
            self.stream[:] = refit_experts(
                dense,
                self._engine(self.pruned, index, "ffn"),
                self.pruned,
                index,
                (self.stream, self.read, wanted),
                self.parts,
                FIRST_DAMPINGS,
                self._store,
                products=self._products,
                threads=self.threads,
            )
            return
        kept = self.recipe.layers[index].ffn
        assert isinstance(kept, KeptExperts)
        found = compensate_experts(dense, self.dense, source, kept, self.read, threads=self.threads)
        for place, weight in found.items():
            self._store(f"layers.{index}.ffn.experts.{place}.down.weight", weight)
        repaired = dataclasses.replace(self.pruned, tensors={**self.pruned.tensors, **self.weights})
        self._pass(repaired, index, "ffn")

    def _store(self, name: str, weight: Array) -> npt.DTypeLike:
        """Keep a new weight as the checkpoint will store it; the type."""
        stored = DTYPES[self.pruned.tensors[name].dtype]
        self._found[name] = weight.astype(stored)
        self.weights[name] = Tensor.of(self._found[name])
        return stored

    def _finish(
        self,
        name: str,
        weight: Array,
        without: Sequence[Array | Hidden],
        inputs: Hidden,
        kept: Entries,
        output: Output,
    ) -> None:
        """Keep the weight as the checkpoint will store it and move the pruned stream on.

        Each part of the text moves with the weight that was found ``without`` it. ``inputs`` are
        those of the dense projection, of which the ``kept`` columns are read: to read the others
        times 0 takes less time than to pick these out.
        """
        stored = self._store(f"{name}.weight", weight)
        read = np.zeros_like(output.weight)
        for rows, unseen in zip(self.parts, without, strict=True):
            read[:, kept] = unseen.astype(stored)
            self.stream[rows] = output.after(self.stream[rows], inputs[rows], read)

    def _inputs(self, checkpoint: Checkpoint, index: int, sub_block: SubBlock) -> Hidden:
        """What a projection reads on the pruned stream, [windows, tokens, columns]."""
        engine = self._engine(checkpoint, index, sub_block)
        tap = TAPS[sub_block]
        parts = [captured[tap] for _, _, captured in chunks(engine, self.read, capture=[tap])]
        return np.concatenate(parts)

    def _layer_engine(self, source: int) -> Engine:
        return layer_engine(self.dense, source, threads=self.threads)

    def _engine(self, checkpoint: Checkpoint, index: int, sub_block: SubBlock) -> Engine:
        return sub_block_engine(checkpoint, index, sub_block, threads=self.threads)


def _parts(dense: Checkpoint) -> int:
    """How many parts fit into memory."""
    widths = [
        dense.tensors[name].shape[1]
        for name in dense.tensors
        if name.endswith(tuple(f".{projection}.weight" for projection in PROJECTIONS.values()))
    ]
    return 2 if 8 * max(widths, default=0) ** 2 > PART_BYTES else PARTS
