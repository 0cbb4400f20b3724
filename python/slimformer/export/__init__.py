"""Models for the engines that people already run: llama.cpp and its kin, transformers."""

from __future__ import annotations

from slimformer.export.blocks import Change
from slimformer.export.exporting import Export, Format, export

__all__ = ["Change", "Export", "Format", "export"]
