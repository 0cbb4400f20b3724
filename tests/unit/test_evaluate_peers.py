"""Peers that are not installed; those that are run in tests/parity."""

from __future__ import annotations

import importlib.util

import pytest

from slimformer.errors import ConfigError
from slimformer.evaluate.peers import PACKAGES, installed_peers


def test_only_what_can_be_imported_takes_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "llama_cpp" or None)
    assert installed_peers() == ["llama.cpp"]


def test_no_peer_at_all_says_where_they_come_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"slimformer\[peers\]"):
        installed_peers()
    assert len(PACKAGES) == 2
