"""lm-evaluation-harness asks this engine and its own Hugging Face backend the same questions."""

from __future__ import annotations

import dataclasses
import json
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reference.models import random_checkpoint
from slimformer.checkpoint import load, save
from slimformer.config import AttentionConfig, FfnConfig, LayerConfig, ModelConfig, RopeConfig
from slimformer.errors import ConfigError, DataError

TOLERANCE = 1e-3  # of a log likelihood: sums of some tens of float32 log-probabilities
ITEMS = 15
LIMIT = 96  # positions, so that some items lose their beginning

Answers = dict[str, list[Any]]

pytest.importorskip("lm_eval")


def harness() -> Any:
    """The adapter, which cannot be imported without the harness."""
    from slimformer.evaluate import harness

    return harness


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random Llama with a tokenizer for any text."""
    attention = AttentionConfig(
        n_heads=4,
        n_kv_heads=2,
        head_dim=8,
        value_dim=8,
        q_to_kv=(0, 0, 1, 1),
        scale=8**-0.5,
        rope=RopeConfig(rotary_dim=8),
    )
    config = ModelConfig(
        family="llama",
        vocab_size=300,
        n_channels=32,
        norm_divisor=32,
        norm_eps=1e-5,
        tied_head=False,
        max_positions=LIMIT,
        layers=(LayerConfig(attention, FfnConfig(n_neurons=64)),) * 2,
    )
    checkpoint = random_checkpoint(config, 3, tokenizer=True)
    folder = tmp_path_factory.mktemp("harness") / "model"
    save(checkpoint, folder)
    return folder


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three tasks from files: multiple choice with examples, last words, and texts to write."""
    folder = tmp_path_factory.mktemp("tasks")
    text = (resources.files("slimformer") / "data" / "drama.txt").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if len(line.split()) > 4][: 4 * ITEMS]
    rows = []
    for index in range(ITEMS):
        context, *others = lines[4 * index : 4 * index + 4]
        choices = [" " + " ".join(line.split()[: 1 + i]) for i, line in enumerate(others)]
        rows.append({"context": context, "choices": choices, "gold": index % 3})
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = f"""
dataset_path: json
dataset_kwargs:
  data_files: {folder / "rows.jsonl"}
test_split: train
fewshot_split: train
doc_to_text: "{{{{context}}}}"
"""
    choice = """
output_type: multiple_choice
doc_to_choice: choices
doc_to_target: gold
metric_list: [{metric: acc}, {metric: acc_norm}]
"""
    last = """
output_type: loglikelihood
doc_to_target: "{{choices[0]}}"
metric_list: [{metric: perplexity}, {metric: acc}]
"""
    rolling = """
output_type: loglikelihood_rolling
doc_to_target: "{{context}}{{choices[1]}}{{choices[2]}}{{context}}"
metric_list: [{metric: word_perplexity}]
"""
    writing = """
output_type: generate_until
doc_to_target: "{{choices[0]}}"
generation_kwargs: {until: ["e t"], max_gen_toks: 12}
metric_list: [{metric: exact_match}]
"""
    kinds = {
        "choice": choice,
        "examples": f"num_fewshot: 2{choice}",
        "last": last,
        "rolling": rolling,
        "writing": writing,
    }
    for name, settings in kinds.items():
        (folder / f"{name}.yaml").write_text(f"task: local_{name}{common}{settings}")
    return folder


def answers(lm: Any, tasks: Path, *names: str, chat: bool = False) -> Answers:
    """What a model answers to the items of each task."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    names = names or tuple(sorted(path.stem for path in tasks.glob("*.yaml")))
    result = lm_eval.simple_evaluate(
        model=lm,
        tasks=[f"local_{name}" for name in names],
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        apply_chat_template=chat,
        log_samples=True,
        bootstrap_iters=0,
    )
    found = {}
    for name in names:
        samples = result["samples"][f"local_{name}"]
        samples.sort(key=lambda sample: sample["doc_id"])
        assert len(samples) == ITEMS
        found[name] = [sample["filtered_resps"] for sample in samples]
    return found


@pytest.fixture(scope="module")
def ours(model: Path) -> Any:
    return harness().SlimformerLM(str(model), weights="f32", batch_size="auto", device="cpu")


@pytest.fixture(scope="module")
def our_answers(ours: Any, tasks: Path) -> Answers:
    return answers(ours, tasks)


@pytest.fixture(scope="module")
def theirs(model: Path) -> Any:
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=str(model), dtype="float32", device="cpu", batch_size=8)


@pytest.fixture(scope="module")
def their_answers(theirs: Any, tasks: Path) -> Answers:
    return answers(theirs, tasks)


def assert_same(found: list[Any], expected: list[Any]) -> None:
    """The same log likelihoods, and the same opinion on what greedy decoding writes."""
    for ours, theirs in zip(found, expected, strict=True):
        for (total, greedy), (other, also) in zip(ours, theirs, strict=True):
            assert float(total) == pytest.approx(float(other), abs=TOLERANCE)
            assert greedy == also


@pytest.mark.parametrize("name", ["choice", "examples", "last"])
def test_log_likelihoods(name: str, our_answers: Answers, their_answers: Answers) -> None:
    assert_same(our_answers[name], their_answers[name])


def test_log_likelihoods_in_a_chat(
    ours: Any, theirs: Any, our_answers: Answers, tasks: Path
) -> None:
    found, expected = (answers(lm, tasks, "examples", chat=True) for lm in (ours, theirs))
    assert_same(found["examples"], expected["examples"])
    assert found != {"examples": our_answers["examples"]}


def test_rolling_log_likelihoods(our_answers: Answers, their_answers: Answers) -> None:
    found, expected = (np.array(a["rolling"], float) for a in (our_answers, their_answers))
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)


def test_texts(our_answers: Answers, their_answers: Answers) -> None:
    assert our_answers["writing"] == their_answers["writing"]
    assert any(text for (text,) in our_answers["writing"])


def test_samples_are_drawn_when_asked_for(ours: Any, model: Path) -> None:
    from lm_eval.api.instance import Instance

    def written(temperature: float) -> list[str]:
        settings = {"until": [], "max_gen_toks": 8, "temperature": temperature}
        request = Instance("generate_until", {}, ("the light", settings), 0)
        return list(ours.generate_until([request]))

    assert written(1.0) == written(1.0)
    assert written(5.0) != written(0.0)


def test_the_command(model: Path, tasks: Path) -> None:
    import subprocess
    import sys

    options = [
        *("--model_args", f"pretrained={model},weights=int8", "--tasks", "local_choice"),
        *("--include_path", str(tasks), "--limit", "3"),
    ]
    done = subprocess.run(
        [sys.executable, "-m", "slimformer", "lm-eval", *options],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "local_choice" in done.stdout
    assert "slimformer" in done.stdout


def test_mistakes_are_told(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unexpected wights; known: pretrained, weights"):
        harness().SlimformerLM(str(model), wights="int8")
    checkpoint = dataclasses.replace(load(model), tokenizer=None)
    save(checkpoint, tmp_path / "silent")
    with pytest.raises(DataError, match="no tokenizer"):
        harness().SlimformerLM(str(tmp_path / "silent"))
