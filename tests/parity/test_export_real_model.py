"""The real model, pruned and exported: other engines give it the same perplexity and answers."""

from __future__ import annotations

import dataclasses
import os
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from reference.peers import open_in_llama_cpp, open_in_transformers
from slimformer.checkpoint import Checkpoint, Tensor
from slimformer.config import LinkConfig
from slimformer.engine import Engine
from slimformer.export import export
from slimformer.export.verify import verify
from slimformer.prune import cut_to_text, explicit, load_calibration, prune

TOLERANCE = 5e-3  # of perplexity
QUESTION = "What is the capital of France?"
ANSWER_TOKENS = 16


@pytest.fixture(scope="module")
def uniform(real_model: Checkpoint) -> Checkpoint:
    """Two layers, a sixteenth of the neurons and of each KV head's readers one of three gone."""
    layers = range(len(real_model.config.layers))
    recipe = explicit(
        real_model,
        drop_layers=(20, 24),
        heads=dict.fromkeys(layers, (0, 1, 3, 4, 6, 7)),
        neurons=dict.fromkeys(layers, tuple(range(1440))),
    )
    return prune(real_model, recipe, repair="none", dtype="f32")


@pytest.fixture(scope="module")
def ragged(real_model: Checkpoint) -> Checkpoint:
    """Uneven heads and neurons, sub-blocks that are gone, and links in place of some."""
    recipe = explicit(
        real_model,
        drop_layers=(20,),
        drop_attention=(22, 25),
        drop_ffn=(23,),
        heads={4: (0, 1, 3, 5, 8), 10: (0, 1, 2, 3, 5, 7), 12: (0, 1, 2, 4)},
        neurons={5: tuple(range(1300)), 9: tuple(range(1499))},
    )
    slim = prune(real_model, recipe, repair="none", dtype="f32")
    slim = with_link(slim, 15, "attention", LinkConfig("low_rank", rank=16))
    slim = with_link(slim, 18, "ffn", LinkConfig("full"))
    return with_link(slim, 24, "ffn", LinkConfig("diagonal"))


@pytest.fixture(scope="module")
def few_tokens(real_model: Checkpoint) -> Checkpoint:
    """A third of the vocabulary."""
    text = load_calibration([Path(str(resources.files("slimformer") / "data" / "prose.txt"))])
    recipe = cut_to_text(real_model, text, size=16384)
    return prune(real_model, recipe, repair="none", dtype="f32")


def with_link(
    model: Checkpoint, layer: int, kind: Literal["attention", "ffn"], link: LinkConfig
) -> Checkpoint:
    """The model with a small random linear map in place of a sub-block."""
    layers = list(model.config.layers)
    if kind == "attention":
        layers[layer] = dataclasses.replace(layers[layer], attention=link)
    else:
        layers[layer] = dataclasses.replace(layers[layer], ffn=link)
    config = dataclasses.replace(model.config, layers=tuple(layers))
    rng = np.random.default_rng(layer)
    tensors = {
        name: model.tensors.get(name)
        or Tensor.of((0.01 * rng.standard_normal(shape)).astype(np.float32))
        for name, shape in config.tensor_shapes().items()
    }
    return dataclasses.replace(model, config=config, tensors=tensors)


def our_answer(model: Checkpoint) -> str:
    engine = Engine(model, weights="f32")
    return engine.generate(QUESTION, chat=True, max_tokens=ANSWER_TOKENS)


def llama_cpp_answer(path: Path) -> str:
    peer = open_in_llama_cpp(path, context=128, threads=len(os.sched_getaffinity(0)))
    messages = [{"role": "user", "content": QUESTION}]
    found = peer.create_chat_completion(messages, max_tokens=ANSWER_TOKENS, temperature=0.0)
    return str(found["choices"][0]["message"]["content"])


def transformers_answer(folder: Path, **options: Any) -> str:
    from transformers import AutoTokenizer

    peer = open_in_transformers(folder, **options)
    tokenizer = AutoTokenizer.from_pretrained(folder, **options)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": QUESTION}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    ids = peer.generate(**prompt, max_new_tokens=ANSWER_TOKENS, do_sample=False)
    return str(tokenizer.decode(ids[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))


@pytest.mark.parametrize("shape", ["uniform", "ragged", "few_tokens"])
def test_llama_cpp(shape: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(shape)
    done = export(model, tmp_path / "model.gguf", to="gguf", dtype="f32")
    found = verify(model, done)
    assert found.difference < TOLERANCE
    assert found.same_tokens
    assert llama_cpp_answer(done.path) == our_answer(model)


@pytest.mark.parametrize("shape", ["uniform", "ragged", "few_tokens"])
def test_transformers(shape: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(shape)
    done = export(model, tmp_path / "model", to="huggingface", dtype="f32")
    found = verify(model, done)
    assert found.difference < TOLERANCE
    assert found.same_tokens
    options = {"trust_remote_code": True} if shape == "ragged" else {}
    assert transformers_answer(done.path, **options) == our_answer(model)


def test_transformers_when_padded(ragged: Checkpoint, tmp_path: Path) -> None:
    done = export(ragged, tmp_path / "model", to="huggingface", dtype="f32", pad=True)
    assert verify(ragged, done).difference < TOLERANCE
    assert done.added_parameters > 0


@pytest.mark.parametrize("dtype", ["bf16", "f16", "q8_0", "q4_0"])
def test_other_types_in_llama_cpp(
    dtype: Literal["bf16", "f16", "q8_0", "q4_0"], ragged: Checkpoint, tmp_path: Path
) -> None:
    done = export(ragged, tmp_path / "model.gguf", to="gguf", dtype=dtype)
    verify(ragged, done).check()
