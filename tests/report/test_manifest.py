"""Manifests as reports read them."""

from __future__ import annotations

import pytest

from llmopt.errors import RequestError
from llmopt.model.results import parse
from llmopt.report.manifest import Manifest


def test_an_original_without_a_manifest_of_ours() -> None:
    assert parse(Manifest, {}, "it").ledger == []


def test_a_malformed_one_names_the_place() -> None:
    with pytest.raises(RequestError, match=r"the manifest cannot be read: ledger\.0\.action"):
        parse(Manifest, {"ledger": [{"name": "w", "actions": ["lost"]}]}, "the manifest")
