"""Loss: optimal brain surgeon's errors, priced in what the model's predictions suffer from them.

OBS compares the units of one sub-block. What an error there does to the predictions differs from
layer to layer by orders of magnitude, so it is measured: some units of each sub-block go, the
others make up for them, and the divergence from the dense model's predictions is the price of the
error that is left. Every score is then in nats a token, whatever the unit.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np
import numpy.typing as npt

from slimformer.checkpoint.checkpoint import Checkpoint
from slimformer.config import AttentionConfig, FfnConfig
from slimformer.engine import Engine, Mask
from slimformer.progress import Progress, silent
from slimformer.prune.divergence import Predictions
from slimformer.prune.importance import obs
from slimformer.prune.importance.scores import LayerScores, Scores
from slimformer.prune.importance.statistics import Inputs, LayerStatistics, layer_statistics
from slimformer.prune.outputs import Output
from slimformer.prune.refit import Evidence, least_squares
from slimformer.prune.stream import Hidden, Windows, precision

Array = npt.NDArray[np.float64]

TRIAL_TOKENS = 1024
"""Tokens that trials run on, held out from the statistics."""

TRIAL_WINDOW = 256
"""Tokens in a window of a trial: shorter windows hold more different text."""

PREDICTION_STRIDE = 2
"""The head costs a quarter of a pass; it runs on one token of a trial in so many."""

TRIAL_SHARE = 0.25
"""Share of the units that go in a trial, about what goes when all is done."""

SCARCITY = 1.0
"""Power of the share that is left of a sub-block by which its units get dearer as others go.

Trials leave all other layers intact, which make up for much; once they are pruned too, they do
not. Without this the middle layers, cheap one by one, would lose most of their neurons."""


def score_model(
    checkpoint: Checkpoint,
    windows: Windows,
    *,
    threads: int = 0,
    progress: Progress = silent,
) -> Scores:
    """Rate units and sub-blocks of all layers in nats a token."""
    fit, trial = _split(windows)
    trials = _Trials(checkpoint, trial, threads)
    flow = layer_statistics(checkpoint, fit, inputs="grams", threads=threads, progress=progress)
    return tuple(
        trials.price(index, obs.score(checkpoint, index, statistics), statistics)
        for index, statistics in enumerate(flow)
    )


def _split(windows: Windows) -> tuple[Windows, Windows]:
    """Windows for the statistics and for the trials; the latter are short."""
    count, tokens = windows.shape
    if count == 1:
        return windows[:, : -(-tokens // 2)], windows[:, tokens // 2 :]
    trials = min(-(-TRIAL_TOKENS // tokens), count // 2)
    length = min(tokens, TRIAL_WINDOW)
    pieces = windows[count - trials :, : tokens // length * length].reshape(-1, length)
    return windows[: count - trials], pieces


@dataclasses.dataclass(frozen=True)
class _Removal:
    """The cheapest units of a sub-block: the stream without them, and their score in all."""

    after: Hidden  # [tokens, channels]
    score: float


class _Trials:
    """The dense model's streams on the trial text, layer by layer."""

    def __init__(self, checkpoint: Checkpoint, windows: Windows, threads: int) -> None:
        self._checkpoint = checkpoint
        self._engine = Engine(checkpoint, weights=precision(checkpoint), threads=threads)
        self._n_layers = len(checkpoint.config.layers)
        self._lengths = [windows.shape[1]] * len(windows)
        embedded = self._engine.embed(windows.reshape(-1), self._lengths)
        self._stream = embedded  # enters the layer that is next
        self._predictions = Predictions(self._logits(self._run(embedded, 0, self._n_layers)))

    def price(self, index: int, rated: LayerScores, statistics: LayerStatistics) -> LayerScores:
        """Scores of the next layer, from errors to nats."""
        before = self._stream
        sites = ["ffn_input", "attention_heads", "ffn_neurons"]
        after, captured = self._engine.run_layers(
            before,
            self._lengths,
            first=index,
            last=index + 1,
            capture=[(index, site) for site in self._sites(index, sites)],
        )
        self._stream = after
        between = captured[index, "ffn_input"]
        attention = self._without_cheapest(
            before, index, "attention", captured.get((index, "attention_heads")), rated, statistics
        )
        ffn = self._without_cheapest(
            between, index, "ffn", captured.get((index, "ffn_neurons")), rated, statistics
        )
        if self._checkpoint.config.layers[index].parallel:
            changed = after + (attention.after - between)
        else:
            mask = Mask(skip_attention=(index,))
            changed = self._run(attention.after, index, index + 1, mask=mask)
        nats = self._divergences(index + 1, [changed, ffn.after])
        attention_rate, ffn_rate = (
            loss / removal.score if removal.score > 0 else 0.0
            for loss, removal in zip(nats, (attention, ffn), strict=True)
        )
        return _in_nats(rated, attention_rate, ffn_rate)

    def _sites(self, index: int, sites: list[str]) -> list[str]:
        layer = self._checkpoint.config.layers[index]
        present = {
            "attention_heads": isinstance(layer.attention, AttentionConfig),
            "ffn_neurons": isinstance(layer.ffn, FfnConfig),
        }
        return [site for site in sites if present.get(site, True)]

    def _without_cheapest(
        self,
        stream: Hidden,
        index: int,
        sub_block: Literal["attention", "ffn"],
        inputs: Hidden | None,
        rated: LayerScores,
        statistics: LayerStatistics,
    ) -> _Removal:
        """A sub-block without its cheapest units, adding to a stream.

        A link or a single unit goes as a whole.
        """
        units = rated.heads if sub_block == "attention" else rated.neurons
        moments = statistics.heads if sub_block == "attention" else statistics.neurons
        whole = rated.attention if sub_block == "attention" else rated.ffn
        if inputs is None or units is None or len(units) == 1:
            return _Removal(stream, whole or 0.0)
        assert moments is not None
        order = np.argsort(units, kind="stable")
        gone = max(1, int(TRIAL_SHARE * len(units)))
        columns = np.arange(inputs.shape[-1]).reshape(len(units), -1)
        kept = np.sort(columns[order[gone:]].reshape(-1))
        output = Output(self._checkpoint, index, sub_block)
        weight = _made_up(output.weight, kept, moments)
        after = output.after(stream, inputs[:, kept], weight)
        return _Removal(after, float(units[order[:gone]].sum()))

    def _divergences(self, first: int, streams: list[Hidden]) -> list[float]:
        """Divergence of the predictions if these streams enter layer ``first``."""
        ends = self._run(np.concatenate(streams), first, self._n_layers, copies=len(streams))
        return [
            self._predictions.divergence(self._logits(end)) for end in np.split(ends, len(streams))
        ]

    def _run(
        self, stream: Hidden, first: int, last: int, *, mask: Mask | None = None, copies: int = 1
    ) -> Hidden:
        lengths = self._lengths * copies
        return self._engine.run_layers(stream, lengths, first=first, last=last, mask=mask)[0]

    def _logits(self, stream: Hidden) -> Hidden:
        return self._engine.logits(np.ascontiguousarray(stream[::PREDICTION_STRIDE]))


def _made_up(weight: Hidden, kept: npt.NDArray[np.intp], inputs: Inputs) -> Hidden:
    """The kept columns of a projection, making up for the others."""
    assert inputs.gram is not None
    wanted = inputs.gram[kept] @ weight.T.astype(np.float64)
    evidence = Evidence(inputs.gram[np.ix_(kept, kept)], wanted, 0.0, 1)
    start = weight[:, kept].astype(np.float64)
    return least_squares(evidence, start, obs.DAMPING).astype(np.float32)


def _in_nats(rated: LayerScores, attention_rate: float, ffn_rate: float) -> LayerScores:
    attention = None if rated.attention is None else rated.attention * attention_rate
    ffn = None if rated.ffn is None else rated.ffn * ffn_rate
    return LayerScores(
        None if attention is None and ffn is None else (attention or 0.0) + (ffn or 0.0),
        attention,
        ffn,
        None if rated.kv_groups is None else _scarce(rated.kv_groups) * attention_rate,
        None if rated.heads is None else _scarce(rated.heads) * attention_rate,
        None if rated.neurons is None else _scarce(rated.neurons) * ffn_rate,
    )


def _scarce(scores: Array) -> Array:
    """Scores that grow as the cheaper units of the same sub-block go."""
    share_left = np.empty(len(scores))
    share_left[np.argsort(scores, kind="stable")] = 1 - np.arange(len(scores)) / len(scores)
    return np.asarray(scores / share_left**SCARCITY)
