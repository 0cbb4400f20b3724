"""Random small encoders, written by transformers and read here, and back again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from parity.test_gguf_families import peer_rows
from slimformer.checkpoint import Checkpoint, load, save
from slimformer.engine import Engine
from slimformer.errors import UnsupportedModelError
from slimformer.export import export
from slimformer.prune import explicit, surgery
from slimformer.prune.masks import to_mask

TOLERANCE = 1e-4  # of the largest state: float32 sums of at most a hundred terms, three layers deep
GELU_TABLE = 2e-3  # of the largest state: llama.cpp takes GELU from a table in float16
LENGTHS = (1, 7, 130, 60)  # one longer than a page of keys and values

SIZES = {
    "vocab_size": 97,
    "hidden_size": 24,
    "intermediate_size": 37,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 140,
}
CASES: dict[str, dict[str, Any]] = {
    "Bert": {**SIZES, "type_vocab_size": 2},
    "Roberta": {**SIZES, "type_vocab_size": 1, "hidden_act": "gelu_new"},
    "DistilBert": {
        "vocab_size": 97,
        "dim": 24,
        "hidden_dim": 37,
        "n_layers": 3,
        "n_heads": 4,
        "max_position_embeddings": 140,
    },
}

each = pytest.mark.parametrize("name", CASES)


def write_random(name: str, folder: Path, **settings: Any) -> Any:
    """Save a random model as transformers does."""
    import torch
    import transformers

    config = getattr(transformers, f"{name}Config")(**{**CASES[name], **settings})
    torch.manual_seed(1)
    model = getattr(transformers, f"{name}Model")(config)
    with torch.no_grad():
        for part, values in model.named_parameters():
            norm = "norm" in part.lower() and part.endswith("weight")
            values.normal_(1.0 if norm else 0.0, 0.1 if norm else values.shape[-1] ** -0.5)
    model.save_pretrained(folder)
    return model.eval()


def random_texts(checkpoint: Checkpoint) -> list[list[int]]:
    """Token ids; RoBERTa takes id 1 for padding, which these texts have none of."""
    rng = np.random.default_rng(5)
    return [rng.integers(2, checkpoint.config.vocab_size, n).tolist() for n in LENGTHS]


def states(checkpoint: Checkpoint, texts: list[list[int]], mask: Any = None) -> np.ndarray:
    """Hidden states of all tokens, the texts computed together."""
    engine = Engine(checkpoint, weights="f32", threads=1)
    lengths = [len(text) for text in texts]
    hidden = engine.embed([token for text in texts for token in text], lengths)
    last = len(checkpoint.config.layers)
    return engine.run_layers(hidden, lengths, first=0, last=last, mask=mask)[0]


def peer_states(model: Any, texts: list[list[int]]) -> np.ndarray:
    """The same by transformers, padded and masked."""
    import torch

    width = max(len(text) for text in texts)
    ids = torch.tensor([text + [1] * (width - len(text)) for text in texts])
    mask = torch.tensor([[1] * len(text) + [0] * (width - len(text)) for text in texts])
    with torch.no_grad():
        found = model(input_ids=ids, attention_mask=mask).last_hidden_state.numpy()
    return np.concatenate([row[: len(text)] for row, text in zip(found, texts, strict=True)])


def assert_same(ours: np.ndarray, theirs: np.ndarray) -> None:
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE * float(np.abs(theirs).max()))


@each
def test_what_transformers_wrote_runs_here_and_opens_there_again(name: str, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModel

    peer = write_random(name, tmp_path / "theirs")
    checkpoint = load(tmp_path / "theirs")
    texts = random_texts(checkpoint)
    expected = peer_states(peer, texts)
    assert_same(states(checkpoint, texts), expected)
    save(checkpoint, tmp_path / "ours")
    assert load(tmp_path / "ours").fingerprint == checkpoint.fingerprint
    again = AutoModel.from_pretrained(tmp_path / "ours", dtype=torch.float32).eval()
    assert type(again) is type(peer)
    assert_same(peer_states(again, texts), expected)


@each
def test_masked_equals_packed_after_pruning_every_structure(name: str, tmp_path: Path) -> None:
    write_random(name, tmp_path / "theirs")
    dense = load(tmp_path / "theirs")
    texts = random_texts(dense)
    for number, recipe in enumerate(
        [
            explicit(dense, heads={0: (0, 2, 3), 2: (1,)}, neurons={0: (1, 5, 7, 30)}),
            explicit(dense, drop_attention=(1,), drop_ffn=(2,)),
            explicit(dense, drop_layers=(1,), heads={0: (1, 3)}),
        ]
    ):
        slim = surgery.apply(dense, recipe)
        masked = states(dense, texts, to_mask(recipe, dense.config))
        assert_same(states(slim, texts), masked)
        save(slim, tmp_path / str(number))
        assert load(tmp_path / str(number)).fingerprint == slim.fingerprint


@each
def test_llama_cpp_agrees(name: str, tmp_path: Path) -> None:
    """As it is, and with fewer neurons and a layer less; GGUF calls them all BERTs."""
    activation = "activation" if name == "DistilBert" else "hidden_act"
    write_random(name, tmp_path / "dense", **{activation: "gelu"})
    dense = load(tmp_path / "dense")
    fewer = surgery.apply(dense, explicit(dense, drop_layers=(1,), neurons=20))
    for number, model in enumerate((dense, fewer)):
        path = tmp_path / f"{number}.gguf"
        done = export(model, path, to="gguf", dtype="f32")
        assert done.added_parameters == 0
        for text in random_texts(model):
            expected = states(model, [text])
            theirs = peer_rows(path, text, model.config.n_channels, states=True)
            scale = float(np.abs(expected).max())
            np.testing.assert_allclose(theirs, expected, rtol=0, atol=GELU_TABLE * scale)
            np.testing.assert_array_equal(states(load(path), [text]), expected)


def test_what_llama_cpp_lacks_is_refused(tmp_path: Path) -> None:
    write_random("Bert", tmp_path / "dense")
    dense = load(tmp_path / "dense")
    ragged = surgery.apply(dense, explicit(dense, heads={0: (0, 1)}))
    with pytest.raises(UnsupportedModelError, match="layers that are alike"):
        export(ragged, tmp_path / "ragged.gguf", to="gguf")
    assert not (tmp_path / "ragged.gguf").exists()
    done = export(ragged, tmp_path / "ragged.gguf", to="gguf", dtype="f32", pad=True)
    assert done.added_parameters > 0
    text = random_texts(dense)[1]
    theirs = peer_rows(done.path, text, dense.config.n_channels, states=True)
    expected = states(ragged, [text])
    scale = float(np.abs(expected).max())
    np.testing.assert_allclose(theirs, expected, rtol=0, atol=GELU_TABLE * scale)
