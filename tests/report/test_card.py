"""Model cards: what they carry over, what they say, and that they follow from the manifest."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from llmopt.artifact import Artifact
from llmopt.errors import RequestError
from llmopt.report import card, card_metadata
from llmopt.specs import LOADERS

DIGEST = "sha256:" + "a" * 64
HUB = {"name": "model", "digest": DIGEST, "source": "org/Big_Model", "revision": "c0ffee"}
LOCAL = {"name": "model", "digest": DIGEST, "source": "folder", "revision": None}
README = """---
license: other
license_name: big-licence
license_link: LICENSE
language: [en, no]
base_model: org/Older
base_model_relation: finetune
tags:
- code
pipeline_tag: text-generation
extra_gated_prompt: Sign here.
---

# The best model of /home/someone
"""


def interval(value: float) -> dict[str, float]:
    return {"value": value, "low": value * 0.9, "high": value * 1.1}


EVIDENCE: dict[str, Any] = {
    "name": "w4",
    "metrics": {
        "size.bytes": 4_000_000, "bits_per_weight": 4.25, "size.ratio": 0.27,
        "kl.mean": interval(0.0123), "kl.p99": 0.2, "agreement": interval(0.8),
        "perplexity": interval(12.3), "perplexity.ratio": interval(1.01),
    },
}  # fmt: skip
CORPUS = {"name": "held_out.txt", "sha256": "e" * 64, "windows": 16, "length": 512}


@pytest.fixture
def quantized(manifest: dict[str, Any]) -> dict[str, Any]:
    """A whole manifest of a quantized model; its gate was off."""
    files = [
        {"path": "LICENSE", "bytes": 10, "sha256": "0"},
        {"path": "model.safetensors", "bytes": 2_000_000, "sha256": "1"},
    ]
    ledger = [
        {"name": "w", "shape": [1000, 1000], "actions": ["quantized"], "to": "int4 g128",
         "layout": {"grid": "int4", "group_size": 128, "symmetric": True}, "bytes": 531250},
    ]  # fmt: skip
    settings = {
        "method": "gptq", "grid": "int4", "group_size": 128, "damping": 0.01,
        "overrides": [{"match": "*.down_proj", "skip": True}], "calibration": {"source": "demo"},
    }  # fmt: skip
    kept = {"metadata": {"license": "mit"}, "original": HUB}
    return manifest | {
        "format": "gptq", "files": files, "ledger": ledger, "settings": settings, "gates": [],
        "parents": [HUB], "corpus": CORPUS | {"name": "train.jsonl"}, "evidence": {}, "card": kept,
    }  # fmt: skip


def gated(manifest: dict[str, Any], *, passed: bool = True) -> dict[str, Any]:
    gate = {"key": "k", "evidence": EVIDENCE, "corpus": CORPUS}
    verdict = {"gate": "kl.mean < 0.05", "value": 0.0123, "passed": passed, "model": "w4"}
    return manifest | {"gate": gate, "gates": [verdict]}


def front_matter(text: str) -> dict[str, Any]:
    _, found, _ = text.split("---\n", 2)
    metadata: dict[str, Any] = yaml.safe_load(found)
    return metadata


def source(folder: Path, **files: str) -> Artifact:
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text, encoding="utf-8")
    return Artifact("model", folder, DIGEST, {})


def test_front_matter_is_carried_over(tmp_path: Path, quantized: dict[str, Any]) -> None:
    kept = card_metadata.describe(source(tmp_path, README__md=README), HUB, quantized=True)
    assert front_matter(card.render(quantized | {"card": kept})) == {
        "license": "other",
        "license_name": "big-licence",
        "license_link": "LICENSE",
        "language": ["en", "no"],
        "base_model": "org/Big_Model",
        "base_model_relation": "quantized",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["code", "llmopt", "gptq"],
    }


def test_a_local_model_names_the_base_that_its_card_names(tmp_path: Path) -> None:
    kept = card_metadata.describe(source(tmp_path, README__md=README), LOCAL, quantized=True)
    assert kept["metadata"]["base_model"] == "org/Older"
    assert kept["original"] == {"source": "folder", "revision": None, "digest": DIGEST}
    (tmp_path / "README.md").unlink()
    kept = card_metadata.describe(source(tmp_path), LOCAL, quantized=True)
    assert kept["metadata"] == {}


@pytest.mark.parametrize(
    ("name", "text", "licence"),
    [
        ("LICENSE", "\n   Apache License\n   Version 2.0, January 2004", "apache-2.0"),
        ("LICENSE.txt", "MIT License\n\nCopyright (c)", "mit"),
        ("LICENSE", "LLAMA 3.1 COMMUNITY LICENSE AGREEMENT", "llama3.1"),
        ("LICENCE", "Modified MIT License: show our name", "other"),
    ],
)
def test_a_licence_file_speaks_where_no_card_does(
    name: str, text: str, licence: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(text)
    (tmp_path / "README.md").write_text("# no front matter\n\n---\nlicense: mit\n---\n")
    assert card_metadata.declared(tmp_path) == {"license": licence, "license_link": name}


def test_a_card_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: [mit\n---\n")
    with pytest.raises(RequestError, match=r"front matter of .*README\.md is not valid YAML"):
        card_metadata.declared(tmp_path)


@pytest.mark.parametrize(
    ("front", "problem"),
    [
        ("a: " + "[" * 50_000, "nested more than 32 deep"),
        ("".join(" " * n + "a:\n" for n in range(100)), "nested more than 32 deep"),
        ("a: &a [*a]", "recursive"),
        ("[a]: b", "unhashable"),
        ("license: mit\nx: " + "x" * 100_000, "does not end within 100,000 characters"),
    ],
)
def test_front_matter_is_bounded(front: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(f"---\n{front}\n---\n")
    started = time.monotonic()
    with pytest.raises(RequestError, match=f"front matter of .*README.md .*{problem}"):
        card_metadata.declared(tmp_path)
    assert time.monotonic() - started < 1


def test_aliases_in_front_matter_are_not_written_out(tmp_path: Path) -> None:
    """Tools that write cards use them for lists that stand there twice."""
    bomb = "".join(f"a{n + 1}: &a{n + 1} [{', '.join([f'*a{n}'] * 9)}]\n" for n in range(20))
    front = f"tags: &tags [a, b]\nlanguage: *tags\na0: &a0 [x]\n{bomb}license: mit\n"
    (tmp_path / "README.md").write_text(f"---\n{front}---\n")
    found = card_metadata.declared(tmp_path)
    assert found == {"license": "mit", "tags": ["a", "b"], "language": ["a", "b"]}


def test_members_of_other_types_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: {a: b}\ntags: []\nlanguage: no\n---\n")
    assert card_metadata.declared(tmp_path) == {"language": "no"}
    (tmp_path / "README.md").write_text("---\n- a list\n---\n")
    assert card_metadata.declared(tmp_path) == {}


def test_a_chain_keeps_the_licence_and_names_base_and_parent(
    tmp_path: Path, quantized: dict[str, Any]
) -> None:
    first = card_metadata.describe(source(tmp_path, README__md=README), HUB, quantized=True)
    parent = Artifact("w4", tmp_path, "sha256:b", {"card": first})
    entry = {"name": "model", "digest": "sha256:b", "source": "me/w4", "revision": "d00d"}
    second = card_metadata.describe(parent, entry, quantized=False)
    assert second["original"] == first["original"]
    text = card.render(quantized | {"card": second, "verb": "convert", "parents": [entry]})
    metadata = front_matter(text)
    assert metadata["license_name"] == "big-licence"
    assert metadata["base_model"] == ["org/Big_Model", "me/w4"]
    assert metadata["base_model_relation"] == "quantized"
    assert "[me/w4](https://huggingface.co/me/w4) at `d00d`, which descends from" in text
    assert r"[org/Big\_Model](https://huggingface.co/org/Big_Model) at `c0ffee`" in text
    step = {"name": "q", "digest": "sha256:b"}  # of the same recipe: on no hub
    third = card_metadata.describe(parent, step, quantized=False)
    assert third["metadata"]["base_model"] == "org/Big_Model"
    text = card.render(quantized | {"card": third, "parents": [step]})
    assert "from q (`sha256:b`), which descends from" in text


def test_the_table_says_what_the_gate_found(quantized: dict[str, Any]) -> None:
    text = card.render(gated(quantized))
    for line in (
        "| `kl.mean`, nats: mean KL divergence",
        " per position | 0.0123 (0.0111–0.0135) |",
        "top token is the same | 80.0% (72.0%–88.0%) |",
        "log likelihood per token | 12.3 (11.1–13.5) |",
        "| Class of quality | damaged |",
        "| Size of the weights | 2.00 MB (27.0% of the original) |",
        "| Bits per weight, all tensors | 16.0 |",
        "- gate `kl.mean < 0.05`: passed (found 0.0123 on 16 windows of 512 tokens)",
    ):
        assert line in text
    assert r"16 windows of 512 tokens of held\_out.txt" in text
    assert "not measured" not in text


def test_what_a_gate_compared_with_is_named_where_it_is_not_the_original(
    quantized: dict[str, Any],
) -> None:
    for digest, name in ((DIGEST, "the original"), ("sha256:" + "b" * 64, "healed")):
        manifest = gated(quantized)
        manifest["gate"]["evidence"] = EVIDENCE | {"against": {"name": "healed", "digest": digest}}
        text = card.render(manifest)
        assert f"Measured against {name} on 16 windows" in text
        assert f"2.00 MB (27.0% of {name})" in text


def test_a_failed_gate_is_the_first_thing_said(quantized: dict[str, Any]) -> None:
    text = card.render(gated(quantized, passed=False))
    assert text.index("failed its quality gate: kl.mean \\< 0.05") < text.index("## Quality")
    assert "failed" not in card.render(gated(quantized))


def test_what_was_not_measured_is_not_made_up(quantized: dict[str, Any]) -> None:
    text = card.render(quantized)
    assert "Quality was not measured: the gate was off." in text
    assert text.count("| not measured |") == 6
    assert "| Size of the weights | 2.00 MB |" in text
    assert "| Bits per weight, all tensors | 16.0 |" in text


def test_settings_and_calibration_are_told(quantized: dict[str, Any]) -> None:
    text = card.render(quantized)
    assert "| `group_size` | 128 |" in text
    assert "| `damping` | 0.01 |" in text
    assert f"Calibrated on 16 windows of 512 tokens of train.jsonl (SHA-256 `{'e' * 64}`)" in text
    assert "1 quantized; 1 to int4 g128" in text
    assert "No calibration text was used." in card.render(quantized | {"corpus": None})


def test_the_licence_and_its_file_are_named(quantized: dict[str, Any]) -> None:
    assert "mit, as the original. See [LICENSE](LICENSE)." in card.render(quantized)
    silent = quantized | {"card": {"metadata": {}, "original": HUB}}
    assert "The original states none." in card.render(silent)


def test_the_card_shows_what_loads_the_artifact_and_nothing_else(quantized: dict[str, Any]) -> None:
    layout = {"grid": "int4", "group_size": 128, "symmetric": True, "desc_act": False}
    facts = {
        "family": "llama", "layouts": [layout | {"activations": None}], "head": False,
        "plain": False, "apart": [],
    }  # fmt: skip
    told = quantized | {"format": "gptq", "evidence": {"loading": facts}}
    text = card.render(told)
    assert '(`pip install "vllm>=0.12"`)\n\n```shell\nvllm serve PATH' in text
    assert "llmopt verify PATH" in text
    facts["layouts"][0]["symmetric"] = False
    text = card.render(told)
    assert "vllm serve" not in text
    assert "GPTQModel.load" in text
    assert "vllm serve" not in card.render(told | {"evidence": {}})
    facts |= {"apart": ["model.layers.0.self_attn.qkv_proj"]}
    assert "`model.layers.0.self_attn.qkv_proj` differ in their settings" in card.render(told)


def test_python_in_cards_is_python() -> None:
    for loader in LOADERS.values():
        assert "PATH" in loader.code
        if loader.language == "python":
            compile(loader.code, loader.id, "exec")


def test_the_same_manifest_gives_the_same_card_after_a_round_trip(
    quantized: dict[str, Any],
) -> None:
    metrics = EVIDENCE["metrics"] | {"perplexity": interval(float("inf"))}
    evidence = EVIDENCE | {"metrics": metrics}
    manifest = gated(quantized)
    manifest["card"]["metadata"]["base_model"] = "a/b"
    manifest["gate"] = manifest["gate"] | {"evidence": evidence}
    finished, text = card.finish(manifest)
    again, same = card.finish(json.loads(json.dumps(finished, sort_keys=True)))
    assert (again, same) == (finished, text)
    assert str(text).index("license: mit") < str(text).index("base_model: a/b")
    assert "someone" not in str(text)


def test_what_has_no_card_gets_none(manifest: dict[str, Any]) -> None:
    assert card.finish(manifest) == (manifest, None)
