"""Streaming: calibration text flows through the model layer by layer.

The residual stream of all calibration tokens is kept, [windows, tokens, channels], and each
layer runs on it in an engine that holds nothing else. Memory is bounded by one layer and the
stream, however large the model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from slimformer.checkpoint.checkpoint import Checkpoint, Tensor
from slimformer.config import LayerConfig
from slimformer.engine import Engine, Moments
from slimformer.prune.outputs import SubBlock, normed

Hidden = npt.NDArray[np.float32]
Windows = npt.NDArray[np.int32]

TAPS: dict[str, str] = {"attention": "attention_heads", "ffn": "ffn_neurons"}
"""Where what the projection of each sub-block reads can be captured."""

CHUNK_TOKENS = 4096
"""Tokens that run at once: enough to fill every thread, little enough to keep captures small."""


def embed(checkpoint: Checkpoint, windows: Windows) -> Hidden:
    """Residual stream that enters the first layer, [windows, tokens, channels]."""
    config = checkpoint.config
    table = checkpoint.read("embedding.weight")
    hidden: Hidden = np.asarray(table[windows], dtype=np.float32)
    if config.embedding_scale != 1:
        hidden *= np.float32(config.embedding_scale)
    if config.learned_positions:
        first = config.position_offset
        hidden += checkpoint.read_f32("positions.weight")[first : first + windows.shape[1]]
    if config.token_types:
        hidden += checkpoint.read_f32("token_types.weight")[0]
    if config.embedding_norm:
        hidden = normed(checkpoint, "embedding_norm", hidden)
    return hidden


def inverse_lengths(stream: Hidden) -> Hidden:
    """1 over the length of each token's residual stream [..., tokens, channels], 0 where it is 0.

    Layers normalise the stream before they read it, so errors are to be seen relative to it.
    The last axis is kept, with length 1.
    """
    lengths: Hidden = np.sqrt(np.einsum("...tc,...tc->...t", stream, stream))[..., None]
    result = np.zeros_like(lengths)
    np.divide(1.0, lengths, out=result, where=lengths > 0)
    return result


def precision(checkpoint: Checkpoint) -> Literal["f32", "bf16"]:
    """What to calculate with: no more than the pruned model's weights will be stored in.

    Where the CPU multiplies bfloat16, text flows twice as fast for it.
    """
    stored = {tensor.dtype for tensor in checkpoint.tensors.values()}
    return "bf16" if checkpoint.quantised or "bf16" in stored else "f32"


def layer_engine(
    checkpoint: Checkpoint,
    index: int,
    *,
    attention: bool = True,
    ffn: bool = True,
    threads: int = 0,
) -> Engine:
    """An engine that holds one layer, or one of its sub-blocks, in ``precision(checkpoint)``.

    The embedding is a placeholder of one row: only ``run_layers`` may be called.
    """
    layer = checkpoint.config.layers[index]
    part = LayerConfig(
        layer.attention if attention else None, layer.ffn if ffn else None, layer.parallel
    )
    config = dataclasses.replace(
        checkpoint.config,
        vocab_size=1,
        tied_head=True,
        layers=(part,),
        learned_positions=False,
        position_offset=0,
        token_types=0,
        embedding_norm=False,
    )
    prefix = f"layers.{index}."
    tensors = {}
    for name, shape in config.tensor_shapes().items():
        if name.startswith("layers.0."):
            tensors[name] = checkpoint.tensors[prefix + name.removeprefix("layers.0.")]
        else:
            tensors[name] = Tensor.of(np.zeros(shape, np.float32))
    single = Checkpoint(f"{checkpoint.name}, layer {index}", config, tensors)
    return Engine(single, weights=precision(checkpoint), threads=threads)


def sub_block_engine(
    checkpoint: Checkpoint, index: int, sub_block: SubBlock, *, threads: int = 0
) -> Engine:
    """An engine that holds one sub-block of a layer; see ``layer_engine``."""
    return layer_engine(
        checkpoint,
        index,
        attention=sub_block == "attention",
        ffn=sub_block == "ffn",
        threads=threads,
    )


def head_engine(checkpoint: Checkpoint, *, threads: int = 0) -> Engine:
    """An engine that holds what follows the layers: only ``logits`` may be called."""
    config = dataclasses.replace(checkpoint.config, layers=())
    tensors = {name: checkpoint.tensors[name] for name in config.tensor_shapes()}
    single = Checkpoint(f"{checkpoint.name}, head", config, tensors)
    return Engine(single, weights=precision(checkpoint), threads=threads)


def chunks(
    engine: Engine,
    hidden: Hidden,
    *,
    moments: Mapping[str, Moments] | None = None,
    capture: Sequence[str] = (),
) -> Iterator[tuple[slice, Hidden, dict[str, Hidden]]]:
    """Run the engine's one layer over the stream, some windows at a time.

    Parameters
    ----------
    hidden
        [windows, tokens, channels].
    moments
        Accumulators by tap site, updated with all that flows past.
    capture
        Tap sites whose values are wanted.

    Yields
    ------
    The windows that ran, their residual stream after the layer [windows, tokens, channels],
    and what was captured, by site, each [windows, tokens, width].
    """
    n_windows, n_tokens, _ = hidden.shape
    step = max(1, CHUNK_TOKENS // n_tokens)
    for start in range(0, n_windows, step):
        rows = slice(start, min(start + step, n_windows))
        part = hidden[rows]
        output, captured = engine.run_layers(
            part.reshape(-1, part.shape[-1]),
            [n_tokens] * len(part),
            first=0,
            last=1,
            moments={(0, site): held for site, held in (moments or {}).items()},
            capture=[(0, site) for site in capture],
        )
        shape = (len(part), n_tokens, -1)
        yield (
            rows,
            output.reshape(shape),
            {site: captured[0, site].reshape(shape) for site in capture},
        )


def advance(engine: Engine, stream: Hidden) -> Hidden:
    """Take a stream [windows, tokens, channels] through the engine's layer, in place.

    Returns
    -------
    The stream between the layer's sub-blocks, likewise.
    """
    between = np.empty_like(stream)
    for rows, after, captured in chunks(engine, stream, capture=["ffn_input"]):
        between[rows] = captured["ffn_input"]
        stream[rows] = after
    return between


def pass_through(engine: Engine, stream: Hidden) -> None:
    """Take a stream [..., windows, tokens, channels] through the engine's layer, in place."""
    windows = stream.reshape(-1, *stream.shape[-2:])
    for rows, after, _ in chunks(engine, windows):
        windows[rows] = after


def behind_layers(
    checkpoint: Checkpoint,
    windows: Windows,
    *,
    threads: int = 0,
    told: Callable[[int], None] = lambda done: None,
) -> Hidden:
    """The residual stream behind the last layer, [windows, tokens, channels].

    Memory holds one layer at a time. ``told`` hears before each how many are done.
    """
    stream = embed(checkpoint, windows)
    for index in range(len(checkpoint.config.layers)):
        told(index)
        pass_through(layer_engine(checkpoint, index, threads=threads), stream)
    return stream


def grown(stream: Hidden, read: Hidden, after: Hidden) -> Hidden:
    """The stream behind a sub-block, given what that made of what it reads.

    It reads the stream itself, or in a parallel layer what that was before the layer.
    """
    return after if np.may_share_memory(stream, read) else stream + (after - read)
