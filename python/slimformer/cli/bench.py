"""``slimformer bench``: speed and memory of models, interleaved."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from slimformer.cli.console import print_json, print_tables, progress_display
from slimformer.cli.models import find_gguf, load_engine
from slimformer.cli.options import JsonOption, KvOption, ThreadsOption, Weights, WeightsOption

if TYPE_CHECKING:
    from slimformer.engine import Engine
    from slimformer.evaluate import Footprint, Runner, Speed


def bench(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help="One model or more.")],
    prompt: Annotated[int, typer.Option(min=1, help="Tokens of the prefill.")] = 512,
    generate: Annotated[int, typer.Option(min=1, help="Tokens of the decode.")] = 128,
    repeat: Annotated[int, typer.Option(min=1, help="Rounds, after one to warm up.")] = 5,
    weights: WeightsOption = None,
    kv: KvOption = None,
    threads: ThreadsOption = 0,
    peers: Annotated[
        bool, typer.Option("--peers", help="Time the GGUF files in the installed peers, too.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Time prefill and decode of models in turn, and measure loading and memory.

    Ratios are medians of pairwise ratios to the first model. Loading and peak memory are taken
    in a process of their own. Peers are llama.cpp and OpenVINO GenAI, from the extra `peers`.
    """
    from slimformer.engine import measure_roofline
    from slimformer.evaluate import SHORT_PROMPT, Contender, measure_footprint, measure_speed

    engines = [load_engine(name, weights=weights, threads=threads, kv=kv) for name in models]
    contenders = [Contender(name, engine) for name, engine in zip(models, engines, strict=True)]
    others: list[Runner] = []
    if peers:
        context = max(prompt, SHORT_PROMPT + generate)
        precision = "f32" if weights is Weights.F32 else "bf16"
        others = _open_peers(models, threads=threads, context=context, precision=precision)
    with progress_display() as progress:
        speeds = measure_speed(
            [*contenders, *others],
            prompt=prompt,
            generate=generate,
            repeat=repeat,
            progress=progress,
        )
    roofline = measure_roofline(threads=engines[0].threads)
    footprints = [
        measure_footprint(name, weights=engine.weights, threads=threads)
        for name, engine in zip(models, engines, strict=True)
    ]
    rows = [
        _row(engine, speed, footprint, roofline)
        for engine, speed, footprint in zip(engines, speeds, footprints, strict=False)
    ]
    rows += [_speeds(speed) for speed in speeds[len(engines) :]]
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

    kinds = ", ".join(dict.fromkeys(engine.weights for engine in engines))
    typer.echo(f"{found['tier']} kernels, {found['threads']} threads, {kinds} weights")
    print_tables(bench_table(rows))


def _open_peers(models: list[str], *, threads: int, context: int, precision: str) -> list[Runner]:
    """Every GGUF file among the models in every peer."""
    from slimformer.errors import ConfigError
    from slimformer.evaluate.peers import installed_peers, open_peer

    files = {name: path for name in models if (path := find_gguf(name)) is not None}
    if not files:
        raise ConfigError("--peers: expected a GGUF file among the models; peers read no other")
    return [
        open_peer(peer, path, threads=threads, context=context, precision=precision, label=name)
        for name, path in files.items()
        for peer in installed_peers()
    ]


def _speeds(speed: Speed) -> dict[str, Any]:
    return {
        "model": speed.name,
        "prefill_tokens_per_s": speed.prefill.median,
        "prefill_range": [speed.prefill.minimum, speed.prefill.maximum],
        "prefill_ratio": speed.prefill_ratio,
        "decode_tokens_per_s": speed.decode.median,
        "decode_range": [speed.decode.minimum, speed.decode.maximum],
        "decode_ratio": speed.decode_ratio,
    }


def _row(
    engine: Engine, speed: Speed, footprint: Footprint, roofline: dict[str, float]
) -> dict[str, Any]:
    gflops, gbytes = speed.prefill_gflops, speed.decode_gb_per_s
    assert gflops is not None
    assert gbytes is not None
    return {
        **_speeds(speed),
        "weights": engine.weights,
        "prefill_gflops": gflops,
        "prefill_share_of_peak": gflops / roofline["gflops"],
        "decode_gb_per_s": gbytes,
        "decode_share_of_peak": gbytes / roofline["gbytes_per_s"],
        "load_s": footprint.load_s,
        "first_token_s": footprint.first_token_s,
        "peak_memory_bytes": footprint.peak_memory_bytes,
        "weight_bytes": engine.weight_bytes,
    }
