"""Engines that run artifacts."""

from __future__ import annotations

from llmopt.specs.base import RuntimeSpec

#: a runtime's name that leaves the choice to the format, and a device's and dtype's likewise
AUTO = "auto"

RUNTIMES: dict[str, RuntimeSpec] = {
    "torch": RuntimeSpec(
        id="torch",
        module="llmopt.runtimes.torch",
        summary="PyTorch on CPU or GPU: plain and quantized Hugging Face checkpoints; on the CPU "
        "int8 weights with int8 activations in integers",
        chooses_dtype=True,
    ),
    "llama.cpp": RuntimeSpec(
        id="llama.cpp",
        module="llmopt.runtimes.llamacpp",
        summary="llama.cpp through llama-cpp-python: GGUF files, on the CPU or a GPU it is built "
        "for",
        extra="llamacpp",
        package="llama_cpp",
    ),
}

#: optional backends that `doctor` reports: import name -> (extra, what it is for)
OPTIONAL_PACKAGES: dict[str, tuple[str, str]] = {
    "onnxruntime": ("onnx", "run and quantize ONNX models"),
    "onnxruntime_genai": ("onnx", "ONNX decoders with a KV cache"),
    "llama_cpp": ("llamacpp", "run GGUF files"),
    "datasets": ("eval", "read Hugging Face dataset directories"),
    "peft": ("train", "LoRA recovery after pruning"),
    "openvino": ("openvino", "compile for Intel hardware"),
    "ray": ("ray", "spread a recipe over a cluster"),
    "optuna": ("search", "search over recipe settings"),
    "matplotlib": ("plots", "plots outside the HTML report"),
}
