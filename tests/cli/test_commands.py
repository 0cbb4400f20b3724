"""What every command prints, as JSON and for people."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prune.cases import routed_model
from slimformer.checkpoint import load, save
from slimformer.config import AttentionConfig, RoutedFfnConfig
from slimformer.engine import Engine
from slimformer.prune import explicit, prune

Run = Callable[..., Any]


def test_inspect(run: Run, run_json: Run, dense: Path) -> None:
    config = load(dense).config
    seen = run_json("inspect", dense)
    assert seen["family"] == "llama"
    assert seen["parameters"] == config.parameters()
    assert seen["non_embedding_parameters"] == config.non_embedding_parameters()
    assert seen["bytes"] == 4 * config.parameters()
    assert len(seen["layers"]) == 4
    first = seen["layers"][0]
    assert (first["heads"], first["kv_heads"], first["neurons"]) == (4, 2, 64)
    people = run("inspect", dense)
    assert people.exit_code == 0
    assert "0-3" in people.stdout


def test_inspect_tells_windows(run: Run, run_json: Run, dense: Path, tmp_path: Path) -> None:
    model = load(dense)
    layer = model.config.layers[0]
    assert isinstance(layer.attention, AttentionConfig)
    windowed = dataclasses.replace(layer, attention=dataclasses.replace(layer.attention, window=48))
    config = dataclasses.replace(model.config, family="mistral", layers=(windowed,) * 4)
    save(dataclasses.replace(model, config=config), tmp_path / "m")
    assert [layer["window"] for layer in run_json("inspect", tmp_path / "m")["layers"]] == [48] * 4
    assert "window" in run("inspect", tmp_path / "m").stdout
    assert "window" not in run("inspect", dense).stdout


def test_inspect_tells_experts(run: Run, run_json: Run, tmp_path: Path) -> None:
    model = routed_model(layers=2)
    save(
        prune(model, explicit(model, expert_neurons={1: {3: (5,)}}), repair="none"), tmp_path / "m"
    )
    layers = run_json("inspect", tmp_path / "m")["layers"]
    assert [layer["experts"] for layer in layers] == [[48] * 6, [48, 48, 48, 1, 48, 48]]
    assert "2 of 6 experts with 1 to 48" in run("inspect", tmp_path / "m").stdout


def test_prune_keeps_experts_by_name(run_json: Run, tmp_path: Path) -> None:
    save(routed_model(layers=2), tmp_path / "m")
    lists = ("--experts", "0=0,1,2", "--experts", "1=5", "--repair", "none")
    run_json("prune", tmp_path / "m", tmp_path / "slim", *lists)
    ffns = [layer.ffn for layer in load(tmp_path / "slim").config.layers]
    assert [ffn.experts for ffn in ffns if isinstance(ffn, RoutedFfnConfig)] == [(48,) * 3, (48,)]


def test_generate(run: Run, run_json: Run, dense: Path) -> None:
    engine = Engine(dense)
    options = ("--max-tokens", 12)
    seen = run_json("generate", dense, "-p", "the river", *options)
    expected = engine.complete("the river", max_tokens=12)
    assert (seen["text"], seen["tokens"]) == (expected.text, expected.tokens)
    streamed = run("generate", dense, "-p", "the river", *options)
    assert streamed.stdout == seen["text"] + "\n"
    chat = run_json("generate", dense, "-p", "the river", "--chat", *options)
    assert chat["text"] == engine.generate("the river", chat=True, max_tokens=12)


def test_generate_tells_of_what_a_window_leaves_out(run: Run, run_json: Run, dense: Path) -> None:
    options = ("--window", 6, "--sinks", 2, "--kv", "int8", "--max-tokens", 12)
    seen = run_json("generate", dense, "-p", "the river", *options)
    expected = Engine(dense, kv="int8", window=6, sinks=2).complete("the river", max_tokens=12)
    assert (seen["tokens"], seen["out_of_sight"]) == (expected.tokens, expected.out_of_sight)
    assert seen["out_of_sight"] > 0
    streamed = run("generate", dense, "-p", "the river", *options)
    assert "first 2 and the last 6 tokens" in streamed.stderr


def test_generate_with_parts_switched_off(run_json: Run, dense: Path) -> None:
    def tokens(*options: object) -> Any:
        return run_json("generate", dense, "-p", "the river", "--max-tokens", 8, *options)["tokens"]

    assert tokens("--skip-layers", "1-2") == tokens("--skip-attention", "1,2", "--skip-ffn", "1,2")
    assert tokens("--exit-after", 1) == tokens("--skip-layers", "2,3")
    assert tokens("--temperature", 1, "--seed", 1) != tokens("--temperature", 1, "--seed", 2)


def test_evaluate(run: Run, run_json: Run, dense: Path, text: Path, tasks: Path) -> None:
    results = run_json("evaluate", dense, dense, "--text", text, "--tasks", tasks)["results"]
    assert len(results) == 6
    scored, choice, last = results[:3]
    assert scored["model"] == str(dense)
    assert scored["text"] == str(text)
    assert scored["tokens"] > 100
    assert scored["perplexity"] > 1
    assert scored["bits_per_byte"] > 0
    assert (choice["task"], choice["items"]) == ("choice", 1)
    assert choice["accuracy"] in (0, 1)
    assert "accuracy_norm" in choice
    assert last["task"] == "last"
    assert results[3:] == results[:3]
    people = run("evaluate", dense, "--text", text, "--context", 16, "--max-windows", 2)
    assert people.exit_code == 0
    assert "perplexity" in people.stdout


def test_prune_cuts_the_vocabulary(
    run: Run, run_json: Run, dense: Path, text: Path, tmp_path: Path
) -> None:
    seen = run_json("prune", dense, tmp_path / "a", "--vocabulary-from", text, "--vocabulary", 270)
    assert seen["vocab_size"] == 270
    assert load(tmp_path / "a").config.vocab_size == 270
    cut = ("--vocabulary-from", text, "--vocabulary-keep", 0.9, "--keep", 0.9)
    both = run("prune", dense, tmp_path / "b", *cut, "--calibration", text)
    assert both.exit_code == 0, both.stderr
    assert "tokens" in both.stdout
    config = load(tmp_path / "b").config
    assert 258 <= config.vocab_size < 300
    fewer = config.non_embedding_parameters()
    assert fewer <= 0.9 * load(dense).config.non_embedding_parameters()
    again = ("--recipe", tmp_path / "b" / "recipe.json", "--calibration", text)
    assert run("prune", dense, tmp_path / "c", *again).exit_code == 0
    name = "model.safetensors"
    assert (tmp_path / "b" / name).read_bytes() == (tmp_path / "c" / name).read_bytes()
    assert Engine(tmp_path / "c").generate("the river", max_tokens=3) is not None


def test_prune_narrows_the_stream(run_json: Run, dense: Path, text: Path, tmp_path: Path) -> None:
    common = ("--channels", 24, "--calibration", text)
    selected = run_json("prune", dense, tmp_path / "a", *common)
    assert selected["channels"] == 24
    config = load(tmp_path / "a").config
    assert (config.n_channels, config.norm_divisor, config.tied_head) == (24, 32, True)
    units = ("--rotate", "--vocabulary-from", text, "--vocabulary", 270, "--neurons", 48)
    run_json("prune", dense, tmp_path / "b", *common, *units)
    config = load(tmp_path / "b").config
    assert (config.n_channels, config.vocab_size, config.tied_head) == (24, 270, False)
    assert {layer.ffn.n_neurons for layer in config.layers} == {48}  # type: ignore[union-attr]
    assert Engine(tmp_path / "b").generate("the river", max_tokens=3) is not None


def test_prune_narrows_value_heads(run_json: Run, dense: Path, text: Path, tmp_path: Path) -> None:
    seen = run_json("prune", dense, tmp_path / "a", "--value-dims", 5, "--calibration", text)
    layers = run_json("inspect", tmp_path / "a")["layers"]
    assert [(layer["head_dim"], layer["value_dim"]) for layer in layers] == [(8, 5)] * 4
    before = load(dense).config.non_embedding_parameters()
    assert seen["non_embedding_parameters"] < before
    structures = ("--structures", "value_dims,neurons", "--keep", 0.8, "--calibration", text)
    small = run_json("prune", dense, tmp_path / "b", *structures)
    assert small["non_embedding_parameters"] <= 0.8 * before


def test_prune_narrows_queries_and_keys(
    run_json: Run, dense: Path, text: Path, tmp_path: Path
) -> None:
    run_json("prune", dense, tmp_path / "a", "--rotary-pairs", 3, "--calibration", text)
    layers = run_json("inspect", tmp_path / "a")["layers"]
    assert [(layer["head_dim"], layer["value_dim"]) for layer in layers] == [(6, 8)] * 4
    structures = ("--structures", "rotary_pairs,neurons", "--keep", 0.8, "--calibration", text)
    small = run_json("prune", dense, tmp_path / "b", *structures)
    before = load(dense).config.non_embedding_parameters()
    assert small["non_embedding_parameters"] <= 0.8 * before


def test_evaluate_lets_models_write(run: Run, run_json: Run, dense: Path) -> None:
    (probe,) = run_json("evaluate", dense, "--probe")["probes"]
    assert len(probe["answers"]) == 12
    assert 0 <= probe["repetition"] <= 1
    assert len(probe["distinct"]) == 3
    people = run("evaluate", dense, dense, "--probe")
    assert people.exit_code == 0
    assert "The capital of France is" in people.stdout


def test_evaluate_takes_what_a_shell_makes_of_a_pattern(
    run_json: Run, dense: Path, tasks: Path
) -> None:
    files = sorted(tasks.glob("*.jsonl"))
    results = run_json("evaluate", dense, "--tasks", *files)["results"]
    assert [row["task"] for row in results] == ["choice", "last"]


def test_bench(run: Run, run_json: Run, dense: Path) -> None:
    options = ("--prompt", 8, "--generate", 4, "--repeat", 1, "--threads", 1)
    seen = run_json("bench", dense, dense, *options)
    assert seen["threads"] == 1
    assert seen["tier"]
    assert len(seen["results"]) == 2
    for row in seen["results"]:
        assert row["weights"] == "bf16"
        for figure in (
            "prefill_tokens_per_s",
            "decode_tokens_per_s",
            "load_s",
            "peak_memory_bytes",
            "weight_bytes",
        ):
            assert row[figure] > 0
    people = run("bench", dense, *options, "--weights", "f32")
    assert people.exit_code == 0
    assert "decode tokens/s" in people.stdout


def test_prune_by_name(run: Run, run_json: Run, dense: Path, tmp_path: Path) -> None:
    output = tmp_path / "pruned"
    seen = run_json(
        *("prune", dense, output, "--repair", "none"),
        *("--drop-layers", 1, "--drop-ffn", 2, "--heads", "3=0,2", "--neurons", 48),
    )
    config = load(output).config
    assert seen["output"] == str(output)
    assert seen["parameters"] == config.parameters()
    assert seen["non_embedding_parameters"] == config.non_embedding_parameters()
    assert seen["bytes"] == (output / "model.safetensors").stat().st_size
    assert seen["recipe"]["source"]["fingerprint"] == load(dense).fingerprint
    layers = run_json("inspect", output)["layers"]
    assert [(layer["heads"], layer["kv_heads"], layer["neurons"]) for layer in layers] == [
        (4, 2, 48),
        (4, 2, None),
        (2, 2, 48),
    ]

    again = tmp_path / "again"
    repeated = run("prune", dense, again, "--recipe", output / "recipe.json", "--repair", "none")
    assert repeated.exit_code == 0, repeated.stderr
    weights = "model.safetensors"
    assert (again / weights).read_bytes() == (output / weights).read_bytes()


def test_links_stand_in_for_whole_sub_blocks(
    run: Run, run_json: Run, dense: Path, text: Path, tmp_path: Path
) -> None:
    output, again = tmp_path / "linked", tmp_path / "again"
    common = ("--calibration", text, "--threads", 1)
    seen = run_json(
        *("prune", dense, output, "--keep", 0.6, "--structures", "attention,ffn", "--links"),
        *common,
    )
    before = load(dense).config.non_embedding_parameters()
    assert seen["non_embedding_parameters"] <= 0.6 * before
    assert "link" in (output / "recipe.json").read_text()
    repeated = run("prune", dense, again, "--recipe", output / "recipe.json", *common)
    assert repeated.exit_code == 0, repeated.stderr
    assert (again / "model.safetensors").read_bytes() == (output / "model.safetensors").read_bytes()
    assert run("report", output).exit_code == 0


def test_prune_to_a_budget(run_json: Run, dense: Path, text: Path, tmp_path: Path) -> None:
    before = load(dense).config.non_embedding_parameters()
    common = ("--calibration", text, "--threads", 1)
    kept = run_json("prune", dense, tmp_path / "kept", "--keep", 0.7, *common)
    assert 0.5 * before < kept["non_embedding_parameters"] <= 0.7 * before
    small = run_json(
        *("prune", dense, tmp_path / "small", "--max-bytes", "150KB"),
        *("--structures", "kv_groups,neurons", "--criterion", "magnitude"),
        *("--allocation", "global", "--protect", "none", "--dtype", "f32", *common),
    )
    assert small["bytes"] <= 155_000


def test_report_of_a_pruned_model(run: Run, run_json: Run, dense: Path, tmp_path: Path) -> None:
    output = tmp_path / "pruned"
    made = run("prune", dense, output, "--drop-attention", 1, "--repair", "none")
    assert made.exit_code == 0, made.stderr
    page = Path(run_json("report", output)["report"])
    assert page.parent == output
    assert "<svg" in page.read_text(encoding="utf-8")
    assert "have not been measured" in page.read_text(encoding="utf-8")
    assert run("report", output, "--against", dense, "--threads", 1).exit_code == 0
    assert page.read_text(encoding="utf-8").count("<svg") == 2
    other = run("report", output, "--against", output)
    assert other.exit_code == 1
    assert "error: recipe" in other.stderr
    # The page and its data do not stop the model from being replaced.
    assert run("prune", dense, output, "--drop-ffn", 1, "--repair", "none").exit_code == 0


@pytest.mark.network
@pytest.mark.model
def test_demo(run_json: Run, tmp_path: Path) -> None:
    seen = run_json("demo", "--output", tmp_path / "demo")
    dense, pruned = seen["models"]
    assert pruned["non_embedding_parameters"] <= 0.8 * dense["non_embedding_parameters"]
    assert pruned["timing"]["decode_ratio"] > 1
    # Text that the model wrote itself is poor calibration text: that greedy text repeats itself may
    # be told, predictions must not collapse.
    assert [line for line in seen["warnings"] if "perplexity" in line] == []
    assert Path(seen["report"]).is_file()
    saved = json.loads((tmp_path / "demo" / "results.json").read_text())
    assert saved["models"] == seen["models"]


def test_pack(run: Run, run_json: Run, dense: Path, tmp_path: Path, text: Path) -> None:
    out = tmp_path / "packed"
    seen = run_json("pack", dense, out, "--weights", "int8", "--no-balance")
    assert (seen["path"], seen["weights"]) == (str(out), "int8")
    assert seen["bytes"] == (out / "weights.packed").stat().st_size
    packed = run("pack", dense, tmp_path / "balanced", "--weights", "int8", "--calibration", text)
    assert "MB of int8 weights, balanced" in packed.stdout
    options = ("-p", "the river", "--max-tokens", 8)
    written = run_json("generate", out, *options)
    assert written == run_json("generate", dense, *options, "--weights", "int8")
    assert run_json("inspect", out)["parameters"] == load(dense).config.parameters()
    (scored,) = run_json("evaluate", out, "--text", text)["results"]
    assert scored["perplexity"] > 1
    (timed,) = run_json(
        "bench", out, "--prompt", 8, "--generate", 2, "--repeat", 1, "--threads", 1
    )["results"]
    assert timed["weights"] == "int8"


def test_a_packed_model_is_not_pruned(run: Run, dense: Path, tmp_path: Path) -> None:
    run("pack", dense, tmp_path / "packed")
    result = run("prune", tmp_path / "packed", tmp_path / "out", "--drop-layers", "1")
    assert result.exit_code == 1
    assert "packed weights can only be run" in result.stderr
