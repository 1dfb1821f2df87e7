"""Programs that load what llmopt writes, as model cards show them, and what of it each can load.

A card offers a program only where this table says that it loads such an artifact, in the versions
that are named. What stands here was tried (transformers, llama.cpp, GPTQModel), or read in the
program's source (vLLM); nothing is offered because it seems likely.

vLLM: `gptq` takes symmetric codes of 4 and 8 bits, and refuses all others; compressed-tensors'
packed codes have the same kernels, and zero points with 4 bits alone. Group sizes are Marlin's.
transformers puts quantized linears in place of all linears of a model's blocks for GPTQ, and never
reads `dynamic`. compressed-tensors 0.20 has removed act-order with stored groups, and transformers
5.23 loads no zero points in its layout.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from llmopt.specs.base import LoaderSpec

_TRANSFORMERS = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("PATH", device_map="auto")
tokenizer = AutoTokenizer.from_pretrained("PATH")
"""
_GPTQMODEL = """\
from gptqmodel import GPTQModel

model = GPTQModel.load("PATH")
"""

_LLAMA_CPP = """\
llama-cli -m PATH/model.gguf -p "Once"
"""
_LLAMA_CPP_PYTHON = """\
from llama_cpp import Llama

model = Llama("PATH/model.gguf")
"""

LOADERS: dict[str, LoaderSpec] = {
    spec.id: spec
    for spec in (
        LoaderSpec(id="transformers", title="transformers", language="python", code=_TRANSFORMERS),
        LoaderSpec(id="vllm", title="vLLM", language="shell", code="vllm serve PATH\n"),
        LoaderSpec(id="gptqmodel", title="GPTQModel", language="python", code=_GPTQMODEL),
        LoaderSpec(id="llama.cpp", title="llama.cpp", language="shell", code=_LLAMA_CPP),
        LoaderSpec(
            id="llama-cpp-python",
            title="llama-cpp-python",
            language="python",
            code=_LLAMA_CPP_PYTHON,
        ),
    )
}


@dataclass(frozen=True, kw_only=True)
class Takes:
    """Settings of a quantized linear; None for a field: any. `experts`: also those of experts."""

    grids: frozenset[str]
    group_sizes: frozenset[int] | None = None
    symmetric: bool | None = True
    desc_act: bool | None = False
    activations: frozenset[str | None] = frozenset({None})
    blocks: bool = False
    experts: bool = True

    def __contains__(self, layout: Mapping[str, Any]) -> bool:
        return (
            layout["grid"] in self.grids
            and (self.group_sizes is None or layout["group_size"] in self.group_sizes)
            and self.symmetric in (None, layout["symmetric"])
            and self.desc_act in (None, layout["desc_act"])
            and layout["activations"] in self.activations
            and layout.get("blocks", False) == self.blocks
        )


@dataclass(frozen=True, kw_only=True)
class Loads:
    """What of a format a program loads, in the versions that `needs` (pip's arguments) names.

    `takes`: every quantized linear is in one of these; empty for a format that is loaded whatever
    it holds. head: a quantized one. mixed: linears with other settings than the rest. plain:
    linears of blocks that are left as they are. fuses: it makes one module of several linears;
    these have to agree in settings and, where weights share scales in blocks, to fill them.
    """

    needs: str
    families: frozenset[str] | None = None
    takes: tuple[Takes, ...] = ()
    head: bool = False
    mixed: bool = False
    plain: bool = False
    fuses: bool = False

    def loads(self, facts: Mapping[str, Any]) -> bool:
        """Whether it is known to load an artifact of which the manifest says this."""
        experts, layouts = facts["family"] in _EXPERTS, facts["layouts"]
        return (
            (self.families is None or facts["family"] in self.families)
            and (self.head or not facts["head"])
            and (self.mixed or len(layouts) < 2)
            and (self.plain or not facts["plain"])
            and not (self.fuses and (facts["apart"] or facts.get("ragged")))
            and (
                not self.takes
                or all(
                    any(layout in t and (t.experts or not experts) for t in self.takes)
                    for layout in layouts
                )
            )
        )


_PACKED = frozenset({"int2", "int3", "int4", "int8"})
_DENSE = frozenset({"llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3"})
_EXPERTS = frozenset({"mixtral", "qwen2_moe", "qwen3_moe"})
_MARLIN = frozenset({-1, 32, 64, 128})
_GPTQMODEL_TAKES = Takes(
    grids=_PACKED,
    group_sizes=frozenset({-1, 16, 32, 64, 128, 256, 512, 1024}),
    symmetric=None,
    desc_act=None,
)
_AWQ = Takes(grids=frozenset({"int4"}), group_sizes=frozenset({32, 64, 128}), symmetric=None)
_VLLM = '"vllm>=0.12"'
_TRANSFORMERS_5 = '"transformers>=5.23"'

#: int8 weights, a scale a row, by int8 inputs
_W8A8 = Takes(
    grids=frozenset({"int8"}), group_sizes=frozenset({-1}), activations=frozenset({"int8"})
)

_GPTQ = {
    "transformers": Loads(
        needs=f'{_TRANSFORMERS_5} "optimum>=2.3" "gptqmodel>=7.3.6"',
        families=_DENSE,
        takes=(_GPTQMODEL_TAKES,),
    ),
    "vllm": Loads(
        needs=_VLLM,
        families=_DENSE | _EXPERTS,
        takes=(Takes(grids=frozenset({"int4", "int8"}), group_sizes=_MARLIN, desc_act=None),),
        head=True,
        mixed=True,
        plain=True,
        fuses=True,
    ),
    "gptqmodel": Loads(
        needs='"gptqmodel>=7.3.6"',
        families=_DENSE,
        takes=(_GPTQMODEL_TAKES,),
        mixed=True,
        plain=True,
    ),
}
_BITSANDBYTES = {
    "transformers": Loads(
        needs=f'{_TRANSFORMERS_5} "bitsandbytes>=0.50"',
        families=_DENSE,
        takes=(
            Takes(grids=frozenset({"nf4"}), group_sizes=frozenset({64})),
            Takes(grids=frozenset({"int8"}), group_sizes=frozenset({-1})),
        ),
        plain=True,
    )
}
#: format -> program -> what of it that loads
LOADS: dict[str, dict[str, Loads]] = {
    "hf": {"transformers": Loads(needs=_TRANSFORMERS_5), "vllm": Loads(needs=_VLLM)},
    "gptq": _GPTQ,
    "gptq_v2": _GPTQ,
    "awq": {
        "transformers": Loads(
            needs=f'{_TRANSFORMERS_5} "gptqmodel>=7.3.6"',
            families=_DENSE,
            takes=(_AWQ,),
            plain=True,
        ),
        "vllm": Loads(
            needs=_VLLM, families=_DENSE | _EXPERTS, takes=(_AWQ,), plain=True, fuses=True
        ),
        "gptqmodel": Loads(needs='"gptqmodel>=7.3.6"', families=_DENSE, takes=(_AWQ,)),
    },
    "compressed-tensors": {
        "transformers": Loads(
            needs=f'{_TRANSFORMERS_5} "compressed-tensors>=0.20"',
            families=_DENSE | _EXPERTS | {"gemma3", "gpt_neox"},
            takes=(
                Takes(grids=_PACKED),
                _W8A8,
                Takes(
                    grids=frozenset({"fp8"}),
                    group_sizes=frozenset({-1}),
                    activations=frozenset({None, "fp8"}),
                ),
                Takes(grids=frozenset({"fp8"}), activations=frozenset({None, "fp8"}), blocks=True),
            ),
            head=True,
            mixed=True,
            plain=True,
        ),
        "vllm": Loads(
            needs=_VLLM,
            families=_DENSE | _EXPERTS,
            takes=(
                Takes(grids=frozenset({"int4", "int8"}), group_sizes=_MARLIN),
                Takes(
                    grids=frozenset({"int4"}),
                    group_sizes=_MARLIN - {-1},
                    symmetric=False,
                    experts=False,
                ),
                _W8A8,
                Takes(
                    grids=frozenset({"fp8"}),
                    group_sizes=frozenset({-1}),
                    activations=frozenset({"fp8"}),
                ),
                Takes(grids=frozenset({"fp8"}), group_sizes=frozenset({-1}), experts=False),
                Takes(
                    grids=frozenset({"fp8"}),
                    group_sizes=frozenset({128}),
                    activations=frozenset({"fp8"}),
                    blocks=True,
                ),
            ),
            mixed=True,
            plain=True,
            fuses=True,
        ),
    },
    "bitsandbytes-nf4": _BITSANDBYTES,
    "bitsandbytes-int8": _BITSANDBYTES,
    "gguf": {
        "llama.cpp": Loads(needs=""),
        "llama-cpp-python": Loads(needs='"llama-cpp-python>=0.3.36"'),
    },
}


def loaders(format_id: str, facts: Mapping[str, Any] | None) -> Iterator[tuple[LoaderSpec, str]]:
    """The programs that load an artifact, with what pip has to install for them, if anything.

    `facts` are the manifest's `evidence.loading`; without them nothing is known of a quantized one.
    """
    for program, what in LOADS.get(format_id, {}).items():
        if (facts is None and not what.takes) or (facts is not None and what.loads(facts)):
            yield LOADERS[program], what.needs
