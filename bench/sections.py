"""The sections of RESULTS.md: every one measures something and gives lines of Markdown."""

from __future__ import annotations

import dataclasses
import statistics
import sys
import time
from collections.abc import Iterator, Sequence

import kernels
from limits import Limits
from lineup import Team, own_engine
from slimformer.checkpoint import Checkpoint
from slimformer.config import AttentionConfig, ModelConfig
from slimformer.engine import Engine, Weights
from slimformer.evaluate import SHORT_PROMPT, Contender, Runner, run_rounds
from slimformer.evaluate.speed import decode_bytes, prefill_flops
from slimformer.prune.sparsify import sparsify
from slimformer.stopwatch import some_tokens

BATCH = 8


@dataclasses.dataclass(frozen=True)
class Workload:
    """A prompt, and greedy tokens after it."""

    prompt: int
    generate: int

    def __str__(self) -> str:
        if self.generate == 0:
            return f"Prefill of {self.prompt} tokens"
        if self.prompt == SHORT_PROMPT:
            return f"Decode of {self.generate} tokens"
        return f"Prefill of {self.prompt} tokens, then decode of {self.generate}"


def compare(teams: Sequence[Team], workload: Workload, *, rounds: int) -> Iterator[str]:
    """Every team's members in turn; a ratio is how many times as fast as the peer we are."""
    runners: list[Runner] = [runner for team in teams for runner in (team.ours, *team.peers)]
    times = run_rounds(
        runners,
        prompt=workload.prompt,
        generate=workload.generate,
        repeat=rounds,
        progress=tell,
    )
    yield f"## {workload}"
    yield ""
    # Before the last `rounds` of a contender's runs were its warm-up, and other workloads.
    yield _limits_meanwhile([each for team in teams for each in team.ours.limits[-rounds:]])
    figures = []
    if workload.prompt > SHORT_PROMPT:
        figures.append(("prefill", workload.prompt))
    if workload.generate > 0:
        figures.append(("decode", workload.generate))
    for figure, tokens in figures:
        yield ""
        rate = "GFLOP/s" if figure == "prefill" else "GB/s"
        yield f"| {figure} | tokens/s | we are × | {rate} | of the limit |"
        yield "|---|---:|---:|---:|---:|"
        start = 0
        for team in teams:
            members = (team.ours, *team.peers)
            seconds = [
                [getattr(row[start + i], figure) for row in times] for i in range(len(members))
            ]
            start += len(members)
            limits = team.ours.limits[-rounds:]
            done, share = _used(team.ours.engine, figure, workload, seconds[0], limits)
            for member, theirs in zip(members, seconds, strict=True):
                cells = [member.name, f"{tokens / statistics.median(theirs):.1f}"]
                if member is team.ours:
                    cells += ["", f"{done:.1f}", f"{share:.0%}"]
                else:
                    ratios = [b / a for a, b in zip(seconds[0], theirs, strict=True)]
                    cells += [f"{statistics.median(ratios):.2f}", "", ""]
                yield f"| {' | '.join(cells)} |"


def _used(
    engine: Engine,
    figure: str,
    workload: Workload,
    seconds: Sequence[float],
    limits: Sequence[Limits],
) -> tuple[float, float]:
    """Operations or bytes per second, in thousands of millions, and their share of the limits.

    Medians both; the limits are those of each run.
    """
    if figure == "prefill":
        work = prefill_flops(engine.config, workload.prompt)
        most = [each.peak(engine.tier, engine.weights) for each in limits]
    else:
        context = workload.prompt + workload.generate / 2
        read = decode_bytes(engine) + kv_bytes(engine.config, engine.kv) * context
        work = read * workload.generate
        most = [each.gbytes for each in limits]
    done = [work / each / 1e9 for each in seconds]
    shares = [rate / limit for rate, limit in zip(done, most, strict=True)]
    return statistics.median(done), statistics.median(shares)


def _limits_meanwhile(limits: Sequence[Limits]) -> str:
    """What the machine could do at most, from its worst moment to its best."""
    gflops, gbytes = ([getattr(each, name) for each in limits] for name in ("gflops", "gbytes"))
    return (
        f"Limits meanwhile: {min(gflops):.0f} to {max(gflops):.0f} GFLOP/s in float32, "
        f"{min(gbytes):.0f} to {max(gbytes):.0f} GB/s; shares are of the limit measured right "
        "before and after each run."
    )


def products_section(
    tier: str, weights: Sequence[Weights], rows: int, *, rounds: int, threads: int
) -> Iterator[str]:
    """The matrix products of the model's layers by themselves, as shares of the limit."""
    layer = [
        shape for shape in kernels.shapes(kernels.SHAPES / "smollm2-135m.txt") if shape[2] != "head"
    ]
    yield f"## Matrix products of {rows} rows"
    yield ""
    yield "Shares of the operations that the machine can do at most; where the weights want it,"
    yield "activations are quantised in the time that is measured."
    yield ""
    yield f"| weights | {' | '.join(f'{a} to {b}: {name}' for a, b, name in layer)} |"
    yield f"|---|{'---:|' * len(layer)}"
    before = Limits.measure(threads)
    for kind in weights:
        cells = []
        for inputs, outputs, _ in layer:
            taken, _ = kernels.seconds(
                tier, kind, rows, inputs, outputs, threads=threads, rounds=rounds
            )
            after = Limits.measure(threads)
            limit = before.until(after).peak(tier, kind)
            before = after
            cells.append(f"{2 * rows * inputs * outputs / taken / 1e9 / limit:.0%}")
        yield f"| {kind} | {' | '.join(cells)} |"


def kv_bytes(config: ModelConfig, kv: str) -> int:
    """Bytes of keys and values that a token leaves behind, and each later one reads."""
    values = 0
    scales = 0
    for layer in config.layers:
        if isinstance(layer.attention, AttentionConfig):
            width = layer.attention.head_dim + layer.attention.value_dim
            values += layer.attention.n_kv_heads * width
            scales += 2 * layer.attention.n_kv_heads
    if kv == "int8":
        return values + 4 * scales
    return values * (4 if kv == "f32" else 2)


def threads_section(
    checkpoint: Checkpoint, weights: Sequence[Weights], prompt: int, *, rounds: int
) -> Iterator[str]:
    """One thread against two."""
    yield "## Two threads against one"
    yield ""
    yield f"| weights | prefill of {prompt}, 1 thread, tokens/s | 2 threads | × |"
    yield "|---|---:|---:|---:|"
    for kind in weights:
        runners = [
            Contender(f"{n} threads", own_engine(checkpoint, kind, threads=n)) for n in (1, 2)
        ]
        times = run_rounds(runners, prompt=prompt, generate=0, repeat=rounds, progress=tell)
        one, two = ([row[i].prefill for row in times] for i in (0, 1))
        ratio = statistics.median(a / b for a, b in zip(one, two, strict=True))
        rates = [prompt / statistics.median(seconds) for seconds in (one, two)]
        yield f"| {kind} | {rates[0]:.0f} | {rates[1]:.0f} | {ratio:.2f} |"


def batch_section(
    checkpoint: Checkpoint,
    weights: Sequence[Weights],
    generate: int,
    *,
    rounds: int,
    threads: int,
) -> Iterator[str]:
    """Several sequences decoded together against one."""
    yield f"## Decode of {BATCH} sequences at once"
    yield ""
    yield f"| weights | 1 sequence, tokens/s | {BATCH} sequences | × |"
    yield "|---|---:|---:|---:|"
    for kind in weights:
        engine = own_engine(checkpoint, kind, threads=threads)
        rates: list[tuple[float, float]] = []
        for _ in range(rounds + 1):
            single, several = (_decode_rate(engine, n, generate) for n in (1, BATCH))
            rates.append((single, several))
        del rates[0]  # the warm-up
        ratio = statistics.median(several / single for single, several in rates)
        single, several = (statistics.median(column) for column in zip(*rates, strict=True))
        yield f"| {kind} | {single:.1f} | {several:.1f} | {ratio:.2f} |"


def sparse_section(
    checkpoint: Checkpoint,
    weights: Sequence[Weights],
    workload: Workload,
    *,
    rounds: int,
    threads: int,
) -> Iterator[str]:
    """Half of all weights zero, by magnitude: kept without the zeros against kept with them."""
    shapes = checkpoint.config.tensor_shapes()
    matrices = [name for name, shape in shapes.items() if len(shape) == 2]
    halved = sparsify(checkpoint, 0.5, names=matrices)
    yield "## Half of the weights zero"
    yield ""
    yield "Times as fast, and the share of bytes, kept sparse against kept dense; embedding"
    yield "and head are halved too."
    yield ""
    yield f"| weights | prefill of {workload.prompt} | decode of {workload.generate} | bytes |"
    yield "|---|---:|---:|---:|"
    for kind in weights:
        dense, sparse = (
            own_engine(halved, kind, threads=threads, sparse=choice) for choice in ("never", "auto")
        )
        if sparse.weight_bytes == dense.weight_bytes:
            continue  # no sparse form, or none that pays
        runners = [Contender("dense", dense), Contender("sparse", sparse)]
        ratios = []
        for prompt, generate in ((workload.prompt, 0), (SHORT_PROMPT, workload.generate)):
            times = run_rounds(
                runners, prompt=prompt, generate=generate, repeat=rounds, progress=tell
            )
            seconds = [[t.decode if generate else t.prefill for t in row] for row in times]
            ratios.append(statistics.median(a / b for a, b in seconds))
        size = sparse.weight_bytes / dense.weight_bytes
        yield f"| {kind} | {ratios[0]:.2f} | {ratios[1]:.2f} | {size:.3f} |"


def _decode_rate(engine: Engine, sequences: int, generate: int) -> float:
    """Greedy tokens per second of all sequences together, after a short prompt each."""
    ids = some_tokens(engine.config.vocab_size, SHORT_PROMPT * sequences)
    sessions = [engine.session(capacity=SHORT_PROMPT + generate) for _ in range(sequences)]
    rows = engine.forward(
        sessions, [ids[SHORT_PROMPT * i : SHORT_PROMPT * (i + 1)] for i in range(sequences)]
    )
    start = time.perf_counter()
    for _ in range(generate):
        rows = engine.forward(sessions, [[int(row.argmax())] for row in rows])
    return sequences * generate / (time.perf_counter() - start)


def tell(what: str, done: int, total: int | None) -> None:
    """Progress on stderr."""
    print(f"\r{what} {done}/{total}", end="\n" if done == total else "", file=sys.stderr)
