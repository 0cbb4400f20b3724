"""What a recipe keeps of one layer: of its attention and of its FFN.

Units are listed in the order in which they are stored afterwards.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, get_args

from slimformer.config import (
    AttentionConfig,
    FfnConfig,
    LayerConfig,
    LinkConfig,
    RoutedFfnConfig,
)
from slimformer.errors import ConfigError, RecipeError
from slimformer.prune.indices import check_ascending, check_indices, from_runs, to_runs
from slimformer.prune.json_values import fields_of, integer, string

HeadPart = Literal["value_dims", "rotary_pairs"]
"""What heads consist of and lose alike, all heads of a layer."""

HEAD_PARTS: tuple[HeadPart, ...] = get_args(HeadPart)


@dataclasses.dataclass(frozen=True)
class KeptAttention:
    """Query heads that stay, and exactly the KV heads that they read.

    ``value_dims`` are the entries that stay of each value head, ``rotary_pairs`` the rotary pairs,
    ascending, that stay of each query and key head; ``None``: all of them.
    """

    heads: tuple[int, ...]
    kv_heads: tuple[int, ...]
    value_dims: tuple[int, ...] | None = None
    rotary_pairs: tuple[int, ...] | None = None

    @property
    def parts(self) -> dict[HeadPart, tuple[int, ...]]:
        """What stays of each head, where not all of it does."""
        kept = {part: getattr(self, part) for part in HEAD_PARTS}
        return {part: units for part, units in kept.items() if units is not None}


@dataclasses.dataclass(frozen=True)
class KeptFfn:
    """Neurons that stay."""

    neurons: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class KeptExperts:
    """Experts of a routed FFN that stay, and the neurons that stay of each."""

    experts: tuple[int, ...]
    neurons: tuple[tuple[int, ...], ...]


@dataclasses.dataclass(frozen=True)
class KeptLink:
    """A link of the source, which has no units and stays as it is."""


@dataclasses.dataclass(frozen=True)
class NewLink:
    """A link of this shape stands in for a sub-block that goes.

    Surgery gives it weights of zero, so that it does nothing; the repair fits them.
    """

    shape: LinkConfig


KeptOfAttention = KeptAttention | KeptLink | NewLink
KeptOfFfn = KeptFfn | KeptExperts | KeptLink | NewLink
"""What may stay of an attention and of an FFN, or stand in for it."""


@dataclasses.dataclass(frozen=True)
class KeptLayer:
    """What stays of the source's layer ``source``; ``None``: the sub-block goes.

    A link may stand in for one that goes, or in one of the two places for the whole layer. A layer
    of which nothing stays is left out of the recipe. Only a layer that is empty in the source
    already is listed with both sub-blocks ``None``.
    """

    source: int
    attention: KeptOfAttention | None
    ffn: KeptOfFfn | None

    @property
    def rotary_pairs(self) -> tuple[int, ...] | None:
        """The pairs that stay of its heads; ``None``: all, or there are no heads."""
        return self.attention.rotary_pairs if isinstance(self.attention, KeptAttention) else None

    @property
    def places(self) -> dict[str, str]:
        """What has units and stays, by its name in the source: attention, FFN or an expert."""
        kept = {"attention": self.attention, "ffn": self.ffn}
        places = {n: n for n, one in kept.items() if isinstance(one, KeptAttention | KeptFfn)}
        if isinstance(self.ffn, KeptExperts):
            for place, expert in enumerate(self.ffn.experts):
                places[f"ffn.experts.{expert}"] = f"ffn.experts.{place}"
        return places


def keep_all(index: int, layer: LayerConfig) -> KeptLayer:
    """The layer ``index``, whole."""
    attention: KeptAttention | KeptLink | None = None
    if isinstance(layer.attention, AttentionConfig):
        attention = KeptAttention(
            tuple(range(layer.attention.n_heads)), tuple(range(layer.attention.n_kv_heads))
        )
    elif layer.attention is not None:
        attention = KeptLink()
    ffn: KeptOfFfn | None = None
    if isinstance(layer.ffn, FfnConfig):
        ffn = KeptFfn(tuple(range(layer.ffn.n_neurons)))
    elif isinstance(layer.ffn, RoutedFfnConfig):
        ffn = keep_experts(layer.ffn, tuple(range(len(layer.ffn.experts))))
    elif layer.ffn is not None:
        ffn = KeptLink()
    return KeptLayer(index, attention, ffn)


def keep_heads(attention: AttentionConfig, heads: tuple[int, ...]) -> KeptAttention | None:
    """Those query heads with the KV heads that they read; ``None`` where no head stays."""
    if not heads:
        return None
    return KeptAttention(heads, tuple(sorted({attention.q_to_kv[head] for head in heads})))


def part_count(attention: AttentionConfig, part: HeadPart) -> int:
    """How many of these each head has of which some may go; 0: none may.

    A norm of each head by itself divides by its width: without some of its pairs the others would
    come out larger.
    """
    if part == "value_dims":
        return attention.value_dim
    if attention.rope is None or attention.qk_norm == "head":
        return 0
    return attention.rope.rotary_dim // 2


def keep_experts(ffn: RoutedFfnConfig, experts: tuple[int, ...]) -> KeptExperts | None:
    """Those experts, whole; ``None`` where none stays."""
    if not experts:
        return None
    return KeptExperts(experts, tuple(tuple(range(ffn.experts[expert])) for expert in experts))


def compose(first: KeptLayer, second: KeptLayer, where: str) -> KeptLayer:
    """What stays of a layer of which first one and then the other is kept.

    Raises
    ------
    RecipeError
        The second keeps something that the first has removed.
    """
    attention: Any = _same_kind(first.attention, second.attention, f"{where}.attention")
    if isinstance(first.attention, KeptAttention) and isinstance(second.attention, KeptAttention):
        at = f"{where}.attention"
        attention = KeptAttention(
            pick(first.attention.heads, second.attention.heads, f"{at}.heads"),
            pick(first.attention.kv_heads, second.attention.kv_heads, f"{at}.kv_heads"),
            **{
                part: pick_all(
                    getattr(first.attention, part), getattr(second.attention, part), f"{at}.{part}"
                )
                for part in HEAD_PARTS
            },
        )
    ffn: Any = _same_kind(first.ffn, second.ffn, f"{where}.ffn")
    if isinstance(first.ffn, KeptFfn) and isinstance(second.ffn, KeptFfn):
        ffn = KeptFfn(pick(first.ffn.neurons, second.ffn.neurons, f"{where}.ffn.neurons"))
    if isinstance(first.ffn, KeptExperts) and isinstance(second.ffn, KeptExperts):
        at = f"{where}.ffn.neurons"
        places = second.ffn.experts
        experts = pick(first.ffn.experts, places, f"{where}.ffn.experts")
        before = [first.ffn.neurons[place] for place in places]
        pairs = zip(before, second.ffn.neurons, strict=True)
        ffn = KeptExperts(experts, tuple(pick(one, other, at) for one, other in pairs))
    return KeptLayer(first.source, attention, ffn)


def check_kept(kept: KeptLayer, where: str) -> None:
    """Raise RecipeError unless all lists name units once, and none is empty."""
    if isinstance(kept.attention, KeptAttention):
        check_indices(kept.attention.heads, f"{where}.attention.heads")
        check_indices(kept.attention.kv_heads, f"{where}.attention.kv_heads")
        for part, units in kept.attention.parts.items():
            check = check_ascending if part == "rotary_pairs" else check_indices
            check(units, f"{where}.attention.{part}")
    if isinstance(kept.ffn, KeptFfn):
        check_indices(kept.ffn.neurons, f"{where}.ffn.neurons")
    if isinstance(kept.ffn, KeptExperts):
        check_indices(kept.ffn.experts, f"{where}.ffn.experts")
        if len(kept.ffn.neurons) != len(kept.ffn.experts):
            raise RecipeError(
                f"{where}.ffn.neurons: expected a list for each of {len(kept.ffn.experts)} "
                f"experts, found {len(kept.ffn.neurons)}"
            )
        for neurons in kept.ffn.neurons:
            check_indices(neurons, f"{where}.ffn.neurons")


def check_exists(kept: KeptLayer, layer: LayerConfig, n_channels: int, where: str) -> None:
    """Raise RecipeError unless a layer has everything that is kept of it, and links fit it."""
    _check_kind(kept.attention, layer.attention, f"{where}.attention")
    _check_kind(kept.ffn, layer.ffn, f"{where}.ffn")
    if isinstance(kept.attention, KeptAttention):
        assert isinstance(layer.attention, AttentionConfig)
        _check_attention(kept.attention, layer.attention, f"{where}.attention")
    if isinstance(kept.ffn, KeptFfn):
        assert isinstance(layer.ffn, FfnConfig)
        check_below(kept.ffn.neurons, layer.ffn.n_neurons, f"{where}.ffn.neurons")
    if isinstance(kept.ffn, KeptExperts):
        assert isinstance(layer.ffn, RoutedFfnConfig)
        check_below(kept.ffn.experts, len(layer.ffn.experts), f"{where}.ffn.experts")
        for expert, neurons in zip(kept.ffn.experts, kept.ffn.neurons, strict=True):
            at = f"{where}.ffn.neurons of expert {expert}"
            check_below(neurons, layer.ffn.experts[expert], at)
    for link in (kept.attention, kept.ffn):
        if isinstance(link, NewLink) and (link.shape.rank or 0) > n_channels:
            raise RecipeError(
                f"{where}: expected links of rank {n_channels}, the number of channels, at most, "
                f"found {link.shape.rank}"
            )
    nothing_kept = kept.attention is None and kept.ffn is None
    if nothing_kept and (layer.attention, layer.ffn) != (None, None):
        raise RecipeError(f"{where}: keeps nothing; leave the layer out instead")


def count_indices(kept: KeptLayer) -> int:
    """Number of units that are listed."""
    count = 0
    if isinstance(kept.attention, KeptAttention):
        count += len(kept.attention.heads) + len(kept.attention.kv_heads)
        count += sum(map(len, kept.attention.parts.values()))
    if isinstance(kept.ffn, KeptFfn):
        count += len(kept.ffn.neurons)
    if isinstance(kept.ffn, KeptExperts):
        count += len(kept.ffn.experts) + sum(map(len, kept.ffn.neurons))
    return count


def layer_to_dict(kept: KeptLayer) -> dict[str, Any]:
    """The JSON form."""
    attention: Any = None
    if isinstance(kept.attention, KeptAttention):
        attention = {
            "heads": to_runs(kept.attention.heads),
            "kv_heads": to_runs(kept.attention.kv_heads),
        }
        attention |= {part: to_runs(units) for part, units in kept.attention.parts.items()}
    elif kept.attention is not None:
        attention = _link_to_json(kept.attention)
    ffn: Any = None
    if isinstance(kept.ffn, KeptFfn):
        ffn = {"neurons": to_runs(kept.ffn.neurons)}
    elif isinstance(kept.ffn, KeptExperts):
        neurons = [to_runs(own) for own in kept.ffn.neurons]
        ffn = {"experts": to_runs(kept.ffn.experts), "neurons": neurons}
    elif kept.ffn is not None:
        ffn = _link_to_json(kept.ffn)
    return {"source": kept.source, "attention": attention, "ffn": ffn}


def layer_from_dict(value: Any, where: str) -> KeptLayer:
    """Read the JSON form.

    Raises
    ------
    RecipeError
        Unknown or missing keys, wrong types, lists of units that are none.
    """
    fields = fields_of(value, where, ("source", "attention", "ffn"))
    attention: KeptOfAttention | None = _link_from_json(fields["attention"], f"{where}.attention")
    if attention is None and fields["attention"] is not None:
        at = f"{where}.attention"
        kept = fields_of(fields["attention"], at, ("heads", "kv_heads"), HEAD_PARTS)
        attention = KeptAttention(
            **{unit: _units(units, f"{at}.{unit}") for unit, units in kept.items()}
        )
    ffn = _ffn_from(fields["ffn"], f"{where}.ffn")
    return KeptLayer(integer(fields["source"], f"{where}.source"), attention, ffn)


def _ffn_from(value: Any, where: str) -> KeptOfFfn | None:
    if value is None:
        return None
    link = _link_from_json(value, where)
    if link is not None:
        return link
    if isinstance(value, dict) and "experts" in value:
        kept = fields_of(value, where, ("experts", "neurons"))
        at = f"{where}.neurons"
        if not isinstance(kept["neurons"], list):
            raise RecipeError(f"{at}: expected a list, found {type(kept['neurons']).__name__}")
        return KeptExperts(
            _units(kept["experts"], f"{where}.experts"),
            tuple(_units(neurons, at) for neurons in kept["neurons"]),
        )
    kept = fields_of(value, where, ("neurons",))
    return KeptFfn(_units(kept["neurons"], f"{where}.neurons"))


def _link_to_json(link: KeptLink | NewLink) -> Any:
    if isinstance(link, KeptLink):
        return "link"
    return {"link": link.shape.kind, "rank": link.shape.rank}


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


def _units(value: Any, where: str) -> tuple[int, ...]:
    return from_runs(string(value, where), where)


def _same_kind(first: object, second: object, where: str) -> object:
    """What stays if both are of one kind and the second keeps all of the first."""
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
    return first


def pick(first: tuple[int, ...], second: tuple[int, ...], where: str) -> tuple[int, ...]:
    """Of the units that are kept first, those that are kept then.

    Raises
    ------
    RecipeError
        There are not so many.
    """
    check_below(second, len(first), where)
    return tuple(first[index] for index in second)


def pick_all(
    first: tuple[int, ...] | None, second: tuple[int, ...] | None, where: str
) -> tuple[int, ...] | None:
    """The same where ``None`` keeps all."""
    if first is None or second is None:
        return second if first is None else first
    return pick(first, second, where)


def _describe(kept: object) -> str:
    if kept is None:
        return "nothing"
    if isinstance(kept, NewLink):
        return "a new link"
    if isinstance(kept, (KeptExperts, RoutedFfnConfig)):
        return "experts"
    return "a link" if isinstance(kept, (KeptLink, LinkConfig)) else "units"


def check_below(indices: tuple[int, ...], count: int, where: str) -> None:
    """Raise RecipeError unless the indices are those of ``count`` units."""
    if max(indices) >= count:
        raise RecipeError(f"{where}: expected indices below {count}, found {max(indices)}")


def _check_kind(kept: object, present: object, where: str) -> None:
    if isinstance(kept, NewLink) and present is not None:
        return
    if kept is not None and _describe(kept) != _describe(present):
        raise RecipeError(
            f"{where}: keeps {_describe(kept)} where the model has {_describe(present)}"
        )


def _check_attention(kept: KeptAttention, attention: AttentionConfig, where: str) -> None:
    check_below(kept.heads, attention.n_heads, f"{where}.heads")
    check_below(kept.kv_heads, attention.n_kv_heads, f"{where}.kv_heads")
    for part, units in kept.parts.items():
        _check_part(part, units, attention, f"{where}.{part}")
    read = {attention.q_to_kv[head] for head in kept.heads}
    if read != set(kept.kv_heads):
        raise RecipeError(
            f"{where}.kv_heads: expected {to_runs(sorted(read))!r}, which the kept heads read, "
            f"found {to_runs(kept.kv_heads)!r}"
        )


def _check_part(
    part: HeadPart, units: tuple[int, ...], attention: AttentionConfig, where: str
) -> None:
    if part_count(attention, part) == 0:
        why = "its heads do not rotate" if attention.rope is None else "its heads are normalised"
        raise RecipeError(f"{where}: none may go from this layer, since {why}; keep all of it")
    check_below(units, part_count(attention, part), where)
