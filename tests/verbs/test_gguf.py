"""Conversions to GGUF: types, error feedback, importance, exactness, budgets, resuming."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from llmopt import artifact, pipeline, planner
from llmopt.artifact import Artifact
from llmopt.errors import RecipeError, RequestError
from llmopt.formats.checkpoint import Checkpoint
from llmopt.formats.gguf.container import read_gguf
from llmopt.formats.imatrix import read_imatrix, write_imatrix
from llmopt.recipe import from_data
from llmopt.step import RunOptions
from llmopt.verbs.shared import solving
from tests import models
from tests.test_pipeline import Log
from tests.verbs.conftest import HELD_OUT, TEXT, difference, lost_in_values, quantized

WIDE = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 2, "head_dim": 64}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A random llama whose rows have whole super-blocks, and a tokenizer of llama.cpp's kind."""
    return make_model(tmp_path)


def make_model(tmp_path: Path, **settings: Any) -> Path:
    folder = tmp_path / "model"
    models.save_with_bytes(folder, "llama", **{"attention_bias": False, **WIDE, **settings})
    (tmp_path / "text.txt").write_text(TEXT * 40)
    (tmp_path / "held-out.txt").write_text(HELD_OUT * 20)
    return folder


def plan_of(tmp_path: Path, source: Path, *, calibrated: bool = True, **settings: Any) -> Any:
    text = {"source": str(tmp_path / "text.txt"), "sequences": 8, "length": 48}
    gate = {} if settings.get("to") == "imatrix" else {"gate": []}
    data = {
        "version": 1,
        "model": str(source),
        "data": {
            **({"calibration": text} if calibrated else {}),
            "evaluation": {"source": str(tmp_path / "held-out.txt"), "windows": 4, "length": 48},
        },
        "steps": [{"id": "g", "convert": {"to": "gguf", **gate, **settings}}],
    }
    return planner.plan(*from_data(data), tmp_path / "out")


def converted(tmp_path: Path, source: Path, **settings: Any) -> Artifact:
    plan = plan_of(tmp_path, source, **settings)
    return pipeline.run(plan, RunOptions("cpu", overwrite=True), Log()).results[-1].artifact


def types(made: Artifact) -> dict[str, str]:
    return {name: t.type_id for name, t in read_gguf(made.path / "model.gguf").tensors.items()}


def test_plain_files_hold_the_model_as_it_is(tmp_path: Path, model: Path) -> None:
    made = converted(tmp_path, model, preset="F32")
    assert set(types(made).values()) == {"F32"}
    assert made.manifest["evidence"]["certificate"]["rounded"] == 0
    assert difference(model, made.path) == 0.0


def test_a_preset_mixes_types_and_the_ledger_says_so(tmp_path: Path, model: Path) -> None:
    made = converted(tmp_path, model, preset="Q4_K_M")
    found = types(made)
    assert found["token_embd.weight"] == "Q6_K"  # it is the head, too
    assert found["blk.0.ffn_up.weight"] == "Q4_K"
    assert found["output_norm.weight"] == "F32"
    ledger = {entry["name"]: entry for entry in made.manifest["ledger"]}
    entry = ledger["model.layers.0.mlp.up_proj.weight"]
    assert (entry["to"], entry["actions"]) == ("Q4_K", ["quantized"])
    assert entry["bytes"] * 8 == math.prod(entry["shape"]) * 4.5
    assert 0.01 < entry["error"] < 0.1
    assert entry["tokens"] == 8 * 48


def test_the_file_has_the_models_name(tmp_path: Path, model: Path) -> None:
    model = model.rename(tmp_path / "Phi-3-mini")
    made = converted(tmp_path, model, preset="F16", calibrated=False)
    # without the hyphen: llama.cpp would look for Phi-3's tokens, which this model has not
    assert read_gguf(made.path / "model.gguf").metadata["general.name"] == "Phi 3-mini"


def test_eight_bits_compute_nearly_the_same(tmp_path: Path, model: Path) -> None:
    made = converted(tmp_path, model, preset="Q8_0")
    assert set(types(made).values()) == {"F32", "Q8_0"}
    assert difference(model, made.path) < 0.1


def test_rows_in_chunks_give_the_same_file(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = (converted(tmp_path, model, preset="Q4_K_M").path / "model.gguf").read_bytes()
    monkeypatch.setattr(solving, "CHUNK", 256 * 100)
    parts = converted(tmp_path, model, preset="Q4_K_M")
    assert (parts.path / "model.gguf").read_bytes() == whole


@pytest.mark.parametrize("preset", ["Q4_K_S", "IQ2_XS"])
def test_feedback_loses_less_than_importance_alone(
    tmp_path: Path, model: Path, preset: str
) -> None:
    plain = lost_in_values(model, converted(tmp_path, model, preset=preset).path)
    made = converted(tmp_path, model, preset=preset, method="gptq")
    assert lost_in_values(model, made.path) < 0.8 * plain


def test_the_reference_search_writes_what_llama_quantize_writes(
    tmp_path: Path, model: Path
) -> None:
    """Without importance, tensor by tensor and byte by byte."""
    import ctypes

    llama_cpp = pytest.importorskip("llama_cpp")
    base = converted(tmp_path, model, preset="F32", calibrated=False).path / "model.gguf"
    base = base.rename(tmp_path / "base.gguf")
    ours = converted(tmp_path, model, preset="Q4_K_S", search="reference", calibrated=False)
    params = llama_cpp.llama_model_quantize_default_params()
    params.nthread, params.ftype = 1, llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_S
    theirs = tmp_path / "theirs.gguf"
    paths = str(base).encode(), str(theirs).encode()
    assert llama_cpp.llama_model_quantize(*paths, ctypes.byref(params)) == 0
    assert tensors(ours.path / "model.gguf") == tensors(theirs)


def tensors(path: Path) -> dict[str, bytes]:
    data = path.read_bytes()
    return {name: data[t.start : t.end] for name, t in read_gguf(path).tensors.items()}


def test_integers_move_unchanged_and_back(tmp_path: Path, model: Path) -> None:
    source = quantized(tmp_path, model, method="rtn", group_size=32)
    shutil.move(tmp_path / "out", tmp_path / "first")
    there = converted(tmp_path, tmp_path / "first", exact=False)
    found = types(there)
    assert found["blk.0.attn_q.weight"] == "Q4_0"
    linears = [e for e in there.manifest["ledger"] if e.get("to") == "Q4_0"]
    assert all(entry["exact"] and entry["how"] == "moved" for entry in linears)
    assert len(linears) == 14
    shutil.move(tmp_path / "out", tmp_path / "second")
    back = converted(tmp_path, tmp_path / "second", to="gptq")
    assert all(entry.get("exact", True) for entry in back.manifest["ledger"])
    first, last = Checkpoint.open(tmp_path / "first"), Checkpoint.open(back.path)
    assert first.layers.keys() == last.layers.keys()
    for name in first.layers:
        assert torch.equal(first.weight(name), last.weight(name))
        assert torch.equal(first.read_layer(name).codes, last.read_layer(name).codes)  # type: ignore[union-attr]
    assert source.manifest["digest"] == back.manifest["digest"]  # the same files, byte for byte


def test_exact_refuses_before_work_starts(tmp_path: Path, model: Path) -> None:
    with pytest.raises(RecipeError, match="cannot be converted exactly: plain weights are rounded"):
        plan_of(tmp_path, model, preset="Q4_K_M", exact=True)


def test_a_file_copies_itself_exactly(tmp_path: Path, model: Path) -> None:
    first = converted(tmp_path, model, preset="Q4_K_M", calibrated=False).path / "model.gguf"
    first = first.rename(tmp_path / "model.gguf")
    again = converted(tmp_path, first, exact=True, calibrated=False)
    assert again.manifest["evidence"]["certificate"]["rounded"] == 0
    assert tensors(again.path / "model.gguf") == tensors(first)


def test_exact_refuses_values_that_turn_out_not_to_fit(tmp_path: Path, model: Path) -> None:
    quantized(tmp_path, model, method="rtn", group_size=32, symmetric=False)
    shutil.move(tmp_path / "out", tmp_path / "first")
    with pytest.raises(RequestError, match="is not exact as Q4_1: a scale or a minimum"):
        converted(tmp_path, tmp_path / "first", exact=True, calibrated=False)
    assert not (tmp_path / "out").exists()
    made = converted(tmp_path, tmp_path / "first", calibrated=False)
    assert made.manifest["evidence"]["certificate"]["rounded"] > 0


def make_gemma(tmp_path: Path, dtype: torch.dtype) -> Path:
    """A tiny Gemma 3 whose norms have gains like trained ones, 1 + w, and no head of its own."""
    folder = make_model(tmp_path)
    shutil.rmtree(folder)
    model = models.save_with_bytes(
        folder, "gemma3_text", tie_word_embeddings=True, num_hidden_layers=2
    )
    model.to(dtype).save_pretrained(folder)
    return folder


def test_norms_that_have_one_added_are_not_rounded(tmp_path: Path) -> None:
    """bfloat16 has too few digits for 1 + w; the file has float32."""
    source = make_gemma(tmp_path, torch.bfloat16)
    made = converted(tmp_path, source, exact=True, calibrated=False)
    assert types(made)["blk.0.attn_norm.weight"] == "F32"
    there, back = Checkpoint.open(source), Checkpoint.open(made.path)
    norms = [name for name in there.names if "norm" in name]
    assert norms
    for name in norms:
        assert torch.equal(back.read(name), there.read(name).float()), name


def test_norms_that_float32_rounds_are_reported(tmp_path: Path) -> None:
    source = make_gemma(tmp_path, torch.float32)
    with pytest.raises(RequestError, match=r"norm.weight is not exact in the file.* 1 \+ w"):
        converted(tmp_path, source, exact=True, calibrated=False)
    made = converted(tmp_path, source, calibrated=False)
    rounded = [entry for entry in made.manifest["ledger"] if not entry.get("exact", True)]
    assert rounded
    assert all("norm" in e["name"] and 0 < e["error"] < 1e-6 for e in rounded)


def test_a_tied_head_that_llama_cpp_wants_on_its_own(tmp_path: Path) -> None:
    """GPT-NeoX in llama.cpp has no shared head: the file has two tensors of different types."""
    folder = make_model(tmp_path)
    shutil.rmtree(folder)
    models.save_with_bytes(
        folder, "gpt_neox", hidden_size=256, intermediate_size=256, tie_word_embeddings=True
    )
    made = converted(tmp_path, folder, preset="Q4_K_M")
    found = types(made)
    assert (found["token_embd.weight"], found["output.weight"]) == ("Q4_K", "Q6_K")
    ledger = {entry["name"]: entry for entry in made.manifest["ledger"]}
    assert ledger["gpt_neox.embed_in.weight"]["to"] == "Q4_K"
    head = ledger[f"{Checkpoint.open(folder).naming.head}.weight"]
    assert head["to"] == "Q6_K"
    assert head["tokens"] == 8 * 48
    assert head["error"] < ledger["gpt_neox.embed_in.weight"]["error"]


def test_a_file_of_mostly_fp4(tmp_path: Path, model: Path) -> None:
    for type_id, number in (("MXFP4", 38), ("NVFP4", 39)):
        rules = [{"match": "blk.*.[af]*[npqkv].weight", "type": type_id}]
        made = converted(tmp_path, model, overrides=rules, calibrated=False)
        path = made.path / "model.gguf"
        assert read_gguf(path).metadata["general.file_type"] == number


def test_biases_that_llama_cpp_has_no_place_for(tmp_path: Path) -> None:
    """AutoGPTQ gives every linear a bias: zeros are left out, others are not."""
    model = make_model(tmp_path)
    shutil.rmtree(model)
    models.save_with_bytes(model, "qwen3")
    quantized(tmp_path, model, method="rtn", group_size=32)
    source = tmp_path / "first"
    shutil.move(tmp_path / "out", source)
    (source / artifact.MANIFEST).unlink()  # as another tool writes it
    name = "model.layers.1.self_attn.o_proj.bias"
    for value in (0.0, 0.25):
        weights = load_file(source / "model.safetensors")
        weights[name] = torch.full((64,), value)
        save_file(weights, source / "model.safetensors", {"format": "pt"})
        if value:
            with pytest.raises(RequestError, match=f"no place for {name}, which is not zero"):
                converted(tmp_path, source, calibrated=False)
        else:
            made = converted(tmp_path, source, calibrated=False)
            ledger = {entry["name"]: entry for entry in made.manifest["ledger"]}
            assert ledger[name]["actions"] == ["dropped"]


def test_an_importance_matrix_that_lacks_a_tensor(tmp_path: Path, model: Path) -> None:
    made = converted(tmp_path, model, to="imatrix")
    matrix = read_imatrix(made.path / "imatrix.gguf")
    entries = {n: e for n, e in matrix.entries.items() if n != "blk.1.attn_k.weight"}
    write_imatrix(tmp_path / "less.gguf", replace(matrix, entries=entries))
    wanted = {"preset": "IQ2_XS", "imatrix": str(tmp_path / "less.gguf"), "calibrated": False}
    with pytest.raises(RequestError, match=r"lacks model\.layers\.1\.self_attn\.k_proj"):
        converted(tmp_path, model, **wanted)


def test_the_experts_of_an_importance_matrix_have_what_reached_them(tmp_path: Path) -> None:
    folder = make_model(tmp_path)
    shutil.rmtree(folder)
    models.save_with_bytes(folder, "qwen3_moe")
    made = converted(tmp_path, folder, to="imatrix")
    matrix, tokens = read_imatrix(made.path / "imatrix.gguf"), 8 * 48
    gates = matrix.entries["blk.0.ffn_gate_exps.weight"]
    assert gates.counts.sum() == 2 * tokens  # of four experts each token chooses two
    assert len(set(gates.counts.tolist())) > 1
    assert matrix.entries["blk.0.attn_q.weight"].counts.tolist() == [tokens]
    means = gates.sums[gates.counts > 0] / gates.counts[gates.counts > 0, None]
    assert not torch.equal(means[0], means[1])


def test_an_importance_matrix_is_written_and_read(tmp_path: Path, model: Path) -> None:
    made = converted(tmp_path, model, to="imatrix")
    path = (made.path / "imatrix.gguf").rename(tmp_path / "imatrix.gguf")
    matrix = read_imatrix(path)
    assert {"blk.0.attn_q.weight", "blk.1.ffn_down.weight", "output.weight"} <= set(matrix.entries)
    assert matrix.chunks == 8
    older = read_imatrix((made.path / "imatrix.gguf").with_suffix(".dat"))
    assert older.entries.keys() == matrix.entries.keys()
    for name, entry in matrix.entries.items():
        torch.testing.assert_close(older.entries[name].mean, entry.mean, rtol=1e-6, atol=0)
    guided = converted(tmp_path, model, preset="Q4_K_S", imatrix=str(path), calibrated=False)
    free = converted(tmp_path, model, preset="Q4_K_S", calibrated=False)
    assert guided.manifest["settings"]["imatrix"]["name"] == "imatrix.gguf"
    guided_errors, free_errors = (
        [e["error"] for e in made.manifest["ledger"] if e.get("how")] for made in (guided, free)
    )
    assert guided_errors != free_errors


def test_a_budget_is_met_and_its_types_are_written(tmp_path: Path, model: Path) -> None:
    made = converted(tmp_path, model, target_bpw=4.0, candidates=["Q2_K", "Q4_K", "Q6_K"])
    chosen = {e["to"]: e for e in made.manifest["ledger"] if e["name"].endswith("_proj.weight")}
    assert len(chosen) > 1
    linears = [e for e in made.manifest["ledger"] if e["name"].endswith("_proj.weight")]
    weights = sum(e["shape"][0] * e["shape"][1] for e in linears)
    assert sum(e["bytes"] for e in linears) * 8 / weights <= 4.0
    found = types(made)
    names = {"model.layers.0.mlp.up_proj.weight": "blk.0.ffn_up.weight"}
    for entry in linears:
        if entry["name"] in names:
            assert found[names[entry["name"]]] == entry["to"]


def test_a_size_is_that_of_the_whole_file(tmp_path: Path, model: Path) -> None:
    target = 850_000
    made = converted(tmp_path, model, target_size=target, candidates=["Q2_K", "Q4_K", "Q8_0"])
    size = (made.path / "model.gguf").stat().st_size
    assert 0.9 * target < size <= target


def test_overrides_and_splits(tmp_path: Path, model: Path) -> None:
    rules = [{"match": "blk.*.attn_v.weight", "type": "Q6_K"}]
    made = converted(tmp_path, model, preset="Q8_0", overrides=rules, split_size="200kB")
    files = sorted(path.name for path in made.path.glob("*.gguf"))
    assert len(files) > 1
    assert files[0] == f"model-00001-of-{len(files):05d}.gguf"
    found = {n: t.type_id for n, t in read_gguf(made.path / files[0]).tensors.items()}
    assert found["blk.1.attn_v.weight"] == "Q6_K"
    assert found["blk.1.attn_k.weight"] == "Q8_0"
    assert difference(model, made.path) < 0.2


@pytest.mark.parametrize(
    ("settings", "key", "message"),
    [
        ({"preset": "Q4_K_M", "method": "gptq", "calibrated": False}, "method", "calibration text"),
        ({"preset": "IQ2_XXS", "calibrated": False}, "preset", "importance matrix"),
        (
            {
                "preset": "Q4_0",
                "calibrated": False,
                "overrides": [{"match": "token_embd.weight", "type": "IQ2_XXS"}],
            },
            "overrides",
            "IQ2_XXS needs the importance of inputs",
        ),
        ({"preset": "Q4_0", "dtype": "float32"}, "dtype", "preset settles this"),
        ({"to": "imatrix", "gate": ["default"]}, "gate", "no such setting"),
        ({"preset": "Q4_K_M", "damping": 0.1}, "damping", "method rtn has no such"),
        ({"preset": "Q4_K_M", "group_size": 32}, "group_size", "gguf has no such setting"),
        ({"preset": "F16", "method": "gptq"}, "method", "none is rounded"),
        ({"overrides": [{"match": "blk.*.attn_x.*", "type": "Q8_0"}]}, "overrides", "attn_"),
        (
            {"preset": "Q4_0", "overrides": [{"match": "output_norm.weight", "type": "Q8_0"}]},
            "overrides",
            "as F32 only",
        ),
        ({"preset": "Q4_K_M", "imatrix": "nowhere.dat"}, "imatrix", "there is no file"),
        ({"to": "gptq", "preset": "Q4_K_M"}, "preset", "gptq has no such setting"),
        ({"preset": "Q4_K_M", "candidates": ["Q4_K"]}, "candidates", "only a budget"),
        ({"to": "imatrix", "preset": "Q4_K_M"}, "preset", "no such setting"),
    ],
)
def test_what_cannot_be_is_refused_at_its_key(
    tmp_path: Path, model: Path, settings: dict[str, Any], key: str, message: str
) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        plan_of(tmp_path, model, **settings)
    assert f"convert.{key}" in str(caught.value)


def test_llama_cpp_has_no_opt(tmp_path: Path) -> None:
    models.save_with_bytes(tmp_path / "opt", "opt")
    with pytest.raises(RequestError, match="opt"):
        plan_of(tmp_path, tmp_path / "opt", preset="F16", calibrated=False)


def test_a_type_that_the_source_has_needs_no_importance(tmp_path: Path, model: Path) -> None:
    rules = [{"match": "blk.*.ffn_up.weight", "type": "IQ2_XS"}]
    first = converted(tmp_path, model, preset="Q8_0", overrides=rules).path / "model.gguf"
    first = first.rename(tmp_path / "model.gguf")
    again = converted(tmp_path, first, overrides=rules, calibrated=False, exact=True)
    assert tensors(again.path / "model.gguf") == tensors(first)


def test_a_killed_conversion_goes_on_to_the_same_file(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"preset": "Q4_K_S", "method": "gptq"}
    whole = converted(tmp_path, model, **settings).path / "model.gguf"
    expected = whole.read_bytes()
    shutil.rmtree(tmp_path / "out")
    from llmopt.blockwalk.parts import Parts

    write = Parts.write

    def killed(self: Parts, index: int, results: Any) -> None:
        write(self, index, results)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Parts, "write", killed)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                converted(tmp_path, model, **settings)
    again = converted(tmp_path, model, **settings).path / "model.gguf"
    assert again.read_bytes() == expected


def test_experts_share_a_tensor(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    models.save_with_bytes(
        folder, "mixtral", hidden_size=256, intermediate_size=256, head_dim=64, num_hidden_layers=1
    )
    (tmp_path / "text.txt").write_text(TEXT * 40)
    (tmp_path / "held-out.txt").write_text(HELD_OUT * 20)
    made = converted(tmp_path, folder, preset="Q4_K_S", method="gptq")
    found = types(made)
    assert found["blk.0.ffn_gate_exps.weight"] == "Q4_K"
    assert found["blk.0.ffn_gate_inp.weight"] == "F32"
    plain = converted(tmp_path, folder, preset="F32")
    assert difference(folder, plain.path) == 0.0
