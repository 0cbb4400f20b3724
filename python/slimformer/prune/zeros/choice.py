"""Which weights become zero, as pure data: what a recipe says of them."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast, get_args

from slimformer.config import ModelConfig
from slimformer.errors import ConfigError, RecipeError
from slimformer.prune.zeros.pattern import Pattern

Method = Literal["sparsegpt", "wanda", "magnitude"]
METHODS: tuple[Method, ...] = get_args(Method)

Sharing = Literal["loss", "even"]
SHARINGS: tuple[Sharing, ...] = get_args(Sharing)

_STAYS = re.compile(r"\.link\.|\.router\.")

MAX_MATRICES = 1 << 20
"""Most matrices a recipe may give shares of; a hostile file must not fill the memory."""


@dataclasses.dataclass(frozen=True)
class Zeros:
    """What is asked for: by which criterion, in which pattern, how many in which matrix.

    Parameters
    ----------
    method
        ``sparsegpt``, ``wanda`` or ``magnitude``.
    pattern
        Where zeros may stand.
    shares
        The share of zeros of each matrix, by its name in the model that has them; other matrices
        have none.

    Raises
    ------
    ConfigError
        A method or share that there is not.
    """

    method: Method
    pattern: Pattern
    shares: Mapping[str, float]

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ConfigError(
                f"zeros: expected one of {', '.join(METHODS)}, found {self.method!r:.40}"
            )
        for name, share in self.shares.items():
            if not 0 <= share < 1:
                raise ConfigError(
                    f"zeros: {name}: expected a share from 0 to below 1, found {share}"
                )

    def share(self, config: ModelConfig) -> float:
        """The share of zeros in the matrices of all layers."""
        sizes = layer_sizes(config)
        zeros = sum(self.shares.get(name, 0.0) * size for name, size in sizes.items())
        return zeros / max(1, sum(sizes.values()))

    def in_layers(self, kept: Sequence[tuple[int, Mapping[str, str]]]) -> Zeros:
        """The same zeros in what stays, under new numbers of layers and experts.

        ``kept``: for each layer that stays its number, and the old and the new names of its
        sub-blocks, or of its experts.
        """
        position = {
            f"layers.{source}.{old}": f"layers.{index}.{new}"
            for index, (source, places) in enumerate(kept)
            for old, new in places.items()
        }
        shares = {}
        for name, share in self.shares.items():
            if layer_of(name) is None:
                shares[name] = share
                continue
            owner, *part = name.rsplit(".", 2)
            if owner in position:
                shares[".".join((position[owner], *part))] = share
        return dataclasses.replace(self, shares=shares)

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            "method": self.method,
            "pattern": str(self.pattern),
            "shares": dict(self.shares),
        }

    @staticmethod
    def from_dict(value: Any, where: str) -> Zeros:
        """Read the JSON form.

        Raises
        ------
        RecipeError
            Unknown or missing keys, wrong types, or what the constructor refuses.
        """
        keys = {"method", "pattern", "shares"}
        if not isinstance(value, Mapping) or value.keys() != keys:
            raise RecipeError(f"{where}: expected an object of {', '.join(sorted(keys))}")
        shares = value["shares"]
        if not isinstance(shares, Mapping) or len(shares) > MAX_MATRICES:
            raise RecipeError(f"{where}.shares: expected an object of at most {MAX_MATRICES}")
        for name, share in shares.items():
            known = isinstance(share, int | float) and not isinstance(share, bool)
            if not known or not math.isfinite(share):
                raise RecipeError(f"{where}.shares: {name!r:.80}: expected a number")
        if not isinstance(value["pattern"], str) or not isinstance(value["method"], str):
            raise RecipeError(f"{where}: expected text for method and pattern")
        try:
            return Zeros(
                cast(Method, value["method"]),
                Pattern.parse(value["pattern"]),
                {name: float(share) for name, share in shares.items()},
            )
        except ConfigError as error:
            raise RecipeError(f"{where}: {error}") from error


def layer_of(name: str) -> int | None:
    """The layer that a tensor belongs to, by its name."""
    match = re.match(r"layers\.([0-9]{1,6})\.\w+\.", name)
    return None if match is None else int(match[1])


def layer_sizes(config: ModelConfig) -> dict[str, int]:
    """Weights of each matrix of attention and FFN, by name; small links and routers stay dense."""
    return {
        name: math.prod(shape)
        for name, shape in config.tensor_shapes().items()
        if layer_of(name) is not None and len(shape) == 2 and not _STAYS.search(name)
    }
