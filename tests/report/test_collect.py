"""What may stand in one table does, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmopt.artifact import describe_files, sealed
from llmopt.errors import RequestError
from llmopt.report import html, markdown
from llmopt.report.collect import collect, manifests_of
from tests.artifacts import manifest_of

Make = Callable[..., Any]
CORPUS = {"name": "held_out.txt", "sha256": "e" * 64, "windows": 8, "length": 512}
SPEED = {"speed.decode": 50.0, "memory.peak": 1_000_000}


def write(folder: Path, manifest: dict[str, Any], **files: Any) -> Path:
    folder.mkdir()
    for name, document in files.items():
        (folder / f"{name.replace('_', '.')}.json").write_text(json.dumps(document))
    members = {"name": folder.name, "versions": {}, **manifest}
    whole = manifest_of(describe_files(folder), **members)
    (folder / "llmopt.json").write_text(json.dumps(sealed(whole)))
    return folder


@pytest.fixture
def bench(tmp_path: Path) -> Make:
    """bench("score", entry, ..., base="a" * 64) -> a bench step's folder."""

    def make(
        name: str, *entries: dict[str, Any], base: str | None = "a", runtime: str = "torch",
        corpus: dict[str, Any] = CORPUS, machine: str = "A CPU", schema: int = 2,
    ) -> Path:  # fmt: skip
        rows = [dict(entry) for entry in entries]
        if base is not None:
            rows.insert(0, {
                "name": "model", "metrics": {"size.bytes": 100_000_000}, "is_base": True,
                "runtime": runtime, "digest": f"sha256:{base * 64}",
            })  # fmt: skip
        document = {
            "schema": schema, "corpus": corpus, "base": base and "model", "entries": rows,
        }  # fmt: skip
        record = {
            "speed": {row["name"]: SPEED for row in rows},
            "machine": {"processor": machine, "cores": 8, "memory_bytes": 32_000_000_000},
            "threads": 4,
        }
        about = {"verb": "bench", "format": "bench", "versions": {"torch": "2"}}
        return write(tmp_path / name, about, bench=document, llmopt_run=record)

    return make


@pytest.fixture
def model(entry: Make) -> Make:
    """model("w4", "4") -> an entry with a digest of its own."""

    def make(name: str, digest: str, **members: Any) -> dict[str, Any]:
        made: dict[str, Any] = entry(name, 30, 0.01, digest=f"sha256:{digest * 64}", **members)
        return made

    return make


@pytest.mark.parametrize(
    "other",
    [
        {"base": "b"},
        {"base": None},
        {"runtime": "llama.cpp"},
        {"corpus": CORPUS | {"sha256": "f" * 64}},
        {"corpus": CORPUS | {"windows": 16}},
        {"corpus": CORPUS | {"length": 256}},
    ],
    ids=str,
)
def test_what_cannot_be_compared_stands_apart(bench: Make, model: Make, other: Any) -> None:
    made = collect([bench("one", model("w4", "4")), bench("two", model("w4", "5"), **other)])
    assert [[e.name for e in part.entries if not e.is_base] for part in made] == [["w4"], ["w4"]]
    page = html.render(*made)
    assert page.count("<h1>") == 2
    assert made[0].title == "Against model on held_out.txt, 8 windows of 512 tokens"
    assert all(part.title in page for part in made)
    assert markdown.render(*made).count("# Ship w4") == 2
    assert page.count("id=") == len({part for part in page.split() if part.startswith("id=")})


def test_what_can_be_compared_stands_together(bench: Make, model: Make) -> None:
    (made,) = collect([bench("one", model("w4", "4")), bench("two", model("w8", "8"))])
    assert [entry.name for entry in made.entries] == ["model", "w4", "w8"]


def test_one_name_for_two_models_is_told_apart(bench: Make, model: Make) -> None:
    (made,) = collect([bench("one", model("w4", "4")), bench("two", model("w4", "5"))])
    assert [entry.name for entry in made.entries] == ["model", "w4 (one)", "w4 (two)"]
    assert len(made.speeds) == 3


def test_one_model_in_two_runtimes_is_two_rows(bench: Make, model: Make) -> None:
    one = model("w4", "4", runtime="torch")
    two = model("w4", "4", runtime="llama.cpp")
    (made,) = collect([bench("one", one), bench("two", two)])
    assert [e.name for e in made.entries] == ["model", "w4 (one)", "w4 (two)"]


def test_one_model_measured_twice_has_the_gates_of_both(bench: Make, model: Make) -> None:
    failed = [{"gate": "agreement > 0.99", "value": 0.95, "passed": False}]
    benches = [bench("one", model("w4", "4")), bench("two", model("w4", "4", gates=failed))]
    (made,) = collect(benches)
    assert [v.passed for v in made.entries[1].gates] == [True, False]


def test_a_manifest_is_found_by_digest_and_its_gate_says_on_how_much_text(
    bench: Make, model: Make, manifest: dict[str, Any], tmp_path: Path
) -> None:
    evidence = {"name": "w4", "metrics": {"size.bytes": 1}}
    gate = {"key": "k", "evidence": evidence, "corpus": CORPUS | {"windows": 16}}
    verdict = {"gate": "kl.mean < 0.3", "value": 0.011, "passed": True, "default": True}
    verdict["model"] = "w4"
    own = {"verb": "quantize", "gate": gate, "gates": [verdict], "ledger": manifest["ledger"]}
    write(tmp_path / "elsewhere", own | {"digest": "sha256:" + "4" * 64})
    write(tmp_path / "w4", own | {"digest": "sha256:" + "7" * 64})  # has the name, is another
    (made,) = collect([bench("one", model("w4", "4")), tmp_path / "w4", tmp_path / "elsewhere"])
    assert made.manifests["w4"].digest == "sha256:" + "4" * 64
    assert [v.on for v in made.entries[1].gates] == [
        " on 16 windows of 512 tokens",
        " on 8 windows of 512 tokens",
    ]
    assert "16 windows of 512 tokens" in html.render(made)


def test_the_machines_are_named(bench: Make, model: Make) -> None:
    first, second = bench("one", model("w4", "4")), bench("two", model("w8", "8"), machine="B CPU")
    (made,) = collect([first])
    text = markdown.render(made)
    for row in ("| Processor | A CPU |", "| Threads used | 4 |", "| Memory | 32.0 GB |"):
        assert row in text
    (made,) = collect([first, second])
    assert "| What | model, w4 | w8 |" in markdown.render(made)


def test_an_unreadable_manifest_is_named_before_any_work(tmp_path: Path) -> None:
    folder = write(
        tmp_path / "w4", {"verb": "quantize", "ledger": [{"name": "w", "actions": ["lost"]}]}
    )
    with pytest.raises(RequestError, match=r"w4/llmopt.json is not a manifest .*: ledger\.0\.act"):
        manifests_of([folder])
    with pytest.raises(RequestError, match="holds bench results"):
        collect([])


def test_results_that_were_edited_are_not_shown(bench: Make, model: Make) -> None:
    folder = bench("score", model("w4", "4"))
    path = folder / "bench.json"
    path.write_text(path.read_text().replace("0.95", "0.99"))
    with pytest.raises(RequestError, match=r"bench\.json was changed"):
        collect([folder])


def test_a_run_record_that_is_none_costs_its_numbers_alone(bench: Make, model: Make) -> None:
    folder = bench("score", model("w4", "4"))
    (folder / "llmopt.run.json").write_text('{"speed": [1], "machine": 3}')
    (found,) = collect([folder])
    assert found.speeds == {}


def test_results_of_another_schema_are_refused(bench: Make, model: Make) -> None:
    with pytest.raises(RequestError, match=r"bench.json was written by .* \(schema 1, .* reads 2"):
        collect([bench("score", model("w4", "4"), schema=1)])
