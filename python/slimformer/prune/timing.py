"""Timing of models and their parts on the engine, for budgets of time.

Decoding streams all weights from memory, so a part is timed inside a stack of layers that no
cache holds, as the difference that it makes to the whole.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import statistics
from pathlib import Path
from typing import Literal, get_args

from slimformer.checkpoint.checkpoint import Checkpoint
from slimformer.checkpoint.fields import read_json
from slimformer.checkpoint.pulling import cache_folder
from slimformer.config import AttentionConfig, FfnConfig, LayerConfig, RoutedFfnConfig
from slimformer.engine import Engine, Weights
from slimformer.errors import ConfigError, SlimformerError
from slimformer.progress import Progress, silent
from slimformer.prune.allocate import PANEL
from slimformer.prune.kept import KeptExperts, KeptOfFfn
from slimformer.prune.latency import Curve, LatencyTable, width_of
from slimformer.prune.recipe import KeptFfn, Recipe, keep_all, keep_heads
from slimformer.prune.surgery import apply
from slimformer.stopwatch import SHORT_PROMPT, time_sequence

Phase = Literal["prefill", "decode"]
PHASES: tuple[Phase, ...] = get_args(Phase)

SCHEMA = 2
"""Counts kernels whose times have changed, so that no table outlives them."""

STACK_BYTES = 256 << 20
"""Bytes of bfloat16 weights in a stack: more than caches hold."""

TOKENS = {"prefill": 256, "decode": 24}
ROUNDS = 7
"""Times that two models take turns."""

PACKINGS = 5
"""Where a model comes to lie in memory changes its speed by a percent or two: what is promised is
the median of so many packings of it."""

CUTS = (0.75, 0.5, 0.25)
"""Shares of the neurons and of the KV groups that are timed beside all and none of them."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """How a model is going to run."""

    phase: Phase = "decode"
    weights: Weights = "bf16"
    threads: int = 0

    def __post_init__(self) -> None:
        if self.phase not in PHASES:
            raise ConfigError(f"phase: expected {' or '.join(PHASES)}, found {self.phase!r}")

    def engine(self, checkpoint: Checkpoint) -> Engine:
        """The model, packed to run so."""
        return Engine(checkpoint, weights=self.weights, threads=self.threads)

    def seconds(self, engine: Engine) -> float:
        """Seconds a token."""
        tokens = min(TOKENS[self.phase], engine.config.max_positions - SHORT_PROMPT)
        if self.phase == "prefill":
            return time_sequence(engine, tokens, 0).prefill / tokens
        return time_sequence(engine, SHORT_PROMPT, tokens).decode / tokens

    def speedup(self, dense: Checkpoint, slim: Checkpoint) -> float:
        """How many times as fast one model is as the other, measured."""
        return 1 / compare(dense, slim, self)[1]


def compare(first: Checkpoint, second: Checkpoint, setting: Setting) -> tuple[float, float]:
    """Nanoseconds a token of one model, and how many times that another takes."""
    found = [
        take_turns(setting.engine(first), setting.engine(second), setting) for _ in range(PACKINGS)
    ]
    return statistics.median(time for time, _ in found), statistics.median(
        ratio for _, ratio in found
    )


def take_turns(first: Engine, second: Engine, setting: Setting) -> tuple[float, float]:
    """The same of packed models.

    They take turns, so that a machine that drifts drifts for both; medians of the rounds.
    """
    pairs = [(setting.seconds(first), setting.seconds(second)) for _ in range(ROUNDS + 1)][1:]
    ratio = statistics.median(other / one for one, other in pairs)
    return 1e9 * statistics.median(one for one, _ in pairs), ratio


def latency_table(
    checkpoint: Checkpoint, setting: Setting, *, progress: Progress = silent
) -> LatencyTable:
    """The table for a model's widest layers, timed once for a machine and a setting.

    Raises
    ------
    ConfigError
        The model has no attention or no FFN with units, so that nothing can be timed.
    """
    stack = _Stack.of(checkpoint)
    file = cache_folder() / "latency" / f"{_key(stack, setting)}.json"
    with contextlib.suppress(SlimformerError, OSError):  # missing or damaged: timed again
        return LatencyTable.from_dict(read_json(file))
    table = _measure(stack, setting, progress)
    _store(file, table)
    return table


def _measure(stack: _Stack, setting: Setting, progress: Progress) -> LatencyTable:
    groups, neurons = stack.attention.n_kv_heads, width_of(stack.ffn)
    fewer_groups = sorted({max(1, int(groups * cut)) for cut in CUTS} - {groups})
    fewer_neurons = sorted({-(-int(neurons * cut) // PANEL) * PANEL for cut in CUTS})
    fewer_neurons = [count for count in fewer_neurons if 0 < count < neurons]
    variants = [(0, neurons), (groups, 0)]
    variants += [(count, neurons) for count in fewer_groups]
    variants += [(groups, count) for count in fewer_neurons]
    whole = setting.engine(stack.model(groups, neurons))
    times, ratios = [], {(groups, neurons): 1.0}
    for number, variant in enumerate(variants):
        progress("time layers", number, len(variants))
        other = setting.engine(stack.model(*variant))
        time, ratios[variant] = take_turns(whole, other, setting)
        times.append(time)
    progress("time layers", len(variants), len(variants))
    unit = statistics.median(times) / stack.copies

    def attention(count: int) -> float:
        return max(0.0, ratios[count, neurons] - ratios[0, neurons]) * unit

    def ffn(count: int) -> float:
        return max(0.0, ratios[groups, count] - ratios[groups, 0]) * unit

    kept_groups, kept_neurons = [*fewer_groups, groups], [*fewer_neurons, neurons]
    if len(kept_groups) == 1:
        kept_groups = [0, groups]
    if len(kept_neurons) == 1:
        kept_neurons = [0, neurons]
    fixed = max(0.0, statistics.median(times) - stack.copies * (attention(groups) + ffn(neurons)))
    return LatencyTable(
        fixed,
        Curve(tuple(map(stack.rows, kept_groups)), tuple(map(attention, kept_groups))),
        Curve(tuple(kept_neurons), tuple(map(ffn, kept_neurons))),
    )


@dataclasses.dataclass(frozen=True)
class _Stack:
    """Copies of one layer, made of the widest attention and the widest FFN of a model."""

    checkpoint: Checkpoint
    attention_of: int
    ffn_of: int
    attention: AttentionConfig
    ffn: FfnConfig | RoutedFfnConfig
    copies: int

    @staticmethod
    def of(checkpoint: Checkpoint) -> _Stack:
        config = checkpoint.config
        attentions: dict[int, AttentionConfig] = {}
        ffns: dict[int, FfnConfig | RoutedFfnConfig] = {}
        for index, layer in enumerate(config.layers):
            if isinstance(layer.attention, AttentionConfig):
                attentions[index] = layer.attention
            if isinstance(layer.ffn, FfnConfig | RoutedFfnConfig):
                ffns[index] = layer.ffn
        if not attentions or not ffns:
            raise ConfigError(
                f"{checkpoint.name}: a budget of time needs attention heads and neurons, found "
                f"{'no heads' if not attentions else 'no neurons'}"
            )
        if len(set(map(type, ffns.values()))) > 1:
            raise ConfigError(
                f"{checkpoint.name}: a budget of time needs experts in all of its FFNs or in none"
            )
        attention_of = max(attentions, key=lambda index: attentions[index].n_heads)
        ffn_of = max(ffns, key=lambda index: width_of(ffns[index]))
        attention, ffn = attentions[attention_of], ffns[ffn_of]
        one = dataclasses.replace(config, layers=(LayerConfig(attention, ffn),))
        layer_bytes = 2 * one.non_embedding_parameters()
        copies = min(len(config.layers), max(2, -(-STACK_BYTES // layer_bytes)))
        return _Stack(checkpoint, attention_of, ffn_of, attention, ffn, copies)

    def rows(self, groups: int) -> int:
        """Rows of q, k and v and columns of o with so many KV groups; see LatencyTable."""
        heads = sum(kv < groups for kv in self.attention.q_to_kv)
        return (heads + groups) * (self.attention.head_dim + self.attention.value_dim)

    def model(self, groups: int, neurons: int) -> Checkpoint:
        """The stack with the first KV groups and neurons of each layer; 0 is no sub-block.

        Of experts each keeps so many neurons.
        """
        layers = []
        for index in sorted({self.attention_of, self.ffn_of}):
            kept = keep_all(index, self.checkpoint.config.layers[index])
            if index == self.attention_of:
                reads = self.attention.q_to_kv
                heads = tuple(head for head, kv in enumerate(reads) if kv < groups)
                kept = dataclasses.replace(kept, attention=keep_heads(self.attention, heads))
            if index == self.ffn_of:
                kept = dataclasses.replace(kept, ffn=_first_neurons(kept.ffn, neurons))
            layers.append(kept)
        recipe = Recipe(self.checkpoint.name, self.checkpoint.fingerprint, tuple(layers))
        cut = apply(self.checkpoint, recipe)
        attention_at, ffn_at = 0, len(layers) - 1
        if self.attention_of > self.ffn_of:
            attention_at, ffn_at = ffn_at, attention_at
        part = LayerConfig(cut.config.layers[attention_at].attention, cut.config.layers[ffn_at].ffn)
        config = dataclasses.replace(cut.config, layers=(part,) * self.copies)
        tensors = {}
        for name in config.tensor_shapes():
            source = name
            if name.startswith("layers."):
                _, _, sub_block, rest = name.split(".", 3)
                at = attention_at if sub_block == "attention" else ffn_at
                source = f"layers.{at}.{sub_block}.{rest}"
            tensors[name] = cut.tensors[source]
        return Checkpoint(f"{cut.name}, stacked", config, tensors)


def _first_neurons(ffn: KeptOfFfn | None, neurons: int) -> KeptOfFfn | None:
    """What is left with the first neurons alone, of each expert where there are any."""
    if not neurons:
        return None
    if isinstance(ffn, KeptExperts):
        return KeptExperts(ffn.experts, tuple(own[:neurons] for own in ffn.neurons))
    return KeptFfn(tuple(range(neurons)))


def _key(stack: _Stack, setting: Setting) -> str:
    """What times depend on, in short."""
    config = stack.checkpoint.config
    machine = {
        "schema": SCHEMA,
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "tier": os.environ.get("SLIMFORMER_ISA"),
        "setting": dataclasses.asdict(setting),
        "vocab": config.vocab_size,
        "channels": config.n_channels,
        "copies": stack.copies,
        "layer": dataclasses.asdict(LayerConfig(stack.attention, stack.ffn)),
    }
    return hashlib.sha256(json.dumps(machine, sort_keys=True).encode()).hexdigest()[:32]


def _cpu() -> str:
    """What the system calls the processor."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return "unknown"


def _store(file: Path, table: LatencyTable) -> None:
    """Keep a table for the next time, where that is possible."""
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_suffix(f".{os.getpid()}")
        unfinished.write_text(json.dumps(dataclasses.asdict(table)), encoding="utf-8")
        unfinished.replace(file)
