"""``slimformer prune --mix auto``: the mix that is taken, and what it has gained."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from slimformer.checkpoint import Checkpoint
    from slimformer.prune.mixes import Mix


def choose(source: Checkpoint, max_bytes: int | None, speedup: float | None) -> Mix:
    """The mix that the package's table advises, one of both being given."""
    from slimformer.prune.mixes import choose_mix, measured_points

    points = measured_points()
    return choose_mix(source.config, points, max_bytes=max_bytes, speedup=speedup).mix


def gain(source: Checkpoint, slim: Checkpoint, mix: Mix, threads: int) -> float:
    """How many times as fast as the source in bf16 it decodes."""
    from slimformer.engine import Engine
    from slimformer.evaluate import SHORT_PROMPT, Contender, measure_speed

    pair = (
        Contender("source", Engine(source, weights="bf16", threads=threads)),
        Contender("mix", Engine(slim, weights=mix.weights, threads=threads)),
    )
    tokens = min(64, source.config.max_positions - SHORT_PROMPT)
    return measure_speed(pair, prompt=SHORT_PROMPT, generate=tokens)[1].decode_ratio
