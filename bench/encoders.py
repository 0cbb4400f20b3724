"""Sentences as vectors: this engine beside those that people encode with."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sections import tell
from slimformer.checkpoint import load, pull
from slimformer.engine import Engine, Weights

MODEL = "all-minilm-l6-v2"
BATCH = 32
BATCHES = 5

PEERS = {"onnxruntime": "onnxruntime", "sentence-transformers": "sentence_transformers"}
"""The module of each peer."""

SAME = 0.999
"""Cosine of our vectors and a peer's below which a comparison of speeds means nothing."""

Vectors = npt.NDArray[np.float32]


@dataclasses.dataclass(frozen=True)
class Encoder:
    """One that takes part; ``encode`` gives vectors of length 1, [texts, channels]."""

    name: str
    encode: Callable[[list[str]], Vectors]


def installed_encoders() -> tuple[str, ...]:
    """The peers that can take part, by name."""
    return tuple(name for name, module in PEERS.items() if find_spec(module) is not None)


def encode_section(
    weights: Sequence[Weights], peers: Sequence[str], folder: Path, *, rounds: int, threads: int
) -> Iterator[str]:
    """Batches of sentences as they come in a text, and of sentences of like length."""
    path = pull(MODEL)
    model = load(path)
    ours = [
        Encoder(f"slimformer {kind}", Engine(model, weights=kind, threads=threads).encode)
        for kind in weights
    ]
    opened = [open_encoder(peer, path, folder, threads) for peer in peers]
    yield f"## Encoding of {BATCH} sentences at once"
    yield ""
    yield f"`{MODEL}`, text to vectors of length 1; peers in float32. Sentences of the prose that"
    yield "comes with the package, in its order, or sorted so that a batch has little padding."
    sentences = some_sentences()
    for order, texts in (("in order", sentences), ("sorted", sorted(sentences, key=len))):
        batches = [texts[start : start + BATCH] for start in range(0, len(texts), BATCH)]
        _check_same([*ours, *opened], batches[0])
        seconds = in_turns([*ours, *opened], batches, rounds)
        rates = [len(texts) / statistics.median(column) for column in seconds]
        yield ""
        heads = [f"{kind} is ×" for kind in weights]
        yield f"| {order} | sentences/s | {' | '.join(heads)} |"
        yield f"|---|---:|{'---:|' * len(heads)}"
        for index, encoder in enumerate([*ours, *opened]):
            ratios = [
                statistics.median(b / a for a, b in zip(own, seconds[index], strict=True))
                for own in seconds[: len(ours)]
            ]
            cells = ["" if index < len(ours) else f"{ratio:.2f}" for ratio in ratios]
            yield f"| {encoder.name} | {rates[index]:.0f} | {' | '.join(cells)} |"


def some_sentences() -> list[str]:
    """Sentences of the shipped prose, enough for all batches."""
    prose = (resources.files("slimformer") / "data" / "prose.txt").read_text(encoding="utf-8")
    pieces = (piece.strip() + "." for piece in prose.replace("\n", " ").split("."))
    return [piece for piece in pieces if len(piece) > 20][: BATCH * BATCHES]


def _check_same(encoders: Sequence[Encoder], texts: list[str]) -> None:
    """Everyone must say the same, to rounding; this is the warm-up, too."""
    expected, *others = (encoder.encode(texts) for encoder in encoders)
    for encoder, found in zip(encoders[1:], others, strict=True):
        cosine = float((found * expected).sum(axis=1).min())
        if cosine < SAME:
            raise SystemExit(f"{encoder.name}: expected the same vectors, found {cosine:.4f}")


def in_turns(
    encoders: Sequence[Encoder], batches: Sequence[list[str]], rounds: int
) -> list[list[float]]:
    """Seconds for all batches, each encoder's in a list, everyone in turn."""
    seconds: list[list[float]] = [[] for _ in encoders]
    for done in range(rounds):
        for encoder, column in zip(encoders, seconds, strict=True):
            start = time.perf_counter()
            for batch in batches:
                encoder.encode(batch)
            column.append(time.perf_counter() - start)
        tell("encode", done + 1, rounds)
    return seconds


def open_encoder(peer: str, model: Path, folder: Path, threads: int) -> Encoder:
    """A peer on the encoder in the folder ``model``; files that it needs go to ``folder``."""
    open_one = {"onnxruntime": _onnxruntime, "sentence-transformers": _sentence_transformers}[peer]
    return Encoder(peer, open_one(model, folder, threads))


def _onnxruntime(model: Path, folder: Path, threads: int) -> Callable[[list[str]], Vectors]:
    """All its optimisations, on what PyTorch exports with attention written out: it fuses that."""
    import onnxruntime
    from tokenizers import Tokenizer

    path = folder / "encoder.onnx"
    if not path.exists():
        _export_onnx(model, path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    tokenizer: Any = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.enable_truncation(load(model).config.max_positions)
    tokenizer.enable_padding()

    def encode(texts: list[str]) -> Vectors:
        found = tokenizer.encode_batch(texts)
        ids = np.array([each.ids for each in found], np.int64)
        seen = np.array([each.attention_mask for each in found], np.int64)
        feeds = {"input_ids": ids, "attention_mask": seen, "token_type_ids": np.zeros_like(ids)}
        (states,) = session.run(["states"], feeds)
        weights = seen[..., None].astype(np.float32)
        means = (states * weights).sum(axis=1) / weights.sum(axis=1)
        return np.asarray(means / np.linalg.norm(means, axis=1, keepdims=True), np.float32)

    return encode


def _export_onnx(model: Path, path: Path) -> None:
    import torch
    from transformers import AutoModel

    body: Any = AutoModel.from_pretrained(model, dtype=torch.float32, attn_implementation="eager")

    class States(torch.nn.Module):
        """Of the many arguments and results of the model, those that are used."""

        def __init__(self) -> None:
            super().__init__()
            self.body = body.eval()

        def forward(self, ids: Any, seen: Any, types: Any) -> Any:
            return self.body(
                input_ids=ids, attention_mask=seen, token_type_ids=types
            ).last_hidden_state

    names = ["input_ids", "attention_mask", "token_type_ids"]
    ids = torch.ones(2, 7, dtype=torch.int64)
    torch.onnx.export(
        States(),
        (ids, ids, torch.zeros_like(ids)),
        path,
        input_names=names,
        output_names=["states"],
        dynamic_axes={name: {0: "texts", 1: "tokens"} for name in (*names, "states")},
        dynamo=False,
    )


def _sentence_transformers(
    model: Path, folder: Path, threads: int
) -> Callable[[list[str]], Vectors]:
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(threads)
    peer = SentenceTransformer(str(model), device="cpu")  # the mean of a plain encoder's states

    def encode(texts: list[str]) -> Vectors:
        vectors: Vectors = peer.encode(
            texts, batch_size=BATCH, normalize_embeddings=True, show_progress_bar=False
        )
        return vectors

    return encode
