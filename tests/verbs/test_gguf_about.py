"""What GGUF files say of their model: kept from file to file, taken from cards, given by users."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from llmopt import artifact
from llmopt.errors import RecipeError
from llmopt.formats.gguf.container import Typed, read_gguf
from llmopt.formats.gguf.writer import TensorEntry, write_gguf
from llmopt.formats.imatrix import read_imatrix
from tests.verbs.test_gguf import converted, make_model, plan_of

CARD = """---
license: other
license_name: tiny
license_link: LICENSE
language: [en, no]
tags: [text, small]
pipeline_tag: text-generation
base_model: org/Base-1B
datasets: [org/words]
author: [1, {2: 3}]
model_name: Tiny
---
# Tiny
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = make_model(tmp_path, hidden_size=64, intermediate_size=64)
    (folder / "README.md").write_text(CARD)
    return folder


def read(made: artifact.Artifact) -> dict[str, Any]:
    return dict(read_gguf(made.path / "model.gguf").metadata)


def extended(tmp_path: Path, model: Path, **keys: Any) -> Path:
    """A GGUF file of another tool: ours, with keys added."""
    made = converted(tmp_path / "base", model, preset="F32", calibrated=False)
    source = read_gguf(made.path / "model.gguf")
    entries = []
    data = (made.path / "model.gguf").read_bytes()
    for each in source.tensors.values():
        piece = data[each.start : each.end]
        entries.append(
            TensorEntry(each.name, each.type_id, each.shape, lambda piece=piece: [piece])
        )  # type: ignore[misc]
    path = tmp_path / "theirs.gguf"
    write_gguf(path, {**source.metadata, **keys}, entries)
    return path


def test_a_file_keeps_what_llama_quantize_keeps(tmp_path: Path, model: Path) -> None:
    """Key by key and type by type, unknown ones of other tools included."""
    llama_cpp = pytest.importorskip("llama_cpp")
    source = extended(
        tmp_path, model, **{
            "general.license": "apache-2.0", "general.quantized_by": "them", "general.name": "N",
            "vendor.flag": True, "vendor.wide": 1 << 40, "vendor.list": [1, -2], "general.url": "u",
            "vendor.small": Typed(-3, 1), "vendor.double": Typed(0.1, 12),
            "vendor.empty": Typed("", 8), "vendor.bytes": b"\x00\xff",
            "vendor.floats": Typed([0.5, 1e300], 9, 12),
            "llama.vendor": 7, "split.count": Typed(1, 2), "tokenizer.ggml.suppress_tokens": [3],
        }
    )  # fmt: skip
    made = converted(tmp_path, source, preset="Q8_0", calibrated=False)
    params = llama_cpp.llama_model_quantize_default_params()
    params.nthread, params.ftype = 1, llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0
    theirs = tmp_path / "quantized.gguf"
    paths = str(source).encode(), str(theirs).encode()
    assert llama_cpp.llama_model_quantize(*paths, ctypes.byref(params)) == 0
    ours = read_gguf(made.path / "model.gguf").typed
    assert ours == read_gguf(theirs).typed
    assert ours["vendor.double"] == Typed(0.1, 12)
    assert "tokenizer" not in made.manifest["evidence"]
    named = converted(tmp_path / "named", source, preset="Q8_0", calibrated=False, name="Mine")
    assert read(named)["general.name"] == "Mine"
    assert read(named)["general.license"] == "apache-2.0"


def test_a_folder_s_card_is_carried_over_and_back(tmp_path: Path, model: Path) -> None:
    made = converted(tmp_path, model, preset="F16", calibrated=False)
    found = read(made)
    said = {key: value for key, value in found.items() if key.startswith("general.")}
    assert {key: said.pop(f"general.{key}") for key in ("architecture", "type", "file_type")}
    assert said.pop("general.quantization_version") == 2
    assert said == {
        "general.name": "Tiny",
        "general.license": "other",
        "general.license.name": "tiny",
        "general.license.link": "LICENSE",
        "general.languages": ["en", "no"],
        "general.tags": ["text", "small", "text-generation"],
        "general.base_model.count": 1,
        "general.base_model.0.name": "Base 1B",
        "general.base_model.0.organization": "Org",
        "general.base_model.0.repo_url": "https://huggingface.co/org/Base-1B",
        "general.dataset.count": 1,
        "general.dataset.0.name": "Words",
        "general.dataset.0.organization": "Org",
        "general.dataset.0.repo_url": "https://huggingface.co/org/words",
    }
    # as a file of its own, without the manifest that knows more
    path = (made.path / "model.gguf").rename(tmp_path / "alone.gguf")
    back = converted(tmp_path / "back", path, to="hf", calibrated=False)
    card = yaml.safe_load((back.path / artifact.CARD).read_text().split("---")[1])
    assert (card["license"], card["license_name"]) == ("other", "tiny")
    assert card["language"] == ["en", "no"]
    assert card["base_model"] == "org/Base-1B"
    assert "small" in card["tags"]


def test_what_users_say_has_the_last_word(tmp_path: Path, model: Path) -> None:
    metadata = {
        "general.author": "A. B.", "general.tags": ["mine"], "general.version": "1.0",
        "my.count": 7, "my.share": 0.5, "my.flag": True, "my.list": [1, 1 << 40],
    }  # fmt: skip
    settings = {"preset": "F16", "calibrated": False, "name": "Phi-3"}
    made = converted(tmp_path, model, metadata=metadata, **settings)
    found = read(made)
    assert {key: found[key] for key in metadata} == metadata
    assert found["general.name"] == "Phi 3"  # whose tokens llama.cpp would ask for
    assert found["general.license"] == "other"
    plain = plan_of(tmp_path, model, **settings).steps[0]
    other = plan_of(tmp_path, model, metadata=metadata, **settings).steps[0]
    assert plain.digest_key({"model": "d"}) != other.digest_key({"model": "d"})


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("general.architecture", "llama", "cannot be set"),
        ("general.alignment", 64, "cannot be set"),
        ("general.name", "x", r"--name"),
        ("tokenizer.ggml.model", "x", "cannot be set"),
        ("split.count", 2, "cannot be set"),
        ("llama.block_count", 2, "llama.block_count is what the model makes it"),
        ("general.version", 1.0, "is a text"),
        ("general.author", ["a"], "is a text"),
        ("general.tags", [1], "is a list of texts"),
        ("my key", "x", "is no key"),
        ("my.key", None, "is no text, bool or number"),
        ("my.key", {"a": 1}, "is no text, bool or number"),
        ("my.key", [], "is empty, or mixes types"),
        ("my.key", [1, "a"], "is empty, or mixes types"),
        ("my.key", 1 << 70, "64 bits"),
        ("my.key", float("inf"), "is no text, bool or number"),
        ("my.key", 1e39, "is no text, bool or number"),
        ("my.key", "\ud800", "is not UTF-8"),
        ("my.key", " ", "has no text"),
    ],
)
def test_what_users_cannot_say(
    tmp_path: Path, model: Path, key: str, value: Any, words: str
) -> None:
    with pytest.raises(RecipeError) as refused:
        plan_of(tmp_path, model, calibrated=False, metadata={key: value})
    assert re.search(words, f"{refused.value.message} {refused.value.hint}")


@pytest.mark.parametrize("card", ["[" * 900, "&a [*a]"])
def test_cards_that_cannot_be_read(tmp_path: Path, model: Path, card: str) -> None:
    (model / "README.md").write_text(f"---\n{card}\n---\n")
    with pytest.raises(RecipeError, match=r"front matter of .* is not valid YAML"):
        plan_of(tmp_path, model, preset="F16", calibrated=False)


def test_cards_that_say_nothing_of_use(tmp_path: Path, model: Path) -> None:
    """Aliases that explode, and values of other kinds."""
    bomb = "\n".join(f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 9)}]" for i in range(1, 20))
    card = f"l0: &l0 [x]\n{bomb}\ntags: *l19\nlicense: [[a]]\nlanguage: {{a: 1}}\nname: []"
    (model / "README.md").write_text(f"---\n{card}\n---\n")
    found = read(converted(tmp_path, model, preset="F16", calibrated=False))
    assert found["general.name"] == "model"
    assert "general.license" not in found


def test_an_importance_matrix_is_noted(tmp_path: Path, model: Path) -> None:
    path = (converted(tmp_path, model, to="imatrix").path / "imatrix.gguf").rename(
        tmp_path / "seen.gguf"
    )
    guided = {"preset": "Q4_0", "imatrix": str(path), "calibrated": False}
    found = read(converted(tmp_path / "guided", model, **guided))
    matrix = read_imatrix(path)
    assert found["quantize.imatrix.file"] == "seen.gguf"
    assert found["quantize.imatrix.entries_count"] == len(matrix.entries)
    assert found["quantize.imatrix.chunks_count"] == matrix.chunks == 8
