"""Mixes against llama.cpp's own, tensor by tensor: it is asked what it would do, in a dry run."""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from llmopt.errors import RequestError
from llmopt.runtimes.llamacpp.native import native
from llmopt.specs.ggml import GGML_TYPES
from llmopt.specs.mix import ModelFacts
from llmopt.specs.presets import (
    PRESETS,
    find_preset,
    fitting,
    is_quantized,
    needing_imatrix,
    preset_types,
)

Shapes = list[tuple[str, tuple[int, ...]]]


@dataclass(frozen=True)
class Model:
    """A model's shapes; `keys` are metadata beyond what every architecture here has."""

    facts: ModelFacts
    width: int
    shapes: Shapes
    keys: dict[str, Any] = field(default_factory=dict)


def llama(
    *, layers: int = 16, heads: int = 8, kv_heads: int = 2, width: int = 256, inner: int = 512,
    tied: bool = False, experts: int = 0,
) -> Model:  # fmt: skip
    facts = ModelFacts(
        architecture="llama", layers=layers, heads=heads, kv_heads=kv_heads, experts=experts
    )
    narrow = width // heads * kv_heads
    shapes: Shapes = [("token_embd.weight", (320, width)), ("output_norm.weight", (width,))]
    if not tied:
        shapes.append(("output.weight", (320, width)))
    for i in range(layers):
        block = f"blk.{i}."
        for name in ("attn_norm", "ffn_norm"):
            shapes.append((f"{block}{name}.weight", (width,)))
        for name, rows in (("q", width), ("k", narrow), ("v", narrow), ("output", width)):
            shapes.append((f"{block}attn_{name}.weight", (rows, width)))
        for name in ("gate", "up", "down"):
            shape = (width, inner) if name == "down" else (inner, width)
            if experts:
                shapes.append((f"{block}ffn_{name}_exps.weight", (experts, *shape)))
            else:
                shapes.append((f"{block}ffn_{name}.weight", shape))
        if experts:
            shapes.append((f"{block}ffn_gate_inp.weight", (experts, width)))
    keys = {"llama.attention.layer_norm_rms_epsilon": 1e-5, "llama.feed_forward_length": inner}
    if experts:
        keys |= {"llama.expert_count": experts, "llama.expert_used_count": 2}
    return Model(facts, width, shapes, keys)


def shared_experts() -> Model:
    """Two down projections a block, so that counting them and reading their block differ."""
    model = llama(experts=4, kv_heads=8)
    shapes = list(model.shapes)
    for i in range(model.facts.layers):
        shapes.append((f"blk.{i}.ffn_down_shexp.weight", (256, 512)))
        shapes.append((f"blk.{i}.ffn_up_shexp.weight", (512, 256)))
        shapes.append((f"blk.{i}.ffn_gate_shexp.weight", (512, 256)))
    return Model(model.facts, 256, shapes, model.keys)


def fused(architecture: str, layers: int) -> Model:
    facts = ModelFacts(architecture=architecture, layers=layers, heads=8, kv_heads=8)
    shapes: Shapes = [
        ("token_embd.weight", (320, 256)),
        ("position_embd.weight", (64, 256)),
        ("output.weight", (320, 256)),
        ("output_norm.weight", (256,)),
        ("output_norm.bias", (256,)),
    ]
    for i in range(layers):
        block = f"blk.{i}."
        shapes += [
            (f"{block}attn_norm.weight", (256,)),
            (f"{block}attn_qkv.weight", (768, 256)),
            (f"{block}attn_qkv.bias", (768,)),
            (f"{block}attn_output.weight", (256, 256)),
            (f"{block}ffn_up.weight", (1024, 256)),
            (f"{block}ffn_down.weight", (256, 1024)),
            (f"{block}ffn_down.bias", (256,)),
        ]
    keys = {
        f"{architecture}.attention.layer_norm_epsilon": 1e-5,
        f"{architecture}.feed_forward_length": 1024,
        f"{architecture}.use_parallel_residual": True,
    }
    return Model(facts, 256, shapes, keys)


MODELS = {
    "shared values": llama(),
    "own values, tied": llama(kv_heads=8, tied=True),
    "width 320": llama(width=320, layers=8, heads=4, kv_heads=2),
    "width 48": llama(width=48, inner=96, layers=8, heads=4, kv_heads=4, tied=True),
    "70B": llama(layers=80, width=256, inner=256),
    "8 experts": llama(experts=8, layers=32),
    "shared experts": shared_experts(),
    "gpt2": fused("gpt2", 24),
    "falcon": fused("falcon", 32),
    "gpt-neox": fused("gptneox", 12),
}


@pytest.fixture(scope="module")
def llama_cpp() -> Iterator[Any]:
    module = pytest.importorskip("llama_cpp")
    quiet = native()
    yield module
    quiet.listen()  # a callback that is gone would be called by whatever logs next


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("gguf")
    return {name: write(model, folder / f"{name}.gguf") for name, model in MODELS.items()}


def write(model: Model, path: Path) -> Path:
    """A GGUF file of zeros, as holes."""
    facts = model.facts
    writer = gguf.GGUFWriter(path, facts.architecture)
    writer.add_context_length(64)
    writer.add_embedding_length(model.width)
    writer.add_block_count(facts.layers)
    writer.add_head_count(facts.heads)
    writer.add_head_count_kv(facts.kv_heads)
    writer.add_vocab_size(320)
    add = {bool: writer.add_bool, float: writer.add_float32, int: writer.add_uint32}
    for key, value in model.keys.items():
        add[type(value)](key, value)
    total = 0
    for name, shape in model.shapes:
        count = 4
        for size in shape:
            count *= size
        writer.add_tensor_info(name, shape, np.dtype("float32"), count)
        total += -(-count // 32) * 32
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    os.truncate(path, -(-path.stat().st_size // 32) * 32 + total)
    return path


def upstream(
    llama_cpp: Any, path: Path, file_type: int, has_imatrix: bool
) -> tuple[dict[str, str], bool]:
    """What llama_model_quantize would store each tensor as, and whether it misses an imatrix."""
    said: list[str] = []

    @llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
    def listen(_level: int, text: bytes, _data: Any) -> None:
        said.append(text.decode())

    llama_cpp.llama_log_set(listen, ctypes.c_void_p(0))
    params = llama_cpp.llama_model_quantize_default_params()
    params.nthread, params.ftype, params.dry_run = 1, file_type, True
    values = (ctypes.c_float * 1)(1.0)
    entries = (llama_cpp.llama_model_imatrix_data * 2)()
    entries[0].name, entries[0].data, entries[0].size = b"none.weight", values, 1
    if has_imatrix:
        params.imatrix = entries
    failed = llama_cpp.llama_model_quantize(str(path).encode(), b"unused", ctypes.byref(params))
    text = "".join(said)
    assert failed == 0, text[-2000:]
    rows = re.findall(r"\] +(\S+) +- \[[^\]]*\], type = +(\w+), size = ([^\n]*)", text)
    types = {
        name: (arrow[1] if (arrow := re.search(r"-> .*\((\w+)\)", size)) else kept).upper()
        for name, kept, size in rows
    }
    return types, "will require an imatrix" in text


@pytest.mark.parametrize("model", MODELS)
def test_mixes_are_upstreams(llama_cpp: Any, files: dict[str, Path], model: str) -> None:
    known = MODELS[model]
    for preset in PRESETS.values():
        for has_imatrix in (False, True):
            wanted, misses = upstream(llama_cpp, files[model], preset.file_type, has_imatrix)
            found = preset_types(preset, known.shapes, known.facts, has_imatrix=has_imatrix)
            different = {
                name: (type_id, wanted[name])
                for name, type_id in found.items()
                if wanted[name] != type_id
            }
            assert not different, (preset.id, has_imatrix)
            assert wanted.keys() == found.keys()
            if not has_imatrix:
                assert bool(needing_imatrix(preset, found)) == misses, preset.id


def test_presets_are_those_of_upstream_that_we_can_encode(llama_cpp: Any) -> None:
    prefixes = ("LLAMA_FTYPE_MOSTLY_", "LLAMA_FTYPE_ALL_")
    numbers = {
        name.removeprefix(prefix): value
        for prefix in prefixes
        for name, value in vars(llama_cpp).items()
        if name.startswith(prefix)
    }
    assert {id_: preset.file_type for id_, preset in PRESETS.items()}.items() <= numbers.items()
    left = numbers.keys() - PRESETS.keys()
    assert left == {"NVFP4", "Q1_0", "Q2_0"}  # no mix upstream; types without an encoder here


def test_overrides_stand_but_must_fit() -> None:
    model = llama(width=320, layers=2, heads=4, kv_heads=2)
    name, norm = "blk.0.attn_q.weight", "blk.0.attn_norm.weight"
    types = preset_types(
        PRESETS["Q4_0"], model.shapes, model.facts, has_imatrix=False,
        overrides={name: "Q6_K", norm: "Q8_0", "blk.1.ffn_down.weight": "Q6_K"},
    )  # fmt: skip
    assert types[name] == "Q8_0"
    assert types[norm] == "F32"
    assert types["blk.1.ffn_down.weight"] == "Q6_K"
    assert types["blk.1.attn_q.weight"] == "Q4_0"


def test_overridden_tensors_are_not_counted() -> None:
    model = llama(layers=3)
    first = "blk.0.attn_v.weight"
    types = preset_types(
        PRESETS["Q3_K_M"], model.shapes, model.facts, has_imatrix=False, overrides={first: "Q8_0"}
    )
    assert [types[f"blk.{i}.attn_v.weight"] for i in range(3)] == ["Q8_0", "Q5_K", "Q5_K"]


def test_names_of_presets() -> None:
    assert find_preset("q4_k_m") is PRESETS["Q4_K_M"]
    assert find_preset("Q4_K") is PRESETS["Q4_K_M"]
    with pytest.raises(RequestError, match="unknown GGUF preset 'Q4_K_X'") as caught:
        find_preset("Q4_K_X")
    assert "Q4_K_" in (caught.value.hint or "")


def test_a_tensor_of_no_block_is_refused() -> None:
    model = llama(layers=2, experts=8)
    shapes = [*model.shapes, ("blk.2.ffn_down_exps.weight", (8, 256, 512))]
    with pytest.raises(RequestError, match=r"blk\.2\.ffn_down_exps\.weight is in none of the"):
        preset_types(PRESETS["Q4_K_M"], shapes, model.facts, has_imatrix=False)


@pytest.mark.parametrize("type_id", GGML_TYPES)
def test_what_stands_in_fills_the_rows(type_id: str) -> None:
    for columns in (256, 64, 32, 31):
        assert columns % GGML_TYPES[fitting(type_id, columns)].block == 0
    assert fitting(type_id, 256) == type_id


def test_one_row_is_a_vector() -> None:
    assert is_quantized("blk.0.attn_q.weight", (2, 256))
    assert not is_quantized("blk.0.attn_q.weight", (1, 256))
    assert not is_quantized("blk.0.attn_q.bias", (2, 256))
