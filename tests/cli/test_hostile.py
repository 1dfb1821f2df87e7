"""Nothing that comes with a model runs, whatever is done with it: traps in every place.

Each trap leaves a mark if it runs. Every command that takes a model or a text is walked, with "y"
on its standard input; nothing may ask, run, or reach for the network.
"""

from __future__ import annotations

import io
import json
import pickle
import re
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import models
from tests.cli.conftest import Llmopt, Ran
from tests.cli.stub_hub import TOKEN, StubHub, serve

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

MESSAGES = [{"role": "user", "content": "jump"}, {"role": "assistant", "content": "quick zebras"}]
TEXT = "How vexingly quick daft zebras jump! " * 40

#: what makes the tokenizer code, in ways that differ: (tokenizer_config.json, config.json)
TOKENIZERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "fast": ({"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": [None, "evil.Evil"]}}, {}),
    "slow": ({"auto_map": {"AutoTokenizer": ["evil.Evil", None]}}, {}),
    "old form": ({"tokenizer_class": "Evil", "auto_map": ["evil.Evil", "evil.Evil"]}, {}),
    "one name": ({"auto_map": {"AutoTokenizer": "evil.Evil"}}, {}),
    "of another repository": (
        {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": [None, "org/e--evil.Evil"]}}, {},
    ),
    "beside a known class": (
        {"tokenizer_class": "LlamaTokenizer", "auto_map": {"AutoTokenizer": [None, "evil.Evil"]}},
        {},
    ),
    "in config.json": ({}, {"auto_map": {"AutoTokenizer": [None, "evil.Evil"]}}),
    "a class that loads models": ({"tokenizer_class": "AutoModelForCausalLM"}, {}),
    "a class that loads anything": ({}, {"tokenizer_class": "AutoProcessor"}),
    "a function": ({"tokenizer_class": "pipeline"}, {}),
    "a class of no name": ({"tokenizer_class": ["Evil"]}, {}),
}  # fmt: skip


class Marks:
    """Where traps leave their marks."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    def code(self, name: str) -> str:
        return f"open({str(self.folder / name)!r}, 'w').close()\n"

    def pickled(self, name: str) -> bytes:
        code = self.code(name)

        class Trap:
            def __reduce__(self) -> Any:
                return exec, (code,)

        return pickle.dumps({"weight": Trap()})

    @property
    def found(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir())


@pytest.fixture
def marks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Marks:
    """... and a network that is a trap, too, but for this machine."""
    found = Marks(tmp_path / "marks")
    connect = socket.socket.connect

    def trapped(self: socket.socket, address: Any) -> Any:
        if isinstance(address, tuple) and address[0] not in ("127.0.0.1", "localhost"):
            (found.folder / "network").touch()
            raise OSError("no network in this test")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", trapped)
    return found


def edit(path: Path, **members: Any) -> None:
    held = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(held | members))


def hostile(folder: Path, marks: Marks, **tokenizer: Any) -> Path:
    """A small model whose folder holds every trap but those of TOKENIZERS."""
    models.save_with_bytes(folder, max_position_embeddings=256)
    trap = marks.code("module") + "class Evil:\n    pass\nConfig = Model = Kernel = Evil\n"
    (folder / "evil.py").write_text(trap)
    for name in ("generate", "__init__", "train", "modeling"):
        place = folder / "custom_generate" / f"{name}.py"
        place.parent.mkdir(exist_ok=True)
        place.write_text(marks.code("custom_generate"))
    autos = ("Config", "Model", "ModelForCausalLM", "Processor", "FeatureExtractor")
    auto_map = {f"Auto{name}": f"evil.{name.removeprefix('ModelFor')}" for name in autos}
    edit(
        folder / "config.json",
        auto_map=auto_map,
        attn_implementation="org/evil:kernel",
        _attn_implementation="org/evil",
        _attn_implementation_internal="org/evil",
        experts_implementation="org/evil",
        use_kernels=True,
        kernel_config={"kernel_mapping": {"RMSNorm": "org/evil:Kernel"}},
        _name_or_path="org/evil",
        custom_generate="org/evil",
        trust_remote_code=True,
        rope_scaling=None,
        vision_config={"auto_map": auto_map, "_attn_implementation": "org/evil"},
    )
    edit(folder / "generation_config.json", custom_generate="org/evil", trust_remote_code=True)
    edit(folder / "tokenizer_config.json", trust_remote_code=True, **tokenizer)
    for name in ("processor_config.json", "preprocessor_config.json"):
        edit(folder / name, auto_map=auto_map, processor_class="Evil")
    for name in ("pytorch_model.bin", "optimizer.pt", "training_args.bin"):
        (folder / name).write_bytes(marks.pickled(name))
    (folder / "README.md").write_text(
        "---\nlicense: mit\ntags: !!python/object/apply:os.system ['touch readme']\n"
        f"x: !!python/object/apply:builtins.exec ['{marks.code('readme').strip()}']\n---\n"
        .replace(f"'{marks.folder}", f"''{marks.folder}").replace("', 'w'", "'', ''w''")
    )  # fmt: skip
    for name in ("sitecustomize", "torch", "transformers", "jinja2", "tokenize", "json"):
        (folder / f"{name}.py").write_text(marks.code(name))
    return folder


def texts(folder: Path, marks: Marks) -> None:
    """Text to work with, and a data set that brings a script."""
    (folder / "held.txt").write_text("Sphinx of black quartz, judge my vow. " * 120)
    (folder / "text.txt").write_text(TEXT)
    lines = [json.dumps({"messages": MESSAGES}) + "\n"] * 60
    (folder / "chat.jsonl").write_text("".join(lines))
    data = folder / "set"
    data.mkdir()
    (data / "set.py").write_text(marks.code("data set"))
    (data / "dataset_infos.json").write_text("{}")
    (data / "state.json").write_text(json.dumps({"_data_files": [{"filename": "set.py"}]}))


def walk(llmopt: Llmopt, marks: Marks, monkeypatch: pytest.MonkeyPatch, *command: object) -> Ran:
    """Run a command and hold what it does against what must never happen."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"y\n" * 50)))
    ran = llmopt(*command)
    assert marks.found == [], (command, marks.found)
    assert ran.code in (0, 2), (command, ran.err)
    said = ran.out + ran.err
    assert "Traceback" not in said, (command, said)
    assert not re.search(r"\[y/n\]|trust_remote_code|custom code", said, re.IGNORECASE), said
    if ran.code == 2:
        errors = [line for line in ran.err.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1, (command, ran.err)
    return ran


SMALL = ("--device", "cpu", "--group-size", 32, "--gate", "none")
CALIBRATED = ("--sequences", 4, "--length", 16)
TEMPLATE = {"chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}"}
#: commands that work on the folder, and what comes of them
WORKS: dict[str, tuple[object, ...]] = {
    "quantize": ("quantize", "model", "-o", "w4", "--method", "rtn", *SMALL),
    "calibrated": (
        "quantize", "model", "-o", "calibrated", "--calibration", "text.txt", *CALIBRATED, *SMALL,
    ),
    "chat": (
        "quantize", "model", "-o", "chat", "--calibration", "chat.jsonl", "--field", "messages",
        *CALIBRATED, *SMALL,
    ),
    "gated": (
        "quantize", "model", "-o", "gated", "--method", "rtn", "--evaluation", "held.txt",
        *SMALL[:4], "--gate", "kl.mean < 1000",
    ),
    "to gguf": ("convert", "model", "-o", "model.gguf", "--to", "gguf:F16"),
    "to awq": ("convert", "w4", "-o", "awq", "--to", "awq", "--device", "cpu"),
    "to compressed-tensors": ("convert", "w4", "-o", "packed", "--to", "compressed-tensors"),
    "to plain": ("convert", "w4", "-o", "plain", "--to", "hf"),
    "to an importance matrix": (
        "convert", "model", "-o", "model.dat", "--to", "imatrix", "--calibration", "text.txt",
        *CALIBRATED, "--device", "cpu",
    ),
    "bench": (
        "bench", "w4", "--against", "model", "--evaluation", "held.txt", "--windows", 4,
        "--length", 16, "--device", "cpu", "-o", "scores",
    ),
    "inspect": ("inspect", "model", "--tensors"),
    "sensitivity": (
        "inspect", "model", "--sensitivity", "--candidate", "int4 g32", "--calibration", "text.txt",
        "--sequences", 4, "--device", "cpu",
    ),
    "verify": ("verify", "w4"),
    "report": ("report", "scores", "-o", "page.html"),
    "generate": ("generate", "model", "-p", "jump", "-n", 4, "--device", "cpu"),
    "generate, quantized": ("generate", "w4", "-p", "jump", "-n", 4, "--device", "cpu"),
    "generate, stdin": ("generate", "model", "-p", "-", "-n", 4, "--device", "cpu"),
    "plan": ("plan", "recipe.yaml"),
    "run": ("run", "recipe.yaml", "-o", "results"),
    "push": ("push", "w4", "me/w4"),
}  # fmt: skip
#: commands that cannot do as they are asked
REFUSED: dict[str, tuple[object, ...]] = {
    "a data set with a script": ("quantize", "model", "-o", "no", "--calibration", "set", *SMALL),
    "a recipe that is code": ("run", "evil.yaml"),
    "a plan of it": ("plan", "evil.yaml"),
    "only pickles": ("quantize", "pickles", "-o", "no", "--method", "rtn", *SMALL),
    "pickles allowed": (
        "quantize", "pickles", "-o", "no", "--method", "rtn", "--allow-pickle", *SMALL,
    ),
    "a folder of code": ("quantize", "set", "-o", "no", "--method", "rtn", *SMALL),
}  # fmt: skip


def recipes(folder: Path) -> None:
    steps = [
        {"id": "w4", "quantize": {"method": "rtn", "group_size": 32, "gate": []}},
        {"id": "s", "bench": {"from": ["w4"], "against": "model", "speed": False}},
    ]
    data = {"evaluation": {"source": "held.txt", "windows": 4, "length": 16}}
    recipe = {"version": 1, "name": "r", "model": "model", "data": data, "steps": steps}
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    trap = "!!python/object/apply:os.system ['touch marks/recipe']"
    (folder / "evil.yaml").write_text(f"version: 1\nmodel: {trap}\nsteps: []\n")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[StubHub]:
    from huggingface_hub import constants

    with serve() as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.endpoint)
        template = f"{running.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield running


def test_every_command_on_a_hostile_folder(
    llmopt: Llmopt, tmp_path: Path, marks: Marks, monkeypatch: pytest.MonkeyPatch, hub: StubHub
) -> None:
    hostile(tmp_path / "model", marks, **TEMPLATE)
    texts(tmp_path, marks)
    recipes(tmp_path)
    (tmp_path / "pickles").mkdir()
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / "pickles" / name).write_bytes((tmp_path / "model" / name).read_bytes())
    (tmp_path / "pickles" / "pytorch_model.bin").write_bytes(marks.pickled("weights"))
    for name, command in WORKS.items():
        ran = walk(llmopt, marks, monkeypatch, *command)
        assert ran.code == 0, (name, ran.err)
    for name, command in REFUSED.items():
        ran = walk(llmopt, marks, monkeypatch, *command)
        assert ran.code == 2, (name, ran.out)


@pytest.mark.parametrize("case", TOKENIZERS)
def test_a_tokenizer_that_is_code(
    llmopt: Llmopt, tmp_path: Path, marks: Marks, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    tokenizer, config = TOKENIZERS[case]
    hostile(tmp_path / "model", marks, **TEMPLATE, **tokenizer)
    edit(tmp_path / "model" / "config.json", **config)
    texts(tmp_path, marks)
    for name in ("generate", "chat"):
        ran = walk(llmopt, marks, monkeypatch, *WORKS[name])
        assert ran.code == 2, (name, ran.out)
        assert ran.out == ""
        assert not (tmp_path / "chat").exists()
    (tmp_path / "model" / "tokenizer.json").unlink()
    ran = walk(llmopt, marks, monkeypatch, *WORKS["calibrated"])
    assert ran.code == 2, ran.out


def test_a_copy_of_a_model_whose_tokenizer_is_code(
    llmopt: Llmopt, tmp_path: Path, marks: Marks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The code stays behind, and what names it is refused as in the original."""
    hostile(tmp_path / "model", marks, **TEMPLATE, **TOKENIZERS["fast"][0])
    assert walk(llmopt, marks, monkeypatch, *WORKS["quantize"]).code == 0
    assert not (tmp_path / "w4" / "evil.py").exists()
    for name in ("generate", "generate, quantized"):
        ran = walk(llmopt, marks, monkeypatch, *WORKS[name])
        assert (ran.code, ran.out) == (2, ""), name
        assert "is code of its own (evil.Evil in tokenizer_config.json)" in ran.err


def test_a_template_that_does_not_end(
    llmopt: Llmopt, tmp_path: Path, marks: Marks, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llmopt.corpora import chat

    monkeypatch.setattr(chat, "_SECONDS", 1)
    loop = "{% for i in range(99999) %}" * 3 + "{% endfor %}" * 3
    hostile(tmp_path / "model", marks)
    (tmp_path / "model" / "chat_template.jinja").write_text(loop)
    texts(tmp_path, marks)
    ran = walk(llmopt, marks, monkeypatch, *WORKS["chat"])
    assert ran.code == 2
    assert "chat.jsonl:1: the model's chat template does not come to an end" in ran.err
    assert walk(llmopt, marks, monkeypatch, *WORKS["generate"]).code == 0
