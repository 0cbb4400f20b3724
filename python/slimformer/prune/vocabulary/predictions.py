"""What share of text each token is, as the model itself expects it.

A few megabytes of text hold a tenth of the words that other text will use. But at each place in it
the model says how likely every token is, so the mean over the places knows those, too, that stand
nowhere in it: names, other spellings, marks of other publishers, and all of it in the text's own
language.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from slimformer.checkpoint.checkpoint import Checkpoint
from slimformer.progress import Progress
from slimformer.prune.calibrate import make_windows
from slimformer.prune.stream import behind_layers, head_engine

WINDOW = 64
"""Tokens of a window. Of what a model has read little, it expects much: half as many tokens in
windows of 64 say more of other text than windows of 512 do."""

TOKENS = 49152
"""Tokens of text that are read at most."""

TEMPERATURE = 1.5
"""Other text is of other subjects: flattened, predictions name more of what those need. Of Gemma
3's 262 thousand tokens, a third chosen so misses 0.5 to 2.1 % of five English texts, at
temperature 1 0.7 to 2.1 % (mean 0.98 and 1.15 %)."""

LOGITS = 1 << 25
"""Logits that are made at a time: 128 MB."""


def predicted_shares(
    checkpoint: Checkpoint, texts: Sequence[str], *, seed: int, threads: int, progress: Progress
) -> npt.NDArray[np.float64]:
    """The mean of a model's predictions over places in some texts, [vocab_size].

    Memory holds one layer at a time, and the head.

    Raises
    ------
    DataError
        The model has no tokenizer, or the texts have fewer than two tokens.
    """
    n_layers = len(checkpoint.config.layers)

    def told(done: int) -> None:
        progress("predict tokens", done, n_layers + 1)

    windows = make_windows(checkpoint, texts, tokens=TOKENS, seed=seed, window=WINDOW)
    stream = behind_layers(checkpoint, windows, threads=threads, told=told)
    told(n_layers)
    head = head_engine(checkpoint, threads=threads)
    places = stream.reshape(-1, stream.shape[-1])
    step = max(1, LOGITS // checkpoint.config.vocab_size)
    total = np.zeros(checkpoint.config.vocab_size)
    for first in range(0, len(places), step):
        for row in head.logits(places[first : first + step]):
            likely = np.exp((row - row.max()) / np.float32(TEMPERATURE))
            total += likely / likely.sum()
    told(n_layers + 1)
    return total / len(places)
