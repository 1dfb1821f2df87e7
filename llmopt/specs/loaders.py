"""Programs that load what llmopt writes, as model cards show them.

Which of them reads a format, and the packages that it needs for that, stands with the format.
"""

from __future__ import annotations

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
