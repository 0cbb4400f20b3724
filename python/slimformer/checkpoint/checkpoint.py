"""A model at rest: its shape, its tensors (read when asked for) and its tokenizer."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from typing import Any, Literal

import ml_dtypes
import numpy as np
import numpy.typing as npt

from slimformer.config import ModelConfig
from slimformer.config_settings import all_settings
from slimformer.errors import FormatError

DTYPES: dict[str, np.dtype[Any]] = {
    "f32": np.dtype(np.float32),
    "f16": np.dtype(np.float16),
    "bf16": np.dtype(ml_dtypes.bfloat16),
}
"""The element types that a model's tensor may have once it has been read."""

STORED_DTYPES: dict[str, np.dtype[Any]] = {**DTYPES, "u8": np.dtype(np.uint8)}
"""Those that tensors of files have: masks, too."""

DtypeChoice = Literal["auto", "f32", "bf16", "f16"]
"""What tensors are rounded to; ``auto`` keeps each tensor's own type."""


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One tensor that is read, dequantised or sliced only when it is asked for.

    ``read_entry`` reads what is at one place of the first axis, without the rest.
    """

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], npt.NDArray[Any]]
    read_entry: Callable[[int], npt.NDArray[Any]] | None = None

    @staticmethod
    def of(array: npt.NDArray[Any]) -> Tensor:
        """A tensor that is already in memory."""
        names = {dtype: name for name, dtype in STORED_DTYPES.items()}
        return Tensor(tuple(array.shape), names[array.dtype], lambda: array)

    def entry(self, index: int) -> Tensor:
        """What is at one place of the first axis, as a tensor of its own."""
        read_entry = self.read_entry or (lambda place: self.read()[place])
        return Tensor(self.shape[1:], self.dtype, lambda: read_entry(index))

    def mapped(
        self,
        make: Callable[[npt.NDArray[np.float32]], npt.NDArray[Any]],
        *,
        shape: tuple[int, ...] | None = None,
        dtype: str | None = None,
    ) -> Tensor:
        """What ``make`` gives of the values as float32, rounded to this type or another one.

        It is made whenever it is read. ``shape`` is that of the result if it is another.
        """
        stored = self.dtype if dtype is None else dtype

        def read() -> npt.NDArray[Any]:
            return make(np.asarray(self.read(), dtype=np.float32)).astype(DTYPES[stored])

        return Tensor(self.shape if shape is None else shape, stored, read)

    @property
    def nbytes(self) -> int:
        """Bytes once read."""
        return int(np.prod(self.shape, dtype=np.int64)) * STORED_DTYPES[self.dtype].itemsize


@dataclasses.dataclass(frozen=True)
class TokenizerAssets:
    """What a tokenizer is made of, independent of the file it came from.

    ``tokenizer_json`` is the text of a ``tokenizer.json``; ``bos`` and ``eos`` are token
    texts. ``add_bos`` says whether the model asks for a beginning-of-sequence token.
    ``stop_ids`` are the ids that end a generation.
    """

    tokenizer_json: str
    chat_template: str | None = None
    bos: str | None = None
    eos: str | None = None
    add_bos: bool = False
    stop_ids: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """An immutable model: ``tensors`` holds exactly the names of ``config.tensor_shapes()``.

    ``recipe`` is the JSON form of the recipe that made it from its source, if one did.
    ``quantised`` says that tensors were expanded from fewer bits than their dtype has, ``sparse``
    that matrices are saved without their zeros.
    """

    name: str
    config: ModelConfig
    tensors: Mapping[str, Tensor]
    tokenizer: TokenizerAssets | None = None
    recipe: Mapping[str, Any] | None = None
    quantised: bool = False
    sparse: bool = False

    def __post_init__(self) -> None:
        expected = self.config.tensor_shapes()
        missing = sorted(expected.keys() - self.tensors.keys())
        extra = sorted(self.tensors.keys() - expected.keys())
        if missing or extra:
            raise FormatError(
                f"{self.name}: missing tensors {missing[:5]}, unexpected tensors {extra[:5]}"
            )
        for name, shape in expected.items():
            if self.tensors[name].shape != shape:
                raise FormatError(
                    f"{self.name}: tensor {name}: expected shape {shape}, "
                    f"found {self.tensors[name].shape}"
                )

    def read(self, name: str) -> npt.NDArray[Any]:
        """The values of one tensor, in its own dtype; treat them as read-only."""
        return self.tensors[name].read()

    def read_f32(self, name: str) -> npt.NDArray[np.float32]:
        """The values of one tensor as float32."""
        return np.asarray(self.read(name), dtype=np.float32)

    def with_tensors(self, values: Mapping[str, npt.NDArray[Any]]) -> Checkpoint:
        """The same model with some tensors replaced by arrays of the same shape."""
        tensors = {**self.tensors, **{name: Tensor.of(array) for name, array in values.items()}}
        return dataclasses.replace(self, tensors=tensors)

    def save(self, path: str | os.PathLike[str], *, dtype: DtypeChoice = "auto") -> None:
        """Write the model as a folder; see ``slimformer.checkpoint.save``."""
        from slimformer.checkpoint.saving import save

        save(self, path, dtype=dtype)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors once read."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the shape and every tensor's values: what a recipe is tied to."""
        digest = hashlib.sha256()
        digest.update(json.dumps(all_settings(self.config), sort_keys=True).encode())
        for name in self.config.tensor_shapes():
            tensor = self.tensors[name]
            digest.update(f"{name} {tensor.dtype} {tensor.shape}".encode())
            digest.update(np.ascontiguousarray(tensor.read()).view(np.uint8).data)
        return digest.hexdigest()
