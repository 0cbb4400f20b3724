"""Shapes from the settings of ``config.json`` and back, for any described family."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from slimformer.checkpoint.families.description import (
    ACTIVATIONS,
    NEUTRAL,
    Blocks,
    Description,
    Keys,
    Ropes,
    Windows,
)
from slimformer.checkpoint.families.expert_settings import expert_settings, read_experts
from slimformer.checkpoint.families.rope_scaling import (
    ORIGINAL_POSITIONS,
    rope_scaling_from,
    rope_scaling_to,
)
from slimformer.checkpoint.fields import Fields
from slimformer.config import (
    MAX_LAYERS,
    Activation,
    AttentionConfig,
    FfnConfig,
    LayerConfig,
    LongRopeScaling,
    ModelConfig,
    RopeConfig,
    RoutedFfnConfig,
)
from slimformer.errors import FormatError, SlimformerError, UnsupportedModelError

MAX_HEADS = 1024
"""Several times what any model has; a hostile file must not make maps of millions of heads."""

_FULL, _WINDOW = "full_attention", "sliding_attention"


def read_settings(name: str, description: Description, config: Fields) -> ModelConfig:
    """The shape that the settings of family ``name`` describe."""
    keys, blocks = description.keys, description.blocks
    _check_neutral(description, config)
    channels = config.dimension(keys.channels)
    for key in description.as_wide_as_channels:
        if config.integer(key, channels) != channels:
            _refuse(config, key)
    n_layers = config.dimension(keys.layers, limit=MAX_LAYERS)
    windows = _windows(config, blocks.windows, n_layers)
    max_positions = _max_positions(config, description)
    ropes = _ropes(config, blocks.rope, _head_dim(config, keys), windows, max_positions)
    attentions = {
        (window, rope): _attention(config, keys, blocks, window, rope)
        for window, rope in zip(windows, ropes, strict=True)
    }
    ffn = _ffn(config, keys, blocks, channels)
    parallel = _flag(config, blocks.parallel, default=True)
    return ModelConfig(
        family=name,
        vocab_size=config.dimension("vocab_size"),
        n_channels=channels,
        norm_divisor=channels,
        norm_eps=_norm_eps(config, description),
        tied_head=config.boolean("tie_word_embeddings", blocks.tied_head),
        max_positions=max_positions,
        layers=tuple(
            LayerConfig(attentions[window, rope], ffn, parallel)
            for window, rope in zip(windows, ropes, strict=True)
        ),
        norm=blocks.norm,
        norm_offset=blocks.norm_offset,
        embedding_scale=channels**0.5 if blocks.scaled_embedding else 1.0,
        learned_positions=blocks.learned_positions,
        position_offset=blocks.position_offset,
        logit_soft_cap=_optional_number(config, keys.logit_cap),
        causal=blocks.causal,
        token_types=_count(config, blocks.token_types),
        embedding_norm=blocks.embedding_norm,
        final_norm=blocks.final_norm,
    )


def write_settings(
    name: str, description: Description, config: ModelConfig
) -> Mapping[str, Any] | None:
    """The settings of ``config.json``, ``None`` for a shape that they cannot express.

    What they can express is told by reading them again.
    """
    keys, blocks = description.keys, description.blocks
    attentions = [a for layer in config.layers if isinstance(a := layer.attention, AttentionConfig)]
    ffns = [
        f for layer in config.layers if isinstance(f := layer.ffn, (FfnConfig, RoutedFfnConfig))
    ]
    if not config.layers or len(attentions) + len(ffns) != 2 * len(config.layers):
        return None
    attention, ffn = attentions[-1], ffns[-1]
    settings: dict[str | None, Any] = {
        keys.channels: config.n_channels,
        keys.layers: len(config.layers),
        keys.heads: attention.n_heads,
        keys.kv_heads: attention.n_kv_heads,
        keys.head_dim: attention.head_dim,
        keys.neurons: ffn.n_neurons if isinstance(ffn, FfnConfig) else min(ffn.experts),
        keys.positions: config.max_positions + _uncounted(blocks),
        keys.norm_eps: config.norm_eps,
        keys.activation: _activation_name(blocks, ffn.activation),
        keys.score_scale: _whole(attention.scale**-2),
        keys.attention_cap: attention.soft_cap,
        keys.logit_cap: config.logit_soft_cap,
        "tie_word_embeddings": config.tied_head,
        "vocab_size": config.vocab_size,
        **dict.fromkeys(description.as_wide_as_channels, config.n_channels),
        **_rope_settings(blocks.rope, attentions),
        **_window_settings(blocks.windows, attentions),
        **expert_settings(blocks.experts, ffn),
    }
    flags = (
        (blocks.qkv_bias, attention.qkv_bias),
        (blocks.output_bias, attention.output_bias),
        (blocks.ffn_bias, isinstance(ffn, FfnConfig) and ffn.bias),
        (blocks.parallel, any(layer.parallel for layer in config.layers)),
        (blocks.token_types, config.token_types),
    )
    settings |= {key: value for key, value in flags if isinstance(key, str)}
    settings |= dict(description.written.items())
    said = {key: value for key, value in settings.items() if key is not None}
    # transformers 5 refuses other widths, even where head_dim is given
    if config.n_channels % attention.n_heads:
        return None
    try:
        same = read_settings(name, description, Fields("config", said)) == config
    except SlimformerError:
        return None
    return said if same else None


def grouped(n_heads: int, n_kv_heads: int, where: str) -> tuple[int, ...]:
    """The map of query to KV heads when consecutive equal groups share one."""
    if n_heads % n_kv_heads:
        raise FormatError(
            f"{where}: {n_heads} query heads do not divide into groups for {n_kv_heads} KV heads"
        )
    return tuple(head * n_kv_heads // n_heads for head in range(n_heads))


def _refuse(config: Fields, key: str) -> None:
    raise UnsupportedModelError(f"{config.where}: {key}: {config.raw(key)!r:.60} does not run here")


def _check_neutral(description: Description, config: Fields) -> None:
    """Whatever changes the computation must be read, or have a value that leaves it alone."""
    for key, allowed in {**NEUTRAL, **description.neutral}.items():
        read = key in _read_keys(description) and key not in description.neutral
        if key in config and not read and config.raw(key) not in allowed:
            _refuse(config, key)


def _read_keys(description: Description) -> set[str]:
    keys, blocks = description.keys, description.blocks
    values = list(vars(keys).values())
    values += [blocks.qkv_bias, blocks.output_bias, blocks.ffn_bias, blocks.parallel]
    values.append(blocks.token_types)
    if blocks.rope is not None:
        values += [blocks.rope.share_key, blocks.rope.window_key]
        values += ["no_rope_layers"] if blocks.rope.skips else []
    if blocks.windows is not None:
        values.append(blocks.windows.key)
    if blocks.experts is not None:
        values += blocks.experts.counts
    return {value for value in values if isinstance(value, str)}


def _flag(config: Fields, source: bool | str, *, default: bool = False) -> bool:
    return config.boolean(source, default) if isinstance(source, str) else source


def _optional_number(config: Fields, key: str | None) -> float | None:
    return config.number(key) if key is not None and key in config else None


def _norm_eps(config: Fields, description: Description) -> float:
    key, default = description.keys.norm_eps, description.blocks.norm_eps
    return default if key is None else config.number(key, default)


def _max_positions(config: Fields, description: Description) -> int:
    stated = config.dimension(description.keys.positions, 2048)
    return stated - _uncounted(description.blocks)


def _uncounted(blocks: Blocks) -> int:
    """Rows of the table that the stated number of positions includes and no token stands at."""
    return blocks.position_offset if blocks.positions_with_offset else 0


def _count(config: Fields, source: int | str) -> int:
    return config.dimension(source, 2) if isinstance(source, str) else source


def _head_dim(config: Fields, keys: Keys) -> int:
    width = max(1, config.dimension(keys.channels) // _n_heads(config, keys))
    return width if keys.head_dim is None else config.dimension(keys.head_dim, width)


def _n_heads(config: Fields, keys: Keys) -> int:
    return config.dimension(keys.heads, limit=MAX_HEADS)


def _attention(
    config: Fields, keys: Keys, blocks: Blocks, window: int | None, rope: RopeConfig | None
) -> AttentionConfig:
    n_heads = _n_heads(config, keys)
    n_kv_heads = n_heads
    if keys.kv_heads is not None:
        n_kv_heads = config.dimension(keys.kv_heads, n_heads, limit=MAX_HEADS)
    head_dim = _head_dim(config, keys)
    scalar = _optional_number(config, keys.score_scale) or float(head_dim)
    width = blocks.qk_norm == "width"
    if scalar < 0:
        config.fail(keys.score_scale or "", "a number above 0", scalar)
    return AttentionConfig(
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        value_dim=head_dim,
        q_to_kv=grouped(n_heads, n_kv_heads, config.where),
        scale=scalar**-0.5,
        rope=rope,
        qkv_bias=_flag(config, blocks.qkv_bias),
        output_bias=_flag(config, blocks.output_bias),
        norm_place=blocks.norm_place,
        window=window,
        soft_cap=_optional_number(config, keys.attention_cap),
        qk_norm=blocks.qk_norm,
        q_norm_divisor=n_heads * head_dim if width else None,
        k_norm_divisor=n_kv_heads * head_dim if width else None,
    )


def _ffn(config: Fields, keys: Keys, blocks: Blocks, channels: int) -> FfnConfig | RoutedFfnConfig:
    name = config.text(keys.activation, blocks.activation)
    if name not in ACTIVATIONS:
        raise UnsupportedModelError(
            f"{config.where}: {keys.activation}: {name!r:.60} does not run here; known: "
            f"{', '.join(ACTIVATIONS)}"
        )
    activation = cast(Activation, ACTIVATIONS[name])
    default = blocks.neurons_per_channel
    neurons = config.dimension(keys.neurons, None if default is None else default * channels)
    if blocks.experts is not None:
        return read_experts(config, blocks, neurons, activation)
    bias = _flag(config, blocks.ffn_bias)
    return FfnConfig(neurons, bias, blocks.norm_place, activation, blocks.gated)


def _activation_name(blocks: Blocks, activation: str) -> str:
    """The family's own name for it, if that means the same."""
    names = [blocks.activation, *ACTIVATIONS]
    return next(name for name in names if ACTIVATIONS[name] == activation)


def _windows(config: Fields, windows: Windows | None, n_layers: int) -> list[int | None]:
    """The window of each layer."""
    types = config.texts("layer_types") if "layer_types" in config else None
    if types is not None and (len(types) != n_layers or set(types) - {_FULL, _WINDOW}):
        config.fail("layer_types", f"{n_layers} times {_FULL} or {_WINDOW}", types)
    if windows is None:
        if types is not None and _WINDOW in types:
            _refuse(config, "layer_types")
        return [None] * n_layers
    off = windows.switch is not None and not config.boolean(windows.switch, False)
    if off or windows.key not in config:
        return [None] * n_layers
    width = config.dimension(windows.key)
    if types is not None:
        return [width if kind == _WINDOW else None for kind in types]
    every = windows.full_every
    if windows.full_every_key is not None:
        every = config.dimension(windows.full_every_key, every)
    first = config.integer(windows.first_key, 0) if windows.first_key is not None else 0
    return [
        None if layer < first or (every and (layer + 1) % every == 0) else width
        for layer in range(n_layers)
    ]


def _window_settings(
    windows: Windows | None, attentions: list[AttentionConfig]
) -> dict[str | None, Any]:
    if windows is None:
        return {}
    widths = [attention.window for attention in attentions]
    settings: dict[str | None, Any] = {
        windows.key: next((width for width in widths if width is not None), None)
    }
    if windows.switch is not None:
        settings[windows.switch] = any(width is not None for width in widths)
    if windows.listed and (windows.full_every or windows.first_key or windows.switch):
        settings["layer_types"] = [_FULL if width is None else _WINDOW for width in widths]
    return settings


def _ropes(
    config: Fields,
    ropes: Ropes | None,
    head_dim: int,
    windows: list[int | None],
    max_positions: int,
) -> list[RopeConfig | None]:
    """The rotation of each layer."""
    if ropes is None:
        return [None] * len(windows)
    full = windowed = _rope(config, ropes, head_dim, _FULL, max_positions)
    if ropes.window_key is not None:
        windowed = _rope(config, ropes, head_dim, _WINDOW, max_positions)
    rotated = [1] * len(windows)
    if ropes.skips and config.raw("no_rope_layers"):
        rotated = config.raw("no_rope_layers")
        if not isinstance(rotated, list) or len(rotated) != len(windows):
            config.fail("no_rope_layers", f"{len(windows)} flags, one a layer", rotated)
        if any(flag not in (0, 1) for flag in rotated):
            config.fail("no_rope_layers", "flags that are 0 or 1", rotated)
    elif ropes.skips:
        interval = config.dimension("no_rope_layer_interval", 4)
        rotated = [int((layer + 1) % interval != 0) for layer in range(len(windows))]
    return [
        None if not flag else (full if window is None else windowed)
        for flag, window in zip(rotated, windows, strict=True)
    ]


def _rope(
    config: Fields, ropes: Ropes, head_dim: int, layer_type: str, max_positions: int
) -> RopeConfig:
    """Rotary settings in the style of transformers 5 (``rope_parameters``) or 4."""
    of_windows = layer_type == _WINDOW
    theta = config.number(ropes.theta_key, ropes.theta)
    if of_windows:
        theta = config.number(ropes.window_key or "", 10000.0)
    share = ropes.share
    if ropes.share_key is not None:
        share = config.number(ropes.share_key, share)
    settings = config.child("rope_scaling")
    if "rope_parameters" in config:
        settings = config.child("rope_parameters")
        if ropes.window_key is not None and layer_type in settings:
            settings = settings.child(layer_type)
        elif of_windows:
            settings = Fields(settings.where, {})
        theta = settings.number("rope_theta", theta)
    elif of_windows:
        settings = Fields(settings.where, {})
    share = settings.number("partial_rotary_factor", share)
    if not 0 < share <= 1 or (share != 1 and ropes.share_key is None):
        raise UnsupportedModelError(
            f"{settings.where}: partial_rotary_factor: {share!r} does not run here"
        )
    scaling = rope_scaling_from(settings, config, max_positions, ropes.scaling_aliases)
    return RopeConfig(int(head_dim * share), theta, scaling)


def _rope_settings(ropes: Ropes | None, attentions: list[AttentionConfig]) -> dict[str | None, Any]:
    if ropes is None:
        return {}
    settings: dict[str | None, Any] = {}
    for attention in attentions:
        if attention.rope is None:
            continue
        if attention.window is None or ropes.window_key is None:
            settings[ropes.theta_key] = attention.rope.theta
            scaling = attention.rope.scaling
            settings["rope_scaling"] = rope_scaling_to(scaling)
            if isinstance(scaling, LongRopeScaling):  # Phi-3 looks for it here
                settings[ORIGINAL_POSITIONS] = scaling.original_max_positions
            settings[ropes.share_key] = attention.rope.rotary_dim / attention.head_dim
        else:
            settings[ropes.window_key] = attention.rope.theta
    if ropes.skips:
        settings["no_rope_layers"] = [int(a.rope is not None) for a in attentions]
    return settings


def _whole(value: float) -> float | int:
    """The whole number that is meant, where rounding has left one next to it."""
    return round(value) if abs(value - round(value)) < 1e-9 * abs(value) else value
