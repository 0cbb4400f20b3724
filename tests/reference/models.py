"""Small random models of every shape, for laws that must hold on any of them."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from slimformer.checkpoint.checkpoint import DTYPES, Checkpoint, Tensor, TokenizerAssets
from slimformer.config import (
    Activation,
    AttentionConfig,
    FfnConfig,
    LayerConfig,
    LinearRopeScaling,
    LinkConfig,
    Llama3RopeScaling,
    ModelConfig,
    NormKind,
    NormPlace,
    QkNorm,
    RopeConfig,
    RopeScaling,
    RoutedFfnConfig,
    SoftmaxOver,
    YarnRopeScaling,
)

WORDS = ("the", "of", "and", "to", "in", "light", "river", "stone", "engine", "layer")


def random_config(
    rng: np.random.Generator,
    *,
    max_layers: int = 4,
    vocab_size: int = 300,
    ragged: bool = True,
    max_positions: int = 512,
    experts: bool = False,
) -> ModelConfig:
    """A random shape; ``ragged=False`` gives a uniform one that plain Llama can say.

    With ``experts`` most FFNs are routed ones.
    """
    n_channels = int(rng.integers(2, 40))
    n_layers = int(rng.integers(0 if ragged else 1, max_layers + 1))
    shared = _random_layer(rng, n_channels, ragged=False)
    layers = tuple(
        _random_layer(rng, n_channels, ragged=True) if ragged else shared for _ in range(n_layers)
    )
    config = ModelConfig(
        family="llama",
        vocab_size=vocab_size,
        n_channels=n_channels,
        norm_divisor=n_channels + (int(rng.integers(0, 9)) if ragged else 0),
        norm_eps=1e-5,
        tied_head=bool(rng.integers(2)),
        max_positions=max_positions,
        layers=layers,
    )
    config = _with_features(rng, config) if ragged and rng.random() < 0.5 else config
    return _with_experts(rng, config) if experts else config


def _with_experts(rng: np.random.Generator, config: ModelConfig) -> ModelConfig:
    """The same model with experts of any number and any widths in most layers that have an FFN."""
    layers = []
    for layer in config.layers:
        ffn = layer.ffn
        if isinstance(ffn, FfnConfig) and rng.random() < 0.8:
            n_experts = int(rng.integers(1, 7))
            routed = RoutedFfnConfig(
                experts=tuple(int(n) for n in rng.integers(1, 40, n_experts)),
                top_k=int(rng.integers(1, n_experts + 1)),
                softmax_over=_choose(rng, SoftmaxOver),
                norm_place=ffn.norm_place,
                activation=ffn.activation,
            )
            layer = dataclasses.replace(layer, ffn=routed)
        layers.append(layer)
    return dataclasses.replace(config, layers=tuple(layers))


def _with_features(rng: np.random.Generator, config: ModelConfig) -> ModelConfig:
    """The same model with features that Llama does not have, any mixture of them."""
    norm: NormKind = "layer" if rng.random() < 0.3 else "rms"
    return dataclasses.replace(
        config,
        norm=norm,
        norm_divisor=config.n_channels if norm == "layer" else config.norm_divisor,
        norm_offset=float(rng.integers(2)),
        embedding_scale=float(rng.choice([1.0, 1.7])),
        learned_positions=bool(rng.integers(2)),
        position_offset=int(rng.integers(3)),
        logit_soft_cap=_maybe(rng, 3.0),
        token_types=int(rng.integers(3)),
        embedding_norm=bool(rng.integers(2)),
        final_norm=bool(rng.integers(4)),
        layers=tuple(_layer_with_features(rng, layer, norm) for layer in config.layers),
    )


def _layer_with_features(
    rng: np.random.Generator, layer: LayerConfig, norm: NormKind
) -> LayerConfig:
    attention, ffn = layer.attention, layer.ffn
    if isinstance(attention, AttentionConfig):
        qk_norm = _maybe(rng, _choose(rng, QkNorm)) if norm == "rms" else None
        width = qk_norm == "width"
        attention = dataclasses.replace(
            attention,
            norm_place=_choose(rng, NormPlace),
            window=_maybe(rng, int(rng.integers(1, 140))),
            soft_cap=_maybe(rng, 1.5),
            qk_norm=qk_norm,
            q_norm_divisor=attention.n_heads * attention.head_dim + 2 if width else None,
            k_norm_divisor=attention.n_kv_heads * attention.head_dim if width else None,
        )
    if isinstance(ffn, FfnConfig):
        ffn = dataclasses.replace(
            ffn,
            norm_place=_choose(rng, NormPlace),
            activation=_choose(rng, Activation),
            gated=bool(rng.integers(2)),
        )
    places = [part.norm_place for part in (attention, ffn) if part is not None]
    return LayerConfig(attention, ffn, parallel="stream" not in places and bool(rng.integers(2)))


def _choose(rng: np.random.Generator, choices: Any) -> Any:
    values = get_args(choices)
    return values[int(rng.integers(len(values)))]


def _maybe(rng: np.random.Generator, value: Any) -> Any:
    return value if rng.random() < 0.5 else None


def _random_layer(rng: np.random.Generator, n_channels: int, *, ragged: bool) -> LayerConfig:
    attention: AttentionConfig | LinkConfig | None = _random_attention(rng, ragged=ragged)
    ffn: FfnConfig | LinkConfig | None = FfnConfig(
        n_neurons=int(rng.integers(1, 70)), bias=bool(rng.integers(2))
    )
    if ragged:
        attention = _maybe_replaced(rng, attention, n_channels)
        ffn = _maybe_replaced(rng, ffn, n_channels)
    return LayerConfig(attention, ffn)


def _maybe_replaced(rng: np.random.Generator, sub_block: Any, n_channels: int) -> Any:
    choice = rng.random()
    if choice < 0.15:
        return None
    if choice < 0.2:
        return LinkConfig("full")
    if choice < 0.25:
        return LinkConfig("diagonal")
    if choice < 0.3:
        return LinkConfig("low_rank", rank=int(rng.integers(1, n_channels + 1)))
    if choice < 0.33:
        return LinkConfig("constant")
    return sub_block


def _random_attention(rng: np.random.Generator, *, ragged: bool) -> AttentionConfig:
    n_kv_heads = int(rng.integers(1, 4))
    head_dim = 2 * int(rng.integers(1, 20))
    bias = bool(rng.integers(2))
    if not ragged:
        per_kv = int(rng.integers(1, 4))
        q_to_kv = [kv for kv in range(n_kv_heads) for _ in range(per_kv)]
        rope: RopeConfig | None = random_rope(rng, head_dim)
        return AttentionConfig(
            n_heads=len(q_to_kv),
            n_kv_heads=n_kv_heads,
            head_dim=head_dim,
            value_dim=head_dim,
            q_to_kv=tuple(q_to_kv),
            scale=head_dim**-0.5,
            rope=rope,
            qkv_bias=bias,
            output_bias=bias,
        )
    q_to_kv = list(range(n_kv_heads)) + list(
        rng.integers(0, n_kv_heads, size=int(rng.integers(0, 4)))
    )
    rng.shuffle(q_to_kv)
    rotary_dim = 2 * int(rng.integers(1, head_dim // 2 + 1))
    attention = AttentionConfig(
        n_heads=len(q_to_kv),
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        value_dim=int(rng.integers(1, 40)),
        q_to_kv=tuple(int(kv) for kv in q_to_kv),
        scale=float(rng.uniform(0.05, 0.5)),
        rope=None if rng.random() < 0.15 else random_rope(rng, rotary_dim),
        qkv_bias=bias,
        output_bias=bool(rng.integers(2)),
    )
    if attention.rope is None:
        return attention
    return dataclasses.replace(attention, rope=some_pairs(rng, attention.rope))


def some_pairs(rng: np.random.Generator, rope: RopeConfig) -> RopeConfig:
    """The same, sometimes without some of its pairs."""
    count = rope.rotary_dim // 2
    if rng.random() < 0.7:
        return rope
    left = rng.permutation(count)[: int(rng.integers(1, count + 1))]
    return rope.only(tuple(int(pair) for pair in np.sort(left)))


def random_rope(rng: np.random.Generator, rotary_dim: int) -> RopeConfig:
    """A rotary embedding with one of the scalings that Llama has."""
    scalings: tuple[RopeScaling | None, ...] = (
        None,
        LinearRopeScaling(factor=2.0),
        Llama3RopeScaling(
            factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_positions=64
        ),
        YarnRopeScaling(factor=4.0, original_max_positions=64, attention_factor=1.25),
    )
    scaling = scalings[int(rng.integers(len(scalings)))]
    return RopeConfig(rotary_dim=rotary_dim, theta=10000.0, scaling=scaling)


def random_checkpoint(
    config: ModelConfig, seed: int, *, dtype: str = "f32", tokenizer: bool = False
) -> Checkpoint:
    """Weights of a size that keeps activations near 1; norms near 1, biases small."""
    rng = np.random.default_rng(seed)
    tensors = {
        name: Tensor.of(_random_values(rng, name, shape, config.norm_offset).astype(DTYPES[dtype]))
        for name, shape in config.tensor_shapes().items()
    }
    assets = tiny_tokenizer(config.vocab_size) if tokenizer else None
    return Checkpoint(f"random-{seed}", config, tensors, assets)


def _random_values(
    rng: np.random.Generator, name: str, shape: tuple[int, ...], offset: float
) -> npt.NDArray[np.float64]:
    values = rng.standard_normal(shape)
    if name.endswith("norm.weight"):
        return 1 - offset + 0.1 * values
    if name.endswith(".bias"):
        return 0.1 * values
    if name in ("embedding.weight", "positions.weight", "token_types.weight") or len(shape) == 1:
        return 0.5 * values
    return values / math.sqrt(shape[-1])


def tiny_tokenizer(vocab_size: int = 300) -> TokenizerAssets:
    """A byte-level BPE tokenizer with two special tokens, 256 bytes and a few words.

    Ids 0 and 1 are ``<|begin|>`` and ``<|end|>``; any text can be encoded.
    """
    vocab = {"<|begin|>": 0, "<|end|>": 1}
    for character in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocab[character] = len(vocab)
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        piece = "Ġ"
        for character in word:
            if piece + character not in vocab:
                if len(vocab) == vocab_size:
                    break
                merges.append((piece, character))
                vocab[piece + character] = len(vocab)
            piece += character
    while len(vocab) < vocab_size:
        vocab[f"<|reserved_{len(vocab)}|>"] = len(vocab)
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|begin|>", "<|end|>"])
    return TokenizerAssets(
        tokenizer_json=json.dumps(json.loads(tokenizer.to_str()), ensure_ascii=False),
        chat_template=(
            "{% for message in messages %}<|begin|>{{ message['role'] }}: "
            "{{ message['content'] }}<|end|>{% endfor %}"
            "{% if add_generation_prompt %}<|begin|>assistant: {% endif %}"
        ),
        bos="<|begin|>",
        eos="<|end|>",
        add_bos=False,
        stop_ids=(1,),
    )


def framing_tokenizer() -> TokenizerAssets:
    """The same tokenizer for an encoder, which frames a text with both special tokens."""
    assets = tiny_tokenizer()
    description = json.loads(assets.tokenizer_json)
    begin, end = ({"SpecialToken": {"id": t, "type_id": 0}} for t in ("<|begin|>", "<|end|>"))
    text = {"Sequence": {"id": "A", "type_id": 0}}
    description["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [begin, text, end],
        "pair": [begin, text, end],
        "special_tokens": {
            t: {"id": t, "ids": [i], "tokens": [t]} for i, t in enumerate(("<|begin|>", "<|end|>"))
        },
    }
    return dataclasses.replace(assets, tokenizer_json=json.dumps(description))
