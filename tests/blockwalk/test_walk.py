"""The walk on tiny models of every family."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from llmopt import processor
from llmopt.errors import LlmoptError
from llmopt.formats.checkpoint import Checkpoint
from llmopt.formats.codec import decode
from llmopt.formats.gptq_config import SUFFIXES
from llmopt.grids.base import QuantizedTensor
from llmopt.model.layout import Layout
from llmopt.specs.families import FAMILIES
from tests import models
from tests.blockwalk.conftest import (
    EachInlet,
    Halve,
    Inlet,
    Round,
    Watch,
    calibration,
    rounded,
    run,
)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def hessian(x: torch.Tensor) -> torch.Tensor:
    x = x.reshape(-1, x.shape[-1]).double()
    return (x.T @ x / len(x)).float()


def close(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    """As close as sums in two orders, or as products of rounded operands where those are fast."""
    allowed = 2e-3 if processor.fast_bfloat16() else 1e-5
    return bool((ours - theirs).abs().max() <= allowed * theirs.abs().max())


@pytest.mark.parametrize("changes", [False, True])
@pytest.mark.parametrize("family", models.FAMILY_SETTINGS)
def test_an_unchanged_model_shows_its_own_activations(
    tmp_path: Path, family: str, changes: bool
) -> None:
    """... at every linear and after the last norm, and copies the checkpoint byte for byte."""
    model = models.with_plain_experts(models.save(tmp_path / "model", family))
    spec, inputs = FAMILIES[family], {}
    naming = Checkpoint.open(tmp_path / "model").naming
    for name in (inlet[0] for block in range(2) for inlet in naming.linears(block)):

        def note(_: object, given: tuple[torch.Tensor], name: str = name) -> None:
            inputs[name] = given[0]

        model.get_submodule(naming.module(name)).register_forward_pre_hook(note)
    with torch.no_grad():
        final = model.get_submodule(spec.base)(calibration())[0]
    watch = Watch(changes=changes)
    run(tmp_path / "model", tmp_path, watch, tokens=calibration(), head=True)
    seen = {names[0]: statistics for names, statistics in watch.seen.items()}
    head = naming.head
    assert seen.keys() == {*inputs, head}
    for name, x in {**inputs, head: final}.items():
        if naming.pool_of(name) is None:
            assert seen[name].tokens == 60
            assert close(seen[name].hessian, hessian(x)), name
    before, after = (tmp_path / name / "model.safetensors" for name in ("model", "out"))
    assert before.read_bytes() == after.read_bytes()


@pytest.mark.parametrize("family", models.FAMILY_SETTINGS)
@pytest.mark.parametrize("sequential", [False, True])
def test_statistics_come_from_what_was_changed_before(
    tmp_path: Path, family: str, sequential: bool
) -> None:
    """The second block, and in sequence each inlet, sees rounded weights before it."""
    model = models.with_plain_experts(models.save(tmp_path / "model", family))
    spec, x = FAMILIES[family], {}
    naming = Checkpoint.open(tmp_path / "model").naming
    last_round = naming.rounds(1)[-1]
    late = last_round[0][-1]  # with experts, one whose input every token reaches
    if naming.pool_of(late) is not None:
        pytest.skip("every linear of the last round is an expert's: see test_experts")
    at_the_end = {name for names in last_round for name in names}
    rounding = Round(sequential=sequential, weighed=False)
    run(tmp_path / "model", tmp_path, rounding, tokens=calibration())
    statistics = {names[0]: seen for names, seen in rounding.seen.items()}
    done = weights_as_run(tmp_path / "out")
    changed = 1 if sequential else 0
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            module = naming.name(name.removesuffix(".weight"))
            first = f"{spec.base}.{spec.blocks}.0." in name
            if module in done and (first or (changed and module not in at_the_end)):
                parameter.copy_(done[module])
        model.get_submodule(naming.module(late)).register_forward_pre_hook(
            lambda _, given: x.update(late=given[0])
        )
        model(calibration())
    assert close(statistics[late].hessian, hessian(x["late"]))


LAYOUT = Layout(grid="int4", group_size=32, symmetric=True)


def weights_as_run(folder: Path) -> dict[str, torch.Tensor]:
    """The decoded linears of an artifact, in the checkpoint's orientation."""
    model = folder.parent / "model"
    source = Checkpoint.open(model)
    from llmopt.formats import gptq

    stored, decoded = weights(folder), {}
    for name in stored:
        if name.endswith(".qweight"):
            module = name.removesuffix(".qweight")
            parts = {suffix: stored[f"{module}.{suffix}"] for suffix in SUFFIXES}
            weight = decode(gptq.Codec().unpack(parts, LAYOUT))
            decoded[module] = weight.T if source.family.conv1d else weight
    return decoded


@pytest.mark.parametrize("family", models.FAMILY_SETTINGS)
def test_every_tensor_is_accounted_for_once(tmp_path: Path, family: str) -> None:
    models.save(tmp_path / "model", family)
    before = weights(tmp_path / "model")
    records = run(tmp_path / "model", tmp_path, Round(), tokens=calibration())
    after = weights(tmp_path / "out")
    naming = Checkpoint.open(tmp_path / "model").naming
    linears = {name for block in range(2) for inlet in naming.linears(block) for name in inlet}
    assert records.keys() == linears
    suffixes = ("qweight", "qzeros", "scales", "g_idx")
    expected = {name for name in before if name.removesuffix(".weight") not in linears}
    assert after.keys() == expected | {f"{m}.{suffix}" for m in linears for suffix in suffixes}
    assert all(torch.equal(after[name], before[name]) for name in expected)


def test_without_data_the_passes_are_all_that_happens(tmp_path: Path) -> None:
    models.save(tmp_path / "model", "gpt2")
    before = weights(tmp_path / "model")
    watch = Watch()
    run(tmp_path / "model", tmp_path, watch, Round(skip=["mlp"]), tokens=None)
    assert set(watch.seen.values()) == {None}
    decoded = weights_as_run(tmp_path / "out")
    assert len(decoded) == 4
    for module, weight in decoded.items():
        assert torch.equal(weight.T, decode(rounded(before[f"{module}.weight"].T.contiguous())))
    assert torch.equal(
        weights(tmp_path / "out")["transformer.h.0.mlp.c_fc.weight"],
        before["transformer.h.0.mlp.c_fc.weight"],
    )


def test_passes_run_in_order_on_each_others_results(tmp_path: Path) -> None:
    """Halving before rounding gives half the scales; plain results keep the stored dtype."""
    models.save(tmp_path / "model", "gpt2")
    before = weights(tmp_path / "model")
    half = {name: tensor.bfloat16() for name, tensor in before.items()}
    save_file(half, tmp_path / "model" / "model.safetensors")
    run(tmp_path / "model", tmp_path, Halve(), Round(skip=["mlp"]), tokens=calibration())
    after = weights(tmp_path / "out")
    name = "transformer.h.1.mlp.c_proj.weight"
    assert after[name].dtype == torch.bfloat16
    assert torch.equal(after[name], half[name] * 0.5)
    quantized = weights_as_run(tmp_path / "out")
    assert all("attn" in module for module in quantized)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
def test_a_quantized_head_gets_statistics_and_a_tensor_of_its_own(
    tmp_path: Path, family: str
) -> None:
    models.save(tmp_path / "model", family)
    before = weights(tmp_path / "model")
    run(tmp_path / "model", tmp_path, Round(), tokens=calibration(), head=True)
    after = weights(tmp_path / "out")
    naming = Checkpoint.open(tmp_path / "model").naming
    assert after[f"{naming.head}.qweight"].shape == (64 * 4 // 32, 96)
    assert f"{naming.head}.weight" not in after
    embedding = f"{naming.embedding}.weight"
    assert torch.equal(after[embedding], before[embedding])


def test_a_missing_base_prefix_is_put_back(tmp_path: Path) -> None:
    models.save(tmp_path / "model", "gpt2")
    whole = weights(tmp_path / "model")
    short = {name.removeprefix("transformer."): tensor for name, tensor in whole.items()}
    short["h.0.attn.bias"] = torch.ones(1, 1, 4, 4)  # a mask that old checkpoints carry
    save_file(short, tmp_path / "model" / "model.safetensors")
    watch = Watch()
    run(tmp_path / "model", tmp_path, watch, tokens=calibration())
    assert ("transformer.h.0.attn.c_attn",) in watch.seen
    assert weights(tmp_path / "out").keys() == {*whole, "transformer.h.0.attn.bias"}


@pytest.mark.parametrize("base", ["language_model.model", "model.language_model"])
def test_a_text_model_inside_another_is_walked(tmp_path: Path, base: str) -> None:
    import json

    models.save(tmp_path / "model", "gemma3_text", tie_word_embeddings=True)
    path = tmp_path / "model" / "config.json"
    config = {"model_type": "gemma3", "text_config": json.loads(path.read_text())}
    path.write_text(json.dumps(config))
    tensors = {
        name.replace("model", base, 1): tensor
        for name, tensor in weights(tmp_path / "model").items()
        if name != "lm_head.weight"
    }
    tensors["vision_tower.layers.0.weight"] = torch.ones(3)
    save_file(tensors, tmp_path / "model" / "model.safetensors")
    run(tmp_path / "model", tmp_path, Round(), tokens=calibration())
    after = weights(tmp_path / "out")
    assert f"{base}.layers.1.mlp.down_proj.qweight" in after
    assert torch.equal(after["vision_tower.layers.0.weight"], torch.ones(3))


def test_a_quantized_checkpoint_can_be_walked_again(tmp_path: Path) -> None:
    """Its untouched layers keep their codes; the activations are those of the decoded model."""
    import json

    from llmopt.formats import gptq

    models.save(tmp_path / "model")
    run(tmp_path / "model", tmp_path, Round(skip=["mlp"]), tokens=calibration())
    once = tmp_path / "out"
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config["quantization_config"] = gptq.quantization_config({"m": LAYOUT}, version="gptq")
    (once / "config.json").write_text(json.dumps(config))
    for tokens in (calibration(), None):
        again = tmp_path / f"again-{tokens is None}"
        run(once, again, Round(skip=["attn"]), tokens=tokens)
        ours, theirs = weights(again / "out"), weights(once)
        kept = [name for name in theirs if "attn" in name]
        assert len(kept) > 8
        assert all(torch.equal(ours[name], theirs[name]) for name in kept)
        assert "model.layers.0.mlp.up_proj.qweight" in ours


class Spoil(EachInlet):
    """Asks for something that cannot be written, or names a linear of another inlet."""

    def __init__(self, name: str | None = None, scale: float = 0.1) -> None:
        super().__init__()
        self.name, self.scale = name, scale

    def visit(self, inlet: Inlet) -> None:
        tensor = rounded(inlet.weight(inlet.names[0]))
        params = tensor.params.__class__(
            **{**vars(tensor.params), "scale": torch.full_like(tensor.params.scale, self.scale)}
        )
        value = QuantizedTensor(grid=tensor.grid, codes=tensor.codes, params=params)
        inlet.replace(self.name or inlet.names[0], value)


def test_what_the_format_cannot_hold_stops_the_walk(tmp_path: Path) -> None:
    models.save(tmp_path / "model")
    with pytest.raises(LlmoptError, match=r"layers\.0\.self_attn\.q_proj cannot be written: a sc"):
        run(tmp_path / "model", tmp_path, Spoil(), tokens=None)
    with pytest.raises(LlmoptError, match="nothing is not one of the linears"):
        run(tmp_path / "model", tmp_path, Spoil("nothing"), tokens=None)
