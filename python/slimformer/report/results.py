"""What a comparison of models found: plain data that is saved, and read back for the page."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from slimformer.errors import DataError, StorageError

SCHEMA_VERSION = 1

FILE_NAME = "results.json"


@dataclasses.dataclass(frozen=True)
class Quality:
    """One text or task and how a model did on it; a text has no accuracy, a task no tokens.

    ``perplexity`` is ``None`` where it overflows. That of a task is of its right answers.
    """

    name: str
    perplexity: float | None
    bits_per_byte: float | None = None
    tokens: int | None = None
    accuracy: float | None = None
    standard_error: float | None = None
    items: int | None = None


@dataclasses.dataclass(frozen=True)
class Timing:
    """Speed and memory of one model; ratios are to the first model of the comparison."""

    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    prefill_ratio: float
    decode_ratio: float
    load_s: float
    peak_memory_bytes: int
    weight_bytes: int


@dataclasses.dataclass(frozen=True)
class ModelResults:
    """Everything that was found about one model.

    ``layers`` is as in ``slimformer.report.summary``; ``source_layers`` says which layer of
    the first model each of them comes from.
    """

    name: str
    parameters: int
    non_embedding_parameters: int
    layers: list[dict[str, Any]]
    source_layers: list[int]
    quality: list[Quality]
    timing: Timing | None
    sample: str | None


@dataclasses.dataclass(frozen=True)
class Importance:
    """What each sub-block of the first model matters, by the criterion named."""

    criterion: str
    attention: list[float | None]
    ffn: list[float | None]


@dataclasses.dataclass(frozen=True)
class Results:
    """A comparison: the first model is the dense one, the second was made from it.

    ``measured_with``, ``evaluated_on`` and ``prompt`` are ``None`` where only shapes are known.
    """

    title: str
    version: str
    measured_with: str | None
    calibrated_on: str
    evaluated_on: str | None
    prompt: str | None
    models: list[ModelResults]
    importance: Importance | None
    warnings: list[str]
    notes: list[str]

    def save(self, folder: Path) -> Path:
        """Write ``results.json`` into a folder.

        Raises
        ------
        StorageError
            The file cannot be written.
        """
        path = folder / FILE_NAME
        fields = {"schema_version": SCHEMA_VERSION, **dataclasses.asdict(self)}
        try:
            path.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise StorageError(f"{path}: {error.strerror}") from error
        return path

    @staticmethod
    def load(path: Path) -> Results:
        """Read what ``save`` wrote.

        Raises
        ------
        StorageError
            The file cannot be read.
        DataError
            It is not what ``save`` writes.
        """
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise StorageError(f"{path}: {error.strerror}") from error
        except ValueError as error:
            raise DataError(f"{path}: expected JSON, found {error}") from error
        if not isinstance(fields, dict) or fields.pop("schema_version", None) != SCHEMA_VERSION:
            raise DataError(f"{path}: expected results with schema_version {SCHEMA_VERSION}")
        try:
            models = [_model_of(model) for model in fields.pop("models")]
            importance = fields.pop("importance")
            return Results(
                **fields,
                models=models,
                importance=Importance(**importance) if importance else None,
            )
        except (KeyError, TypeError) as error:
            raise DataError(f"{path}: not complete, or not results: {error}") from error


def _model_of(fields: dict[str, Any]) -> ModelResults:
    quality = [Quality(**item) for item in fields.pop("quality")]
    timing = fields.pop("timing")
    return ModelResults(**fields, quality=quality, timing=Timing(**timing) if timing else None)
