"""``slimformer bench``: speed and memory of models, interleaved."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from slimformer.cli.console import print_json, print_tables, progress_display
from slimformer.cli.models import load_engine
from slimformer.cli.options import JsonOption, Kv, KvOption, ThreadsOption, Weights, WeightsOption

if TYPE_CHECKING:
    from slimformer.engine import Engine
    from slimformer.evaluate import Footprint, Speed


def bench(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help="One model or more.")],
    prompt: Annotated[int, typer.Option(min=1, help="Tokens of the prefill.")] = 512,
    generate: Annotated[int, typer.Option(min=1, help="Tokens of the decode.")] = 128,
    repeat: Annotated[int, typer.Option(min=1, help="Rounds, after one to warm up.")] = 5,
    weights: WeightsOption = Weights.BF16,
    kv: KvOption = Kv.F32,
    threads: ThreadsOption = 0,
    json: JsonOption = False,
) -> None:
    """Time prefill and decode of models in turn, and measure loading and memory.

    Ratios are medians of pairwise ratios to the first model. Loading and peak memory are taken
    in a process of their own.
    """
    from slimformer.engine import measure_roofline
    from slimformer.evaluate import Contender, measure_footprint, measure_speed

    engines = [load_engine(name, weights=weights, threads=threads, kv=kv) for name in models]
    contenders = [Contender(name, engine) for name, engine in zip(models, engines, strict=True)]
    with progress_display() as progress:
        speeds = measure_speed(
            contenders, prompt=prompt, generate=generate, repeat=repeat, progress=progress
        )
    roofline = measure_roofline(threads=engines[0].threads)
    footprints = [
        measure_footprint(name, weights=weights.value, threads=threads) for name in models
    ]
    rows = [
        _row(engine, speed, footprint, roofline)
        for engine, speed, footprint in zip(engines, speeds, footprints, strict=True)
    ]
    found = {
        "tier": engines[0].tier,
        "threads": engines[0].threads,
        "prompt": prompt,
        "generate": generate,
        "repeat": repeat,
        "roofline": roofline,
        "results": rows,
    }
    if json:
        print_json(found)
        return

    from slimformer.report.tables import bench_table

    typer.echo(f"{found['tier']} kernels, {found['threads']} threads, {weights.value} weights")
    print_tables(bench_table(rows))


def _row(
    engine: Engine, speed: Speed, footprint: Footprint, roofline: dict[str, float]
) -> dict[str, Any]:
    return {
        "model": speed.name,
        "weights": engine.weights,
        "prefill_tokens_per_s": speed.prefill.median,
        "prefill_range": [speed.prefill.minimum, speed.prefill.maximum],
        "prefill_ratio": speed.prefill_ratio,
        "prefill_gflops": speed.prefill_gflops,
        "prefill_share_of_peak": speed.prefill_gflops / roofline["gflops"],
        "decode_tokens_per_s": speed.decode.median,
        "decode_range": [speed.decode.minimum, speed.decode.maximum],
        "decode_ratio": speed.decode_ratio,
        "decode_gb_per_s": speed.decode_gb_per_s,
        "decode_share_of_peak": speed.decode_gb_per_s / roofline["gbytes_per_s"],
        "load_s": footprint.load_s,
        "first_token_s": footprint.first_token_s,
        "peak_memory_bytes": footprint.peak_memory_bytes,
        "weight_bytes": engine.weight_bytes,
    }
