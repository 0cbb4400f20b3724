"""The recipe: what a pruned model keeps of its source, as pure data.

A recipe names its source by fingerprint and lists, for each layer that stays, the query heads,
KV heads and neurons that stay, and the links that stand in for what goes; for the whole model the
rows of the vocabulary and the channels of the residual stream, if some of them go; and how many of
the weights left become zero, if any do. It removes nothing itself: ``surgery.apply`` does, and a
mask made of it does so at run time.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from slimformer.checkpoint.checkpoint import Checkpoint
from slimformer.config import (
    MAX_LAYERS,
    AttentionConfig,
    FfnConfig,
    LayerConfig,
    LinkConfig,
    ModelConfig,
)
from slimformer.errors import ConfigError, RecipeError
from slimformer.prune.indices import check_ascending, from_runs, to_runs
from slimformer.prune.json_values import fields_of, integer, string, unique
from slimformer.prune.zeros.choice import Zeros

SCHEMA_VERSION = 1

_OF_THE_MODEL = ("vocabulary", "channels")
"""What is kept of the model as a whole."""

MAX_INDICES = 1 << 23
"""Most units a recipe may list in all; a hostile file must not fill the memory."""


@dataclasses.dataclass(frozen=True)
class KeptAttention:
    """Query heads that stay, and exactly the KV heads that they read; ascending."""

    heads: tuple[int, ...]
    kv_heads: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class KeptFfn:
    """Neurons that stay; ascending."""

    neurons: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class KeptLink:
    """A link of the source, which has no units and stays as it is."""


@dataclasses.dataclass(frozen=True)
class NewLink:
    """A link of this shape stands in for a sub-block that goes.

    Surgery gives it weights of zero, so that it does nothing; the repair fits them.
    """

    shape: LinkConfig


@dataclasses.dataclass(frozen=True)
class KeptLayer:
    """What stays of the source's layer ``source``; ``None``: the sub-block goes.

    A link may stand in for one that goes, or in one of the two places for the whole layer. A layer
    of which nothing stays is left out of the recipe. Only a layer that is empty in the source
    already is listed with both sub-blocks ``None``.
    """

    source: int
    attention: KeptAttention | KeptLink | NewLink | None
    ffn: KeptFfn | KeptLink | NewLink | None

    @property
    def with_units(self) -> tuple[str, ...]:
        """Names of the sub-blocks that stay and are no links."""
        kept = {"attention": self.attention, "ffn": self.ffn}
        return tuple(n for n, one in kept.items() if isinstance(one, KeptAttention | KeptFfn))


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What is kept of one particular model.

    Parameters
    ----------
    source_name
        Name of the source model, for people.
    source_fingerprint
        ``Checkpoint.fingerprint`` of the source model.
    layers
        The layers that stay, in ascending order of ``source``.
    vocabulary
        Rows of embedding and head that stay, ascending; ``None``: all of them.
    zeros
        Zeros of the model that is left, if it is to have any.
    channels
        Channels of the residual stream that stay, ascending; ``None``: all of them.

    Raises
    ------
    RecipeError
        Indices that are negative, unsorted or repeated, or an empty list of them.
    """

    source_name: str
    source_fingerprint: str
    layers: tuple[KeptLayer, ...]
    vocabulary: tuple[int, ...] | None = None
    zeros: Zeros | None = None
    channels: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for what in _OF_THE_MODEL:
            kept = getattr(self, what)
            if kept is not None:
                check_ascending(kept, f"recipe: {what}")
        previous = -1
        for position, layer in enumerate(self.layers):
            where = f"recipe: layers[{position}]"
            if layer.source <= previous or layer.source >= MAX_LAYERS:
                raise RecipeError(
                    f"{where}.source: expected ascending layers from 0 to {MAX_LAYERS - 1}, "
                    f"found {layer.source} after {previous}"
                )
            previous = layer.source
            if isinstance(layer.attention, KeptAttention):
                check_ascending(layer.attention.heads, f"{where}.attention.heads")
                check_ascending(layer.attention.kv_heads, f"{where}.attention.kv_heads")
            if isinstance(layer.ffn, KeptFfn):
                check_ascending(layer.ffn.neurons, f"{where}.ffn.neurons")

    @staticmethod
    def identity(checkpoint: Checkpoint) -> Recipe:
        """The recipe that keeps everything."""
        layers = tuple(keep_all(i, layer) for i, layer in enumerate(checkpoint.config.layers))
        return Recipe(checkpoint.name, checkpoint.fingerprint, layers)

    def then(self, other: Recipe) -> Recipe:
        """The recipe that does what this one and then ``other`` does, on this one's source.

        Zeros are those of ``other``, or else this one's in what stays.

        Raises
        ------
        RecipeError
            ``other`` keeps something that this recipe has removed.
        """
        layers = []
        for position, second in enumerate(other.layers):
            where = f"recipe: layers[{position}]"
            if second.source >= len(self.layers):
                raise RecipeError(
                    f"{where}.source: expected at most {len(self.layers) - 1}, the last layer "
                    f"that the first recipe keeps, found {second.source}"
                )
            first = self.layers[second.source]
            layers.append(
                KeptLayer(
                    first.source,
                    _compose(first.attention, second.attention, f"{where}.attention"),
                    _compose(first.ffn, second.ffn, f"{where}.ffn"),
                )
            )
        zeros = other.zeros
        if zeros is None and self.zeros is not None:
            zeros = self.zeros.in_layers([(one.source, one.with_units) for one in other.layers])
        whole: dict[str, Any] = {
            what: _pick_all(getattr(self, what), getattr(other, what), f"recipe: {what}")
            for what in _OF_THE_MODEL
        }
        return dataclasses.replace(self, layers=tuple(layers), zeros=zeros, **whole)

    def check(self, checkpoint: Checkpoint) -> None:
        """Raise RecipeError unless this recipe was made for exactly this model."""
        if self.source_fingerprint != checkpoint.fingerprint:
            raise RecipeError(
                f"recipe: made for {self.source_name!r} with fingerprint "
                f"{self.source_fingerprint[:16]}..., but {checkpoint.name!r} has "
                f"{checkpoint.fingerprint[:16]}...; make a new recipe for this model"
            )
        self.check_shape(checkpoint.config)

    def check_shape(self, config: ModelConfig) -> None:
        """Raise RecipeError unless everything that is kept exists in such a model."""
        if self.vocabulary is not None:
            _check_below(self.vocabulary, config.vocab_size, "recipe: vocabulary")
        if self.channels is not None:
            _check_below(self.channels, config.n_channels, "recipe: channels")
            if config.norm == "layer":
                raise RecipeError(
                    "recipe: channels: a model with layer norm keeps them all: its mean would "
                    "become that of others"
                )
        for position, kept in enumerate(self.layers):
            where = f"recipe: layers[{position}]"
            if kept.source >= len(config.layers):
                raise RecipeError(
                    f"{where}.source: the model has {len(config.layers)} layers, "
                    f"found {kept.source}"
                )
            layer = config.layers[kept.source]
            _check_attention(kept.attention, layer.attention, f"{where}.attention")
            _check_ffn(kept.ffn, layer.ffn, f"{where}.ffn")
            for link in (kept.attention, kept.ffn):
                if isinstance(link, NewLink) and (link.shape.rank or 0) > config.n_channels:
                    raise RecipeError(
                        f"{where}: expected links of rank {config.n_channels}, the number of "
                        f"channels, at most, found {link.shape.rank}"
                    )
            nothing_kept = kept.attention is None and kept.ffn is None
            if nothing_kept and (layer.attention, layer.ffn) != (None, None):
                raise RecipeError(f"{where}: keeps nothing; leave the layer out instead")

    def to_dict(self) -> dict[str, Any]:
        """The JSON form; what a recipe leaves whole is not named."""
        whole = {
            what: to_runs(getattr(self, what))
            for what in _OF_THE_MODEL
            if getattr(self, what) is not None
        }
        return {
            "version": SCHEMA_VERSION,
            "source": {"name": self.source_name, "fingerprint": self.source_fingerprint},
            **whole,
            "layers": [_layer_to_dict(layer) for layer in self.layers],
            **({} if self.zeros is None else {"zeros": self.zeros.to_dict()}),
        }

    def to_json(self) -> str:
        """JSON text, the same for the same recipe."""
        return json.dumps(self.to_dict(), indent=1) + "\n"

    @staticmethod
    def from_dict(value: Mapping[str, Any]) -> Recipe:
        """Read the JSON form.

        Raises
        ------
        RecipeError
            Another schema version, unknown or missing keys, wrong types, bad indices; the
            message says where.
        """
        optional = (*_OF_THE_MODEL, "zeros")
        fields = fields_of(value, "recipe", ("version", "source", "layers"), optional)
        version = integer(fields["version"], "recipe: version")
        if version != SCHEMA_VERSION:
            raise RecipeError(f"recipe: version: expected {SCHEMA_VERSION}, found {version}")
        source = fields_of(fields["source"], "recipe: source", ("name", "fingerprint"))
        layers = fields["layers"]
        if not isinstance(layers, list) or len(layers) > MAX_LAYERS:
            raise RecipeError(f"recipe: layers: expected a list of at most {MAX_LAYERS} layers")
        whole = {
            what: from_runs(string(fields[what], f"recipe: {what}"), f"recipe: {what}")
            for what in _OF_THE_MODEL
            if what in fields
        }
        parsed: list[KeptLayer] = []
        total = sum(map(len, whole.values()))
        for i, layer in enumerate(layers):
            parsed.append(_layer_from_dict(layer, f"recipe: layers[{i}]"))
            total += _index_count(parsed[-1])
            if total > MAX_INDICES:
                raise RecipeError(f"recipe: layers[{i}]: more than {MAX_INDICES} indices in all")
        return Recipe(
            string(source["name"], "recipe: source.name"),
            string(source["fingerprint"], "recipe: source.fingerprint"),
            tuple(parsed),
            zeros=Zeros.from_dict(fields["zeros"], "recipe: zeros") if "zeros" in fields else None,
            **whole,
        )

    @staticmethod
    def from_json(text: str) -> Recipe:
        """Read JSON text; see ``from_dict``."""
        try:
            value = json.loads(text, object_pairs_hook=unique)
        except (ValueError, RecursionError) as error:
            raise RecipeError(f"recipe: not valid JSON: {error}") from error
        return Recipe.from_dict(value)


def keep_all(index: int, layer: LayerConfig) -> KeptLayer:
    """The layer ``index``, whole."""
    attention: KeptAttention | KeptLink | None = None
    if isinstance(layer.attention, AttentionConfig):
        attention = KeptAttention(
            tuple(range(layer.attention.n_heads)), tuple(range(layer.attention.n_kv_heads))
        )
    elif layer.attention is not None:
        attention = KeptLink()
    ffn: KeptFfn | KeptLink | None = None
    if isinstance(layer.ffn, FfnConfig):
        ffn = KeptFfn(tuple(range(layer.ffn.n_neurons)))
    elif layer.ffn is not None:
        ffn = KeptLink()
    return KeptLayer(index, attention, ffn)


def keep_heads(attention: AttentionConfig, heads: tuple[int, ...]) -> KeptAttention | None:
    """Those query heads with the KV heads that they read; ``None`` where no head stays."""
    if not heads:
        return None
    return KeptAttention(heads, tuple(sorted({attention.q_to_kv[head] for head in heads})))


def _compose(first: Any, second: Any, where: str) -> Any:
    """What stays of a sub-block after two recipes."""
    if second is None:
        return None
    if first is not None and isinstance(second, NewLink):
        return second
    if isinstance(first, NewLink) and isinstance(second, KeptLink):
        return first
    if type(first) is not type(second):
        raise RecipeError(
            f"{where}: keeps {_describe(second)}, but the first recipe keeps {_describe(first)}"
        )
    if isinstance(first, KeptLink):
        return first
    if isinstance(first, KeptAttention):
        return KeptAttention(
            _pick(first.heads, second.heads, f"{where}.heads"),
            _pick(first.kv_heads, second.kv_heads, f"{where}.kv_heads"),
        )
    return KeptFfn(_pick(first.neurons, second.neurons, f"{where}.neurons"))


def _pick(first: tuple[int, ...], second: tuple[int, ...], where: str) -> tuple[int, ...]:
    _check_below(second, len(first), where)
    return tuple(first[index] for index in second)


def _pick_all(
    first: tuple[int, ...] | None, second: tuple[int, ...] | None, where: str
) -> tuple[int, ...] | None:
    """The same where ``None`` keeps all."""
    if first is None or second is None:
        return second if first is None else first
    return _pick(first, second, where)


def _describe(kept: object) -> str:
    if kept is None:
        return "nothing"
    if isinstance(kept, NewLink):
        return "a new link"
    return "a link" if isinstance(kept, KeptLink) else "units"


def _check_below(indices: tuple[int, ...], count: int, where: str) -> None:
    if indices[-1] >= count:
        raise RecipeError(f"{where}: expected indices below {count}, found {indices[-1]}")


def _check_kind(kept: object, present: object, where: str) -> None:
    found = "nothing" if present is None else "units"
    if isinstance(present, LinkConfig):
        found = "a link"
    if isinstance(kept, NewLink) and present is not None:
        return
    if kept is not None and _describe(kept) != found:
        raise RecipeError(f"{where}: keeps {_describe(kept)} where the model has {found}")


def _check_attention(
    kept: KeptAttention | KeptLink | NewLink | None,
    attention: AttentionConfig | LinkConfig | None,
    where: str,
) -> None:
    _check_kind(kept, attention, where)
    if not isinstance(kept, KeptAttention):
        return
    assert isinstance(attention, AttentionConfig)
    _check_below(kept.heads, attention.n_heads, f"{where}.heads")
    _check_below(kept.kv_heads, attention.n_kv_heads, f"{where}.kv_heads")
    if keep_heads(attention, kept.heads) != kept:
        read = to_runs(sorted({attention.q_to_kv[head] for head in kept.heads}))
        raise RecipeError(
            f"{where}.kv_heads: expected {read!r}, the KV heads that the kept heads read, "
            f"found {to_runs(kept.kv_heads)!r}"
        )


def _check_ffn(
    kept: KeptFfn | KeptLink | NewLink | None, ffn: FfnConfig | LinkConfig | None, where: str
) -> None:
    _check_kind(kept, ffn, where)
    if isinstance(kept, KeptFfn):
        assert isinstance(ffn, FfnConfig)
        _check_below(kept.neurons, ffn.n_neurons, f"{where}.neurons")


def _layer_to_dict(layer: KeptLayer) -> dict[str, Any]:
    attention: Any = None
    if isinstance(layer.attention, KeptAttention):
        attention = {
            "heads": to_runs(layer.attention.heads),
            "kv_heads": to_runs(layer.attention.kv_heads),
        }
    elif layer.attention is not None:
        attention = _link_to_json(layer.attention)
    ffn: Any = None
    if isinstance(layer.ffn, KeptFfn):
        ffn = {"neurons": to_runs(layer.ffn.neurons)}
    elif layer.ffn is not None:
        ffn = _link_to_json(layer.ffn)
    return {"source": layer.source, "attention": attention, "ffn": ffn}


def _link_to_json(link: KeptLink | NewLink) -> Any:
    if isinstance(link, KeptLink):
        return "link"
    return {"link": link.shape.kind, "rank": link.shape.rank}


def _layer_from_dict(value: Any, where: str) -> KeptLayer:
    fields = fields_of(value, where, ("source", "attention", "ffn"))
    attention: KeptAttention | KeptLink | NewLink | None = _link_from_json(
        fields["attention"], f"{where}.attention"
    )
    if attention is None and fields["attention"] is not None:
        at = f"{where}.attention"
        kept = fields_of(fields["attention"], at, ("heads", "kv_heads"))
        attention = KeptAttention(
            from_runs(string(kept["heads"], f"{at}.heads"), f"{at}.heads"),
            from_runs(string(kept["kv_heads"], f"{at}.kv_heads"), f"{at}.kv_heads"),
        )
    ffn: KeptFfn | KeptLink | NewLink | None = _link_from_json(fields["ffn"], f"{where}.ffn")
    if ffn is None and fields["ffn"] is not None:
        at = f"{where}.ffn"
        kept = fields_of(fields["ffn"], at, ("neurons",))
        ffn = KeptFfn(from_runs(string(kept["neurons"], f"{at}.neurons"), f"{at}.neurons"))
    return KeptLayer(integer(fields["source"], f"{where}.source"), attention, ffn)


def _link_from_json(value: Any, where: str) -> KeptLink | NewLink | None:
    """The link that a sub-block is, ``None`` where it is none."""
    if value == "link":
        return KeptLink()
    if not isinstance(value, Mapping) or "link" not in value:
        return None
    fields = fields_of(value, where, ("link", "rank"))
    rank = fields["rank"]
    try:
        return NewLink(LinkConfig(fields["link"], None if rank is None else integer(rank, where)))
    except ConfigError as error:
        raise RecipeError(f"{where}: {error}") from error


def _index_count(layer: KeptLayer) -> int:
    count = 0
    if isinstance(layer.attention, KeptAttention):
        count += len(layer.attention.heads) + len(layer.attention.kv_heads)
    if isinstance(layer.ffn, KeptFfn):
        count += len(layer.ffn.neurons)
    return count
