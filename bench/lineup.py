"""Who takes part: this engine and its peers, all on the same weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from limits import Measured
from reference.peers import GgufType, write_gguf
from slimformer.checkpoint import Checkpoint
from slimformer.engine import Engine, Kv, Sparse, Weights
from slimformer.evaluate import Runner
from slimformer.evaluate.peers import open_peer


@dataclasses.dataclass(frozen=True)
class Opponents:
    """What peers run against one of our weight types, and what keys and values we keep then."""

    kv: Kv
    llama_cpp: GgufType
    openvino: GgufType
    precision: str  # what OpenVINO computes in


OPPONENTS: Mapping[str, Opponents] = {
    "f32": Opponents("f32", "f32", "f16", "f32"),
    "bf16": Opponents("bf16", "bf16", "f16", "bf16"),
    "int8": Opponents("bf16", "q8_0", "q8_0", "bf16"),
    "int4": Opponents("bf16", "q4_0", "q4_0", "bf16"),
}


@dataclasses.dataclass(frozen=True)
class Team:
    """One weight type: our engine and the peers that it is compared with."""

    weights: Weights
    ours: Measured
    peers: tuple[Runner, ...]


def own_engine(
    checkpoint: Checkpoint,
    weights: Weights,
    *,
    threads: int,
    tier: str | None = None,
    sparse: Sparse = "auto",
) -> Engine:
    """Our engine with the keys and values that go with a weight type."""
    kv = OPPONENTS[weights].kv
    return Engine(checkpoint, weights=weights, sparse=sparse, threads=threads, kv=kv, tier=tier)


def line_up(
    checkpoint: Checkpoint,
    tokenizer: Path,
    folder: Path,
    weights: Iterable[Weights],
    peers: Sequence[str],
    *,
    threads: int,
    context: int,
) -> Iterator[Team]:
    """A team for each weight type; GGUF files that `folder` does not hold yet are written to it."""
    for kind in weights:
        opponents = OPPONENTS[kind]
        opened = []
        for peer in peers:
            dtype = opponents.llama_cpp if peer == "llama.cpp" else opponents.openvino
            path = folder / f"{dtype}.gguf"
            if not path.exists():
                write_gguf(checkpoint, tokenizer, path, dtype)
            opened.append(
                open_peer(
                    peer,
                    path,
                    threads=threads,
                    context=context,
                    precision=opponents.precision,
                    label=kind,
                )
            )
        engine = own_engine(checkpoint, kind, threads=threads)
        yield Team(kind, Measured(f"slimformer {kind}", engine), tuple(opened))
