"""The recipe: what a pruned model keeps of its source, as pure data.

A recipe names its source by fingerprint and lists, for each layer that stays, the query heads,
KV heads, entries of value heads, rotary pairs, experts and neurons that stay, in the order in which
they are stored from then on, and the links that stand in for what goes; for the whole model the
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
from slimformer.config import MAX_LAYERS, ModelConfig
from slimformer.errors import RecipeError
from slimformer.prune.indices import check_ascending, from_runs, to_runs
from slimformer.prune.json_values import fields_of, integer, string, unique
from slimformer.prune.kept import (
    HEAD_PARTS,
    HeadPart,
    KeptAttention,
    KeptExperts,
    KeptFfn,
    KeptLayer,
    KeptLink,
    NewLink,
    check_below,
    check_exists,
    check_kept,
    compose,
    count_indices,
    keep_all,
    keep_experts,
    keep_heads,
    layer_from_dict,
    layer_to_dict,
    part_count,
    pick_all,
)
from slimformer.prune.zeros.choice import Zeros

__all__ = [
    "HEAD_PARTS",
    "HeadPart",
    "KeptAttention",
    "KeptExperts",
    "KeptFfn",
    "KeptLayer",
    "KeptLink",
    "NewLink",
    "Recipe",
    "keep_all",
    "keep_experts",
    "keep_heads",
    "part_count",
]

SCHEMA_VERSION = 1

_OF_THE_MODEL = ("vocabulary", "channels")
"""What is kept of the model as a whole."""

MAX_INDICES = 1 << 23
"""Most units a recipe may list in all; a hostile file must not fill the memory."""


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
        Indices that are negative or repeated, tokens or channels that are unsorted, or an empty
        list of them.
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
            check_kept(layer, where)

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
            layers.append(compose(self.layers[second.source], second, where))
        zeros = other.zeros
        if zeros is None and self.zeros is not None:
            zeros = self.zeros.in_layers([(one.source, one.places) for one in other.layers])
        whole: dict[str, Any] = {
            what: pick_all(getattr(self, what), getattr(other, what), f"recipe: {what}")
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
            check_below(self.vocabulary, config.vocab_size, "recipe: vocabulary")
        if self.channels is not None:
            check_below(self.channels, config.n_channels, "recipe: channels")
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
            check_exists(kept, config.layers[kept.source], config.n_channels, where)

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
            "layers": [layer_to_dict(layer) for layer in self.layers],
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
            parsed.append(layer_from_dict(layer, f"recipe: layers[{i}]"))
            total += count_indices(parsed[-1])
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
