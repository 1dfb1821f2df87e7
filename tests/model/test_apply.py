"""What a model holds once changes are carried out follows from them alone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llmopt.errors import RequestError
from llmopt.formats.quantization import read_contents
from llmopt.model.apply import apply
from llmopt.model.change import Change, ConfigChange
from llmopt.model.contents import Contents
from llmopt.model.layout import Layout, ggml_layout
from tests import models

INT4 = Layout(grid="int4", group_size=32, symmetric=True)


@pytest.fixture(scope="module")
def contents(tmp_path_factory: pytest.TempPathFactory) -> Contents:
    folder = tmp_path_factory.mktemp("apply") / "model"
    models.save(folder, "qwen3")
    return read_contents(folder)


def kept(contents: Contents) -> list[Change]:
    return [
        Change(name=name, actions=("kept",), shape=t.shape, bytes=t.nbytes, dtype=t.dtype)
        for name, t in contents.tensors.items()
    ]


def test_what_is_kept_is_as_it_was(contents: Contents) -> None:
    assert apply(contents, kept(contents), format_id=None) == contents


def without_first_block(contents: Contents) -> list[Change]:
    first, second = (f"{contents.naming.blocks}.{block}." for block in (0, 1))
    changes = []
    for change in kept(contents):
        if change.name.startswith(first):
            change = replace(change, actions=("dropped",), bytes=0)
        elif change.name.startswith(second):
            name = change.name.replace(second, first)
            change = replace(change, name=name, sources=(change.name,))
        changes.append(change)
    return changes


def test_a_block_is_dropped_and_the_config_says_so(contents: Contents) -> None:
    config = [ConfigChange(key=("num_hidden_layers",), value=1)]
    after = apply(contents, without_first_block(contents), config, format_id=None)
    assert (contents.naming.block_count, after.naming.block_count) == (2, 1)
    assert after.config == contents.config | {"num_hidden_layers": 1}
    assert contents.config["num_hidden_layers"] == 2
    in_blocks = [name for name in contents.tensors if contents.naming.block_of(name) is not None]
    assert len(after.tensors) == len(contents.tensors) - len(in_blocks) / 2


def test_a_linear_is_reshaped_and_quantized(contents: Contents) -> None:
    changes = kept(contents)
    index = next(i for i, each in enumerate(changes) if each.name.endswith("up_proj.weight"))
    name = changes[index].name
    changes[index] = Change(
        name=name, actions=("reshaped", "masked", "quantized"), shape=(32, 64), bytes=1100,
        layout=INT4, options=(INT4, replace(INT4, grid="int8")),
    )  # fmt: skip
    after = apply(contents, changes, format_id="gptq")
    tensor = after.tensors[name]
    assert (tensor.shape, tensor.nbytes, tensor.layout) == ((32, 64), 1100, INT4)
    assert not tensor.settled
    assert after.format == "gptq"
    assert changes[index].words == "reshaped and masked and quantized"


def test_tensors_are_split_and_merged(contents: Contents) -> None:
    """Names may come from several tensors, and several from one."""
    gate, up = (
        next(each for each in kept(contents) if each.name.endswith(f"0.mlp.{part}_proj.weight"))
        for part in ("gate", "up")
    )
    both = Change(
        name=gate.name, sources=(gate.name, up.name), actions=("merged",), shape=(192, 64),
        bytes=gate.bytes * 2, dtype=gate.dtype,
    )  # fmt: skip
    merged = [each for each in kept(contents) if each.name not in (gate.name, up.name)] + [both]
    between = apply(contents, merged, format_id=None)
    assert up.name not in between.tensors
    assert between.tensors[gate.name].shape == (192, 64)
    halves = [replace(each, sources=(gate.name,), actions=("split",)) for each in (gate, up)]
    again = [each for each in kept(between) if each.name != gate.name] + halves
    assert apply(between, again, format_id=None).tensors == contents.tensors


def test_types_of_a_gguf_file_are_layouts_in_blocks_and_dtypes_beside_them(
    contents: Contents,
) -> None:
    layout = ggml_layout("Q8_0")
    changes = [
        replace(each, actions=("quantized",), layout=layout) if len(each.shape) == 2 else each
        for each in kept(contents)
    ]
    after = apply(contents, changes, format_id="gguf", kind="gguf")
    embedding = after.tensors["model.embed_tokens.weight"]
    assert (embedding.layout, embedding.dtype) == (None, "Q8_0")
    assert after.tensors["model.layers.0.mlp.up_proj.weight"].layout == layout
    assert after.stored_as == "gguf"


def test_what_is_no_model_any_more_is_refused(contents: Contents) -> None:
    nothing = [replace(each, actions=("dropped",)) for each in kept(contents)]
    with pytest.raises(RequestError, match="the weights have no tensor named"):
        apply(contents, nothing, format_id=None)
    lost = [each for each in kept(contents) if ".0." not in each.name]
    with pytest.raises(RequestError, match="the weights have no tensor of block 0"):
        apply(contents, lost, format_id=None)
