"""A GGUF file as an input: the model folder made for it, and what reads such folders."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from llmopt.errors import LlmoptError, RequestError
from llmopt.formats.checkpoint import Checkpoint
from llmopt.formats.codec import decode
from llmopt.formats.gguf.export import metadata, placements
from llmopt.formats.gguf.view import model_folder
from llmopt.formats.gguf.weights import nearest, unchanged
from llmopt.formats.gguf.writer import TensorEntry, write_gguf
from llmopt.formats.headers import read_headers
from llmopt.formats.quantization import read_contents
from llmopt.formats.safetensors import read_tensor
from llmopt.formats.safetensors_header import read_file_headers
from llmopt.formats.shards import ShardWriter
from llmopt.grids.ggml import BlockTensor, encode
from llmopt.sources import resolve
from tests.gguf_files import altered, write_model
from tests.models import save


@pytest.fixture
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    return tmp_path / "caches" / "llmopt"


def written(folder: Path, type_id: str = "F32", family: str = "llama", **options: object) -> Path:
    save(folder / "m", family, tie_word_embeddings=False)
    return write_model(folder / "m", folder / "tiny.gguf", type_id, **options)[0]


def test_a_file_is_a_model(tmp_path: Path, caches: Path) -> None:
    source = resolve(str(written(tmp_path)))
    assert source.name == "tiny"
    assert source.folder.parent == caches / "gguf"
    contents = read_contents(source.folder)
    assert (contents.family.id, contents.format) == ("llama", None)
    assert contents.nbytes == read_contents(tmp_path / "m").nbytes
    assert (source.folder / "tiny.gguf").is_symlink()
    assert resolve(str(tmp_path / "tiny.gguf")) == source


def test_a_file_that_moved_is_linked_anew(tmp_path: Path, caches: Path) -> None:
    path = written(tmp_path)
    folder = model_folder(path, caches)
    (tmp_path / "elsewhere").mkdir()
    moved = path.rename(tmp_path / "elsewhere" / "tiny.gguf")
    assert model_folder(moved, caches) == folder
    assert (folder / "tiny.gguf").resolve() == moved
    assert Checkpoint.open(folder).read("model.norm.weight").shape == (64,)


def test_another_file_has_another_folder(tmp_path: Path, caches: Path) -> None:
    first = model_folder(written(tmp_path), caches)
    second = model_folder(write_model(tmp_path / "m", tmp_path / "tiny.gguf", "F16")[0], caches)
    assert first != second
    assert read_headers(second).tensors["lm_head.weight"].dtype == "F16"


def test_split_files_are_linked_together(tmp_path: Path, caches: Path) -> None:
    path = written(tmp_path, max_file_bytes=100_000)
    folder = model_folder(path, caches)
    assert len(list(folder.glob("*.gguf"))) > 1
    found = Checkpoint.open(folder)
    assert found.stored.keys() == Checkpoint.open(tmp_path / "m").stored.keys()


def test_the_tokenizer_comes_along(tmp_path: Path, caches: Path) -> None:
    demo = resolve("demo").folder
    contents = read_contents(demo)
    about = metadata(contents, demo, {"general.name": "demo"}, 1)
    (head,) = (p for p in placements(contents, tied=True) if p.name == "token_embd.weight")
    entry = TensorEntry(head.name, "F16", head.shape, nearest(Checkpoint.open(demo), head, "F16"))
    write_gguf(tmp_path / "demo.gguf", about, [entry, *_nothing(5)])
    found = AutoTokenizer.from_pretrained(model_folder(tmp_path / "demo.gguf", caches))
    text = "def f(x):\n    return x + 1  # ünïcode 🙂\n"
    assert found(text).input_ids == AutoTokenizer.from_pretrained(demo)(text).input_ids


def _nothing(count: int) -> list[TensorEntry]:
    """So many tensors that a model with that many blocks could be there."""
    return [
        TensorEntry(f"blk.{i}.attn_norm.weight", "F32", (1,), lambda: [bytes(4)])
        for i in range(count)
    ]


def test_damaged_files_leave_no_folder(tmp_path: Path, caches: Path) -> None:
    path = written(tmp_path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(RequestError, match="truncated"):
        resolve(str(path))
    path.write_bytes(write_model(tmp_path / "m", path)[0].read_bytes().replace(b"llama", b"mamba"))
    with pytest.raises(RequestError, match="holds a mamba model, which is not supported"):
        resolve(str(path))
    assert not list(caches.glob("gguf/*"))


@pytest.mark.parametrize("shape", [(32,), (2, 2, 32), (2, 2, 2, 32)])
@pytest.mark.parametrize("type_id", ["F32", "Q8_0"])
def test_linears_that_are_no_matrices_are_refused(
    tmp_path: Path, caches: Path, type_id: str, shape: tuple[int, ...]
) -> None:
    path = altered(written(tmp_path, type_id), shapes={"blk.0.ffn_up.weight": shape})
    with pytest.raises(RequestError, match=r"blk\.0\.ffn_up\.weight the shape .* be a matrix"):
        read_contents(resolve(str(path)).folder)


@pytest.mark.parametrize("pattern", [[True], [0.5, 0.5]])
def test_windows_for_some_blocks_only_are_refused(
    tmp_path: Path, caches: Path, pattern: list[float]
) -> None:
    key = "gemma3.attention.sliding_window_pattern"
    path = written(tmp_path, family="gemma3_text")
    resolve(str(path))
    altered(path, {key: pattern})
    with pytest.raises(RequestError, match=r"sliding_window_pattern = .*, which cannot be"):
        resolve(str(path))


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    path = written(tmp_path)
    (tmp_path / "gguf").touch()
    with pytest.raises(LlmoptError, match="cannot write to"):
        model_folder(path, tmp_path)


def test_a_folder_with_a_config_of_its_own_is_read_by_it(tmp_path: Path) -> None:
    path = written(tmp_path)
    (tmp_path / "m/model.safetensors").unlink()
    path.rename(tmp_path / "m/tiny.gguf")
    assert Checkpoint.open(tmp_path / "m").read("lm_head.weight").shape == (96, 64)
    config = (tmp_path / "m/config.json").read_text("utf-8")
    (tmp_path / "m/config.json").write_text(config.replace('"llama"', '"qwen2"'), "utf-8")
    with pytest.raises(RequestError, match=r"holds a llama model, but its config\.json says qwen2"):
        Checkpoint.open(tmp_path / "m")


def test_linears_in_blocks_are_quantized_layers(tmp_path: Path, caches: Path) -> None:
    folder = model_folder(written(tmp_path, "Q8_0"), caches)
    contents, checkpoint = read_contents(folder), Checkpoint.open(folder)
    assert contents.format == "gguf"
    name = "model.layers.1.self_attn.q_proj"
    tensor = contents.tensors[f"{name}.weight"]
    assert tensor.shape == (64, 64)
    assert tensor.layout is not None
    assert tensor.layout.grid == "Q8_0"
    layer = checkpoint.read_layer(name)
    assert isinstance(layer, BlockTensor)
    expected = encode("Q8_0", Checkpoint.open(tmp_path / "m").read(f"{name}.weight"))
    assert torch.equal(layer.data, expected)  # rows are back in the model's order
    assert torch.equal(checkpoint.weight(name), decode(layer))
    # what is not a linear of a block is plain, and decoded when it is read
    assert contents.tensors["lm_head.weight"].layout is None
    assert checkpoint.stored["lm_head.weight"].dtype == torch.float32
    assert checkpoint.read("lm_head.weight").dtype == torch.float32


def test_kept_tensors_are_written_as_they_are_read(tmp_path: Path, caches: Path) -> None:
    checkpoint = Checkpoint.open(model_folder(written(tmp_path, "Q8_0", "gemma3_text"), caches))
    names = ["lm_head.weight", "model.norm.weight", "model.layers.0.self_attn.q_norm.weight"]
    writer = ShardWriter(tmp_path / "parts")
    for name in names:
        writer.keep(name, checkpoint.stored[name].header)
    (tmp_path / "out").mkdir()
    writer.finalize(tmp_path / "out")
    found = read_file_headers(tmp_path / "out/model.safetensors")
    for name in names:
        assert torch.equal(read_tensor(found[name]), checkpoint.read(name))


def test_interleaved_rows_are_put_back_when_kept(tmp_path: Path, caches: Path) -> None:
    checkpoint = Checkpoint.open(model_folder(written(tmp_path, "F16"), caches))
    name = "model.layers.0.self_attn.k_proj.weight"
    writer = ShardWriter(tmp_path / "parts")
    writer.keep(name, checkpoint.stored[name].header)
    (tmp_path / "out").mkdir()
    writer.finalize(tmp_path / "out")
    found = read_tensor(read_file_headers(tmp_path / "out/model.safetensors")[name])
    assert torch.equal(found, Checkpoint.open(tmp_path / "m").read(name).half())


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_from_file_to_file_bytes_are_copied(tmp_path: Path, caches: Path, family: str) -> None:
    path = written(tmp_path, "F16", family)
    folder = model_folder(path, caches)
    contents, checkpoint = read_contents(folder), Checkpoint.open(folder)
    for place in placements(contents, tied=False):
        assert unchanged(checkpoint, place, "F32" if place.float32 else "F16") is not None
        assert unchanged(checkpoint, place, "BF16") is None
    write_model(folder, tmp_path / "again.gguf", "F16")
    # but for what no tensor says: the name, and how the config came about
    assert (tmp_path / "again.gguf").read_bytes() == path.read_bytes()
