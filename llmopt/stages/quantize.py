"""The quantize step: calibrate, choose codes block by block, write a checkpoint."""

from __future__ import annotations

import importlib
import json
import math
import shutil
from collections import defaultdict
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmopt.blockwalk import Inlet, Sink, walk
from llmopt.errors import LlmoptError, RequestError
from llmopt.fates import LinearSettings, TensorFate
from llmopt.formats.checkpoint import Checkpoint
from llmopt.formats.safetensors import ShardWriter
from llmopt.grids.base import AffineParams, Grid, GridOptions, QuantizedTensor
from llmopt.methods.quantize.base import InletStatistics, Method, SolverSettings
from llmopt.runtimes.device import pick_device
from llmopt.specs import FORMATS, GRIDS, METHODS
from llmopt.stages import text
from llmopt.stages.base import Outcome, Work


def run(work: Work) -> Outcome:
    """Quantize the parent model into `work.folder`."""
    settings = work.settings
    parent = next(iter(work.parents.values()))
    checkpoint = Checkpoint.open(parent.path, allow_pickle=work.options.allow_pickle)
    device = pick_device(work.options.device)
    tokens, corpus = _calibration(work, checkpoint)
    spec = FORMATS[settings["format"]]
    container: Any = importlib.import_module(spec.module)
    fates = {fate.name.removesuffix(".weight"): fate for fate in work.fates}
    operation = _Quantize(settings, fates, spec.min_zero)
    writer = ShardWriter(work.state / "parts")
    records = walk(
        checkpoint, tokens, [operation], Sink(writer, container.Codec(spec.version)),
        work.state / "walk",
        head=settings["head"],
        batch_size=settings["batch_size"],
        true_sequential=settings.get("true_sequential", False),
        device=device,
        on_block=lambda done, total: work.progress("blocks", done, total),
    )  # fmt: skip
    writer.finalize(work.folder)
    _copy_side_files(checkpoint, work.folder)
    _write_config(container, checkpoint, settings, work.fates, records, work.folder)
    return Outcome(
        format=settings["format"],
        ledger=_ledger(work.fates, records, checkpoint),
        corpus=corpus,
        run={"device": str(device)},
    )


def _calibration(work: Work, checkpoint: Checkpoint) -> tuple[Tensor | None, dict[str, Any] | None]:
    """The calibration windows int64 [sequences, length], and what the manifest says of them."""
    data, folder = work.settings["calibration"], checkpoint.folder
    if data is None:
        return None, None
    source = work.texts["calibration"]["source"]
    windows, corpus = text.calibration(data, source, folder, work.settings["seed"])
    held_out = work.texts["evaluation"]
    if source != held_out["source"]:  # one source has splits that share nothing
        text.refuse_overlap(windows, text.evaluation(held_out, held_out["source"], folder)[0])
    return windows, corpus


class _Quantize:
    """The block walk's operation: one solve for all linears that share input and settings."""

    def __init__(
        self, settings: dict[str, Any], fates: dict[str, TensorFate], min_zero: int
    ) -> None:
        self._settings, self._fates, self._min_zero = settings, fates, min_zero
        self._method: Method = importlib.import_module(METHODS[settings["method"]].module)
        self._solver = SolverSettings(
            **{f.name: settings[f.name] for f in fields(SolverSettings) if f.name in settings}
        )
        self.needs_statistics = settings["calibration"] is not None

    def apply(self, inlet: Inlet) -> None:
        """Quantize what the plan says of this inlet's linears."""
        together: dict[LinearSettings, list[str]] = defaultdict(list)
        for name in inlet.names:
            chosen = self._fates[name].quantize if name in self._fates else None
            if chosen is not None:
                together[chosen].append(name)
        for chosen, names in together.items():
            self._solve(inlet, names, chosen)

    def _solve(self, inlet: Inlet, names: list[str], chosen: LinearSettings) -> None:
        weights = [inlet.weight(name) for name in names]
        try:
            solved = self._method.solve(
                torch.cat(weights), inlet.statistics, self._options(chosen), self._solver
            )
        except LlmoptError as error:
            raise type(error)(f"{', '.join(names)}: {error.message}", hint=error.hint) from error
        grid: Grid = importlib.import_module(GRIDS[chosen.grid].module)
        start = 0
        for name, weight in zip(names, weights, strict=True):
            part = rows_of(solved, start, start + weight.shape[0])
            start += weight.shape[0]
            change = grid.decode(part.codes, part.params) - weight
            inlet.replace(name, part, _record(part, change, weight, inlet.statistics))

    def _options(self, chosen: LinearSettings) -> GridOptions:
        return GridOptions(
            grid=chosen.grid,
            bits=chosen.bits,
            group_size=chosen.group_size,
            symmetric=chosen.symmetric,
            scale_search=self._settings["scale_search"],
            signed_scales=self._settings["signed_scales"],
            min_zero=self._min_zero,
        )


def rows_of(tensor: QuantizedTensor, start: int, stop: int) -> QuantizedTensor:
    """Output channels start to stop of a tensor that was solved together with others."""
    p = tensor.params
    params = AffineParams(
        bits=p.bits, group_size=p.group_size, symmetric=p.symmetric,
        scale=p.scale[start:stop].clone(), zero=p.zero[start:stop].clone(),
        group_index=p.group_index, scale_dtype=p.scale_dtype,
    )  # fmt: skip
    return QuantizedTensor(grid=tensor.grid, codes=tensor.codes[start:stop].clone(), params=params)


def _record(
    tensor: QuantizedTensor, change: Tensor, weight: Tensor, statistics: InletStatistics | None
) -> dict[str, Any]:
    """What the ledger keeps of a linear: relative errors of its values and of its outputs."""
    record: dict[str, Any] = {
        "error": _ratio(change.square().sum(), weight.square().sum()),
        "desc_act": tensor.params.group_index is not None,
    }
    if statistics is not None:
        hessian = statistics.hessian
        lost = ((change @ hessian) * change).sum()
        record["output_error"] = _ratio(lost, ((weight @ hessian) * weight).sum())
        record["tokens"] = statistics.tokens
    return record


def _ratio(part: Tensor, whole: Tensor) -> float:
    """sqrt(part / whole), to six significant digits; 0 where both are."""
    value = math.sqrt(max(float(part), 0.0) / float(whole)) if float(whole) > 0 else 0.0
    return float(f"{value:.6g}")


def _copy_side_files(checkpoint: Checkpoint, folder: Path) -> None:
    for name in checkpoint.side_files:
        shutil.copyfile(checkpoint.folder / name, folder / name)


def _write_config(
    container: Any, checkpoint: Checkpoint, settings: dict[str, Any],
    fates: tuple[TensorFate, ...], records: dict[str, Any], folder: Path,
) -> None:  # fmt: skip
    """config.json and quantize_config.json as the format's readers want them."""
    layers, unquantized = {}, []
    names = {name for b in range(checkpoint.naming.block_count)
             for inlet in checkpoint.naming.linears(b) for name in inlet}  # fmt: skip
    for fate in fates:
        module = fate.name.removesuffix(".weight")
        if fate.quantize is not None:
            layers[module] = container.LayerLayout(
                bits=fate.quantize.bits, group_size=fate.quantize.group_size,
                symmetric=fate.quantize.symmetric, desc_act=records[module]["desc_act"],
            )  # fmt: skip
        elif module in names:
            unquantized.append(module)
    if not layers:
        raise RequestError("nothing was quantized: every linear is skipped by an override")
    quantization = container.quantization_config(
        layers,
        version=FORMATS[settings["format"]].version,
        unquantized=unquantized,
        head=checkpoint.naming.head in layers,
        damping=settings.get("damping"),
        true_sequential=settings.get("true_sequential", False),
    )
    config = checkpoint.config | {"quantization_config": quantization}
    if checkpoint.naming.head in layers:
        config["tie_word_embeddings"] = False
    for name, document in (("config.json", config), ("quantize_config.json", quantization)):
        content = json.dumps(document, indent=2, ensure_ascii=False)
        (folder / name).write_text(content + "\n", encoding="utf-8")


def _ledger(
    fates: tuple[TensorFate, ...], records: dict[str, Any], checkpoint: Checkpoint
) -> list[dict[str, Any]]:
    """Every tensor of the input and what became of it."""
    ledger = []
    for fate in fates:
        entry: dict[str, Any] = {"name": fate.name, "shape": list(fate.shape), "why": fate.why}
        if fate.quantize is None:
            ledger.append(entry | {"action": "kept", "to": None})
            continue
        record = records.get(fate.name.removesuffix(".weight"))
        if record is None:
            raise LlmoptError(f"{fate.name} was to be quantized and was not reached")
        bits = fate.bytes * 8 / math.prod(fate.shape)
        ledger.append(
            entry | record
            | {"action": "quantized", "to": fate.quantize.label, "bits_per_weight": round(bits, 4)}
        )  # fmt: skip
    head = f"{checkpoint.naming.head}.weight"
    if all(entry["name"] != head for entry in ledger):
        shares = f"shares {checkpoint.naming.embedding}.weight"
        ledger.append({"name": head, "shape": None, "action": "tied", "to": None, "why": shares})
    return ledger
