"""The C++ core. Only ``slimformer.engine`` imports this module."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from slimformer.config import ModelConfig

_Weights: TypeAlias = Literal["f32", "bf16", "int8", "int4"]

__version__: str

def build_info() -> dict[str, Any]: ...
def layouts(tier: str | None = ...) -> dict[tuple[str, bool], int]: ...
def measure_roofline(*, threads: int, seconds: float = ...) -> dict[str, float]: ...

class PackedModel:
    def __init__(
        self,
        config: ModelConfig,
        *,
        weights: _Weights = ...,
        sparse: Literal["auto", "never", "smaller"] = ...,
        threads: int = ...,
        tier: str | None = ...,
    ) -> None: ...
    def load_tensor(self, name: str, values: npt.NDArray[Any], *, kept: bool = ...) -> None: ...
    def map_tensor(
        self,
        name: str,
        packed: npt.NDArray[np.uint8],
        *,
        weights: _Weights,
        sparse: bool,
    ) -> None: ...
    def finish(self) -> None: ...
    def tensors(
        self,
    ) -> dict[str, npt.NDArray[np.float32] | tuple[npt.NDArray[np.uint8], _Weights, bool]]: ...
    @property
    def tier(self) -> str: ...
    @property
    def threads(self) -> int: ...
    @property
    def weight_bytes(self) -> int: ...
    def forward(
        self,
        sessions: Sequence[Session],
        tokens: Sequence[npt.NDArray[np.int32]],
        *,
        logits: Literal["last", "all", "none"] = ...,
    ) -> npt.NDArray[np.float32]: ...
    def score(
        self, sessions: Sequence[Session], tokens: Sequence[npt.NDArray[np.int32]]
    ) -> list[npt.NDArray[np.float32]]: ...
    def embed(
        self, tokens: npt.NDArray[np.int32], lengths: Sequence[int] | None = ...
    ) -> npt.NDArray[np.float32]: ...
    def run_layers(
        self,
        hidden: npt.NDArray[np.float32],
        lengths: Sequence[int],
        *,
        first: int,
        last: int,
        plan: Plan | None = ...,
        moments: Mapping[tuple[int, str], Moments] | None = ...,
        capture: Sequence[tuple[int, str]] = ...,
    ) -> tuple[npt.NDArray[np.float32], dict[tuple[int, str], npt.NDArray[np.float32]]]: ...
    def logits(self, hidden: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]: ...
    def score_hidden(
        self, hidden: npt.NDArray[np.float32], targets: npt.NDArray[np.int32]
    ) -> npt.NDArray[np.float32]: ...

class Plan:
    def __init__(
        self,
        model: PackedModel,
        *,
        skip_attention: Sequence[int] = ...,
        skip_ffn: Sequence[int] = ...,
        exit_after: int | None = ...,
        heads: Mapping[int, Sequence[int]] | None = ...,
        value_dims: Mapping[int, Sequence[int]] | None = ...,
        neurons: Mapping[int, Sequence[int]] | None = ...,
        experts: Mapping[int, Sequence[int]] | None = ...,
        expert_neurons: Mapping[int, Mapping[int, Sequence[int]]] | None = ...,
    ) -> None: ...
    @property
    def steps(self) -> list[str]: ...

class Session:
    def __init__(
        self,
        model: PackedModel,
        *,
        plan: Plan | None = ...,
        kv: Literal["f32", "bf16", "int8"] = ...,
        capacity: int | None = ...,
        window: int | None = ...,
        sinks: int = ...,
    ) -> None: ...
    @property
    def position(self) -> int: ...
    @property
    def capacity(self) -> int: ...
    @property
    def kv_bytes(self) -> int: ...
    def fork(self) -> Session: ...
    def rewind(self, position: int) -> None: ...

class Sampler:
    def __init__(
        self,
        *,
        temperature: float = ...,
        top_k: int = ...,
        top_p: float = ...,
        min_p: float = ...,
        repetition_penalty: float = ...,
        seed: int = ...,
    ) -> None: ...
    def sample(self, logits: npt.NDArray[np.float32], history: npt.NDArray[np.int32]) -> int: ...

class Moments:
    def __init__(
        self,
        width: int,
        *,
        gram: bool = ...,
        target_width: int = ...,
        products: str = ...,
        threads: int = ...,
    ) -> None: ...
    def update(
        self, x: npt.NDArray[np.float32], target: npt.NDArray[np.float32] | None = ...
    ) -> None: ...
    @property
    def count(self) -> int: ...
    @property
    def sum(self) -> npt.NDArray[np.float64]: ...
    @property
    def sum_squares(self) -> npt.NDArray[np.float64]: ...
    @property
    def gram(self) -> npt.NDArray[np.float64]: ...
    @property
    def cross(self) -> npt.NDArray[np.float64]: ...
