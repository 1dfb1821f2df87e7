"""Importance matrices: both forms there and back, what llama.cpp makes of them, and damage."""

from __future__ import annotations

import ctypes
import random
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from llmopt.errors import LlmoptError, RequestError
from llmopt.formats.gguf.container import read_gguf
from llmopt.formats.imatrix import CHUNK, Imatrix, InputSquares, read_imatrix, write_imatrix
from tests.ggml_reference import Job, references

NAME = "blk.0.attn_q.weight"
EXPERTS = "blk.0.ffn_up_exps.weight"


def squares(matrices: int, cols: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(matrices, cols, generator=generator) ** 4 + 1e-3


@pytest.fixture
def imatrix() -> Imatrix:
    entries = {
        NAME: InputSquares.of(squares(1, 64), torch.tensor([5 * CHUNK])),
        EXPERTS: InputSquares.of(squares(3, 32), torch.tensor([700, 0, 1500])),
    }
    return Imatrix(entries=entries, chunks=5, datasets=("first.txt", "wiki.txt"))


def test_gguf_there_and_back(imatrix: Imatrix, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_imatrix(path, imatrix)
    found = read_imatrix(path)
    assert (found.chunks, found.chunk_size, found.datasets) == (5, CHUNK, ("first.txt", "wiki.txt"))
    assert found.entries.keys() == imatrix.entries.keys()
    for name, entry in imatrix.entries.items():
        assert torch.equal(found.entries[name].sums, entry.sums)
        assert torch.equal(found.entries[name].counts, entry.counts)
    first = path.read_bytes()
    write_imatrix(path, found)
    assert path.read_bytes() == first


def test_gguf_is_laid_out_as_the_tools_do(imatrix: Imatrix, tmp_path: Path) -> None:
    write_imatrix(tmp_path / "m.gguf", imatrix)
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    assert reader.fields["general.type"].contents() == "imatrix"
    assert reader.fields["imatrix.datasets"].contents() == ["first.txt", "wiki.txt"]
    for key, value in (("chunk_count", 5), ("chunk_size", 512)):
        assert reader.fields[f"imatrix.{key}"].types == [gguf.GGUFValueType.UINT32]
        assert reader.fields[f"imatrix.{key}"].contents() == value
    shapes = {tensor.name: tensor.shape.tolist() for tensor in reader.tensors}  # columns first
    assert shapes[f"{NAME}.in_sum2"] == [64]
    assert shapes[f"{NAME}.counts"] == [1]
    assert shapes[f"{EXPERTS}.in_sum2"] == [32, 3]
    assert shapes[f"{EXPERTS}.counts"] == [1, 3]


def legacy_means(path: Path) -> tuple[dict[str, Any], int, str]:
    """The older form as llama-quantize reads it: means by name, chunks, the dataset."""
    data, place = path.read_bytes(), 0

    def take(count: int) -> bytes:
        nonlocal place
        place += count
        return data[place - count : place]

    def number() -> int:
        return int(struct.unpack("<i", take(4))[0])

    means = {}
    for _ in range(number()):
        name = take(number()).decode()
        calls, length = number(), number()
        means[name] = np.frombuffer(take(4 * length), "<f4") / np.float32(calls)
    found = means, number(), take(number()).decode()
    assert place == len(data)
    return found


def test_the_older_form_there_and_back(imatrix: Imatrix, tmp_path: Path) -> None:
    path = tmp_path / "m.dat"
    write_imatrix(path, imatrix)
    means, chunks, dataset = legacy_means(path)
    assert (list(means), chunks, dataset) == (sorted(imatrix.entries), 5, "wiki.txt")
    found = read_imatrix(path)
    assert (found.chunks, found.datasets) == (5, ("wiki.txt",))
    for name, entry in imatrix.entries.items():
        mean = found.importance(name, *entry.sums.shape)
        assert mean is not None
        assert torch.equal(mean.flatten(), torch.from_numpy(means[name]))
        assert torch.allclose(mean, entry.mean, rtol=1e-6)
    assert torch.equal(found.importance(EXPERTS, 3, 32)[1], torch.ones(32))  # type: ignore[index]


def test_files_of_the_first_tools_end_after_the_entries(tmp_path: Path) -> None:
    path = tmp_path / "old.dat"
    body = struct.pack("<i", 1) + struct.pack("<i", 1) + b"a" + struct.pack("<iiff", 0, 2, 3.0, 4.0)
    path.write_bytes(body)
    found = read_imatrix(path)
    assert found.importance("a", 1, 2).tolist() == [[3.0, 4.0]]  # type: ignore[union-attr]
    assert (found.chunks, found.datasets) == (0, ())


def test_what_has_no_entry_and_what_has_another_size(imatrix: Imatrix) -> None:
    assert imatrix.importance("output.weight", 1, 64) is None
    with pytest.raises(RequestError, match=r"has 64 values for blk\.0\.attn_q\.weight, which need"):
        imatrix.importance(NAME, 1, 65)


def test_an_older_file_needs_a_token(tmp_path: Path) -> None:
    unseen = {NAME: InputSquares.of(squares(1, 4), torch.tensor([0]))}
    with pytest.raises(LlmoptError, match="no tensor saw a token"):
        write_imatrix(tmp_path / "m.dat", Imatrix(entries=unseen, chunks=0))
    assert not list(tmp_path.iterdir())


def model(path: Path, weights: dict[str, torch.Tensor]) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(256)
    writer.add_block_count(1)
    writer.add_feed_forward_length(256)
    writer.add_head_count(4)
    writer.add_layer_norm_rms_eps(1e-5)
    for name, weight in weights.items():
        writer.add_tensor(name, weight.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def upstream(llama_cpp: Any, source: Path, target: Path, means: dict[str, Any]) -> None:
    """llama_model_quantize with these means of squares."""
    arrays = {name: np.ascontiguousarray(mean) for name, mean in means.items()}
    data = (llama_cpp.llama_model_imatrix_data * (len(arrays) + 1))()
    for slot, (name, mean) in zip(data, arrays.items(), strict=False):
        slot.name, slot.size = name.encode(), mean.size
        slot.data = mean.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    params = llama_cpp.llama_model_quantize_default_params()
    params.nthread, params.ftype, params.imatrix = 1, llama_cpp.LLAMA_FTYPE_MOSTLY_Q5_K_S, data
    names = str(source).encode(), str(target).encode()
    assert llama_cpp.llama_model_quantize(*names, ctypes.byref(params)) == 0


def test_llama_cpp_makes_of_it_what_ggml_does_with_our_means(tmp_path: Path) -> None:
    """A file read as llama-quantize reads it and used by it, against the same file read by us."""
    llama_cpp = pytest.importorskip("llama_cpp")
    from llmopt.runtimes.llamacpp.native import native

    assert native().api is llama_cpp  # and it is quiet
    generator = torch.Generator().manual_seed(1)
    names = ["token_embd.weight", "blk.0.attn_q.weight", "blk.0.ffn_down.weight"]
    weights = {name: torch.randn(32, 256, generator=generator) for name in names}
    entries = {
        name: InputSquares.of(squares(1, 256, seed), torch.tensor([3 * CHUNK]))
        for seed, name in enumerate(names[1:])
    }
    source = model(tmp_path / "source.gguf", weights)
    jobs, found = [], []
    for suffix in ("gguf", "dat"):
        path, target = tmp_path / f"m.{suffix}", tmp_path / f"{suffix}.gguf"
        write_imatrix(path, Imatrix(entries=entries, chunks=3, datasets=("text",)))
        upstream(llama_cpp, source, target, tools_means(path))
        ours, content = read_imatrix(path), target.read_bytes()
        for name, tensor in read_gguf(target).tensors.items():
            importance = ours.importance(name, 1, 256)
            row = None if importance is None else importance[0]
            jobs.append(Job(tensor.type_id, weights[name], row))
            found.append(content[tensor.start : tensor.end])
    assert {job.type_id for job in jobs if job.importance is not None} == {"Q5_K"}
    for job, data, expected in zip(jobs, found, references(jobs), strict=True):
        assert data == expected.numpy().tobytes(), job.type_id


def tools_means(path: Path) -> dict[str, Any]:
    """What llama-quantize hands on: sums over counts in float32."""
    if path.suffix == ".dat":
        return legacy_means(path)[0]
    tensors = {tensor.name: tensor.data for tensor in gguf.GGUFReader(path).tensors}
    return {
        name.removesuffix(".counts"): tensors[name.replace(".counts", ".in_sum2")] / counts[0]
        for name, counts in tensors.items()
        if name.endswith(".counts")
    }


def test_a_model_is_no_imatrix(tmp_path: Path) -> None:
    path = model(tmp_path / "m.gguf", {NAME: torch.zeros(2, 256)})
    with pytest.raises(RequestError, match=r"m\.gguf holds no importance matrix"):
        read_imatrix(path)
    (tmp_path / "text.dat").write_text("Importance, in words: " * 20)
    with pytest.raises(RequestError, match=r"text\.dat is no importance matrix"):
        read_imatrix(tmp_path / "text.dat")
    with pytest.raises(RequestError, match="cannot read"):
        read_imatrix(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("sums", "counts", "message"),
    [
        (torch.tensor([[1.0, float("inf")]]), [4], "no squares sum up to"),
        (torch.tensor([[1.0, -1.0]]), [4], "no squares sum up to"),
        (torch.tensor([[1.0, 2.0]]), [-4], "no squares sum up to"),
        (torch.tensor([[1.0, 2.0, 3.0]]), [4, 4], "do not fit its sums"),
    ],
)
def test_values_that_make_no_sense(
    sums: torch.Tensor, counts: list[int], message: str, tmp_path: Path
) -> None:
    entry = InputSquares(sums=sums, counts=torch.tensor(counts))
    write_imatrix(tmp_path / "m.gguf", Imatrix(entries={NAME: entry}, chunks=1))
    with pytest.raises(RequestError, match=message):
        read_imatrix(tmp_path / "m.gguf")


@pytest.mark.parametrize("suffix", ["gguf", "dat"])
def test_damage_is_refused_or_reads_as_something_sound(
    suffix: str, imatrix: Imatrix, tmp_path: Path
) -> None:
    path = tmp_path / f"m.{suffix}"
    write_imatrix(path, imatrix)
    whole, chance = path.read_bytes(), random.Random(0)
    refusals = []
    for _ in range(200):
        torn = bytearray(whole[: chance.choice([len(whole), chance.randrange(len(whole))])])
        for _ in range(chance.randrange(1, 4)):
            if torn:
                torn[chance.randrange(min(len(torn), 400))] = chance.choice([0, 127, 128, 255])
        path.write_bytes(torn)
        try:
            found = read_imatrix(path)
        except RequestError as error:
            refusals.append(error.message)
        else:
            assert all(bool(entry.mean.isfinite().all()) for entry in found.entries.values())
    assert len(refusals) > 130
    assert not [message for message in refusals if "\n" in message]
