"""What will happen to each tensor of a model, decided from names and shapes alone. No torch."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from typing import Any

from llmopt.errors import Mistakes, RecipeError, RequestError
from llmopt.formats.engine_names import EngineNames
from llmopt.formats.layout import LayerLayout
from llmopt.formats.quantization import Contents, LogicalTensor
from llmopt.ledger import Action
from llmopt.recipe import QuantizeStep, Source
from llmopt.recipe.source import Key
from llmopt.settings import LinearSettings
from llmopt.shapes import Shaped, misfit, mistakes_of
from llmopt.specs import FORMATS, GRIDS, METHODS, nearest
from llmopt.specs.families import Naming
from llmopt.specs.ggml import GGML_TYPES


@dataclass(frozen=True)
class TensorFate:
    """One tensor's future. `quantize` is None where it is kept; `why` says why then.

    `name` is the tensor's name in what will be written, `shape` its shape as stored, and
    [outputs, inputs] for a linear whatever way the checkpoint stores it. It takes `stored_bytes`
    on disk now, and `bytes` then. `options` are what a budget may choose among; as long as it has
    not, `quantize` stands for them and `bytes` is a share of the target. `decoded`: it is quantized
    now, and will be plain. `held`: the layout of what came quantized, and stays so.
    """

    name: str
    shape: tuple[int, ...]
    stored_bytes: int
    bytes: int
    quantize: LinearSettings | None
    why: str
    options: tuple[LinearSettings, ...] = ()
    decoded: bool = False
    held: LayerLayout | None = None

    @property
    def to(self) -> str | None:
        """What it is stored as where that is no plain numbers."""
        layout = self.quantize or self.held
        return layout.label if layout else None

    @property
    def action(self) -> Action:
        """What the ledger will call it; a transform may yet fold scales into what is kept."""
        if self.quantize is not None:
            return "quantized"
        if not self.bytes:
            return "left out" if self.stored_bytes else "tied"
        return "decoded" if self.decoded else "kept"

    def as_dict(self) -> dict[str, Any]:
        label = self.quantize.label if self.quantize else None
        held = self.held.label if self.held else None
        labels = [option.label for option in self.options]
        found = asdict(self) | {"quantize": label, "options": labels, "action": self.action}
        found["held"] = held
        del found["decoded"]
        return found


def quantize_fates(
    contents: Contents, settings: QuantizeStep, source: Source, place: Key
) -> Iterator[TensorFate]:
    """The fate of every tensor, in the checkpoint's order.

    Raises RecipeError naming the layer for a group size that does not divide it, a shape that
    the format cannot pack, settings that its config cannot express, or a pattern that matches
    nothing; the first of these, with the others.
    """
    mistakes = Mistakes()
    fates = list(_fates(contents, settings, source, place, mistakes))
    mistakes.add(_of_held(fates, contents, settings, source, place))
    mistakes.raise_any()
    check_config(fates, contents.naming, settings.format, source, (*place, "format"))
    yield from fates


def _fates(
    contents: Contents, settings: QuantizeStep, source: Source, place: Key, mistakes: Mistakes
) -> Iterator[TensorFate]:
    naming = contents.naming
    linears = linear_names(naming, head=settings.head)
    shaped: list[Shaped] = []
    mistakes.add(_of_patterns(settings, linears, source, place))
    mistakes.add(_of_format(settings, source, place))
    for name, tensor in contents.tensors.items():
        linear = name.removesuffix(".weight")
        if not name.endswith(".weight") or linear not in linears:
            yield kept(tensor, kept_because(naming, name), settings.format, contents.format)
            continue
        shape = linear_shape(contents, tensor)
        chosen, why, keys = _chosen(settings, linear)
        if chosen is None:
            fate = kept(tensor, why, settings.format, contents.format)
            yield replace(fate, shape=shape)
            continue
        mistakes.add(_of_zeros(chosen, source, place, keys))
        # without a reason it is a budget's candidate whose group has to fit
        grouped, key = bool(why) or not settings.has_budget, (*place, *keys["group_size"])
        shaped.append(Shaped(linear, *shape, chosen.group_size, chosen.packs, key, grouped))
        after = chosen.bytes(shape, FORMATS[settings.format])
        yield TensorFate(name, shape, tensor.nbytes, after, chosen, why)
    if settings.head and f"{naming.head}.weight" not in contents.tensors:
        yield _untied_head(contents, settings, source, place, mistakes, shaped)
    mistakes.add(mistakes_of(shaped, FORMATS[settings.format], source, place))


def kept(tensor: LogicalTensor, why: str, format_id: str | None, source: str | None) -> TensorFate:
    """The fate of a tensor that a step to a format leaves alone; `source` is the model's own.

    What is quantized stays so. Blocks of a GGUF type outside linears become plain numbers.
    """
    size, layout = tensor.nbytes, tensor.layout
    if layout is not None and format_id is not None and format_id != source:
        (rows, cols), spec = tensor.shape, FORMATS[format_id]
        scale = FORMATS[source].scale_bytes if source and spec.any_scale else None
        size = LinearSettings.of(layout).bytes((rows, cols), spec, scale)
        size += 4 * cols * (layout.desc_act and not spec.stores_index)
    ggml = GGML_TYPES.get(tensor.dtype)
    blocks = layout is None and ggml is not None and ggml.block > 1
    size = 4 * math.prod(tensor.shape) if blocks else size
    return TensorFate(
        tensor.name, tensor.shape, tensor.nbytes, size, None, why, decoded=blocks, held=layout
    )


def contents_after(contents: Contents, fates: Iterable[TensorFate], format_id: str) -> Contents:
    """What a model will hold once these are the fates of its tensors."""
    tensors = {}
    for fate in fates:
        present = contents.tensors.get(fate.name)
        if fate.quantize is None and present is not None:
            dtype = "F32" if fate.decoded else present.dtype
            tensors[fate.name] = replace(present, nbytes=fate.bytes, dtype=dtype)
        elif fate.quantize is not None:
            layout = fate.quantize.layout
            tensors[fate.name] = LogicalTensor(fate.name, fate.shape, fate.bytes, layout)
    return replace(contents, tensors=tensors, format=format_id, in_gguf=False)


def linear_names(naming: Naming, *, head: bool) -> set[str]:
    """The modules that a step may quantize: every block's linears, and the head if asked."""
    names = {
        linear
        for block in range(naming.block_count)
        for inlet in naming.linears(block)
        for linear in inlet
    }
    return names | {naming.head} if head else names


def unquantized(fates: Iterable[TensorFate], naming: Naming) -> list[str]:
    """The linears that stay as they are, as configs have to name them; the head is apart.

    Outside the text model, and in layers that look ahead, every matrix counts as one.
    """
    inside = linear_names(naming, head=False)
    inside |= {name for block in range(naming.block_count) for name in naming.routers(block)}
    found = []
    for fate in fates:
        module = fate.name.removesuffix(".weight")
        if fate.to is not None or module == fate.name or module == naming.head:
            continue
        own = module.startswith(f"{naming.base}.") and not naming.looks_ahead(fate.name)
        if module in inside if own else len(fate.shape) == 2:
            found.append(module)
    return found


def linear_shape(contents: Contents, tensor: LogicalTensor) -> tuple[int, int]:
    """(outputs, inputs) of a linear's weight, whatever way the checkpoint stores it."""
    if len(tensor.shape) != 2:
        raise RequestError(f"{tensor.name} is no matrix: its shape is {list(tensor.shape)}")
    rows, cols = tensor.shape
    head = tensor.name == f"{contents.naming.head}.weight"
    transposed = contents.family.conv1d and not head and tensor.layout is None
    return (cols, rows) if transposed else (rows, cols)


def _untied_head(
    contents: Contents, settings: QuantizeStep, source: Source, place: Key, mistakes: Mistakes,
    shaped: list[Shaped],
) -> TensorFate:  # fmt: skip
    """A head that shares the embedding's weights gets quantized ones of its own."""
    naming = contents.naming
    rows, cols = contents.tensors[f"{naming.embedding}.weight"].shape
    chosen, why, keys = _chosen(settings, naming.head)
    size = 0
    if chosen:
        mistakes.add(_of_zeros(chosen, source, place, keys))
        key = (*place, *keys["group_size"])
        shaped.append(Shaped(naming.head, rows, cols, chosen.group_size, chosen.packs, key))
        size = chosen.bytes((rows, cols), FORMATS[settings.format])
    return TensorFate(f"{naming.head}.weight", (rows, cols), 0, size, chosen, why or "untied")


def kept_because(naming: Naming, name: str) -> str:
    """Why a tensor that is no linear in a block stays as it is."""
    if naming.looks_ahead(name):
        return "multi-token prediction layer, not part of the model that runs"
    block = naming.block_of(name)
    if block is not None and name.removesuffix(".weight") in naming.routers(block):
        return "routes tokens to experts"
    inside = name.startswith((f"{naming.base}.", f"{naming.head}."))
    return "not a linear" if inside else "not part of the text model"


def _chosen(
    settings: QuantizeStep, linear: str
) -> tuple[LinearSettings | None, str, dict[str, Key]]:
    """A linear's settings, None where it is skipped; why; and which keys of the step say them."""
    grid, group_size, symmetric = settings.grid, settings.group_size, settings.symmetric
    keys: dict[str, Key] = {name: (name,) for name in ("grid", "group_size", "symmetric")}
    why, skip = "", False
    for index, override in enumerate(settings.overrides):
        if not fnmatch.fnmatchcase(linear, override.match):
            continue
        why, skip = f"override {override.match}", override.skip
        grid = override.grid or grid
        group_size = override.group_size or group_size
        symmetric = symmetric if override.symmetric is None else override.symmetric
        said = [name for name in keys if getattr(override, name) is not None]
        keys |= {name: ("overrides", index, name) for name in said}
    if skip:
        return None, why, keys
    # another grid by an override is for the weights alone
    activations = settings.activations if settings.activations == grid else None
    return LinearSettings(grid, GRIDS[grid].bits, group_size, symmetric, activations), why, keys


def _of_patterns(
    settings: QuantizeStep, linears: set[str], source: Source, place: Key
) -> Iterator[RecipeError]:
    for index, override in enumerate(settings.overrides):
        if not any(fnmatch.fnmatchcase(name, override.match) for name in linears):
            match = nearest(override.match, linears)
            yield source.error(
                f"the pattern {override.match!r} matches no linear that this step quantizes",
                (*place, "overrides", index, "match"),
                f"a linear is called {match or min(linears)!r}",
            )


def _of_format(settings: QuantizeStep, source: Source, place: Key) -> Iterator[RecipeError]:
    spec = FORMATS[settings.format]
    grids: dict[Key, str | None] = {(*place, "grid"): settings.grid}
    for index, override in enumerate(settings.overrides):
        grids[(*place, "overrides", index, "grid")] = override.grid
    for key, grid in grids.items():
        if grid is not None and grid not in spec.grids:
            holds = f"it holds {', '.join(sorted(spec.grids))}"
            yield source.error(f"format {spec.id} cannot hold grid {grid}", key, holds)
    if settings.activations not in ("none", *spec.activations):
        held = ", ".join(["none", *sorted(spec.activations)])
        yield source.error(
            f"format {spec.id} cannot say that activations are {settings.activations}",
            (*place, "activations"),
            f"it knows: {held}",
        )
    if settings.activations not in ("none", settings.grid):
        yield source.error(
            f"{settings.activations} activations go with {settings.activations} weights, "
            f"not {settings.grid}",
            (*place, "activations"),
            source.says((*place, "grid"), settings.activations),
        )
    regroups = settings.act_order == "full" and not settings.static_groups
    if regroups and not spec.group_index and "act_order" in METHODS[settings.method].settings:
        yield source.error(
            f"format {spec.id} cannot say which group an input is in",
            (*place, "act_order"),
            f"{source.says((*place, 'act_order'), 'group')} keeps inputs in their stored groups",
        )
    if settings.head and not spec.quantizes_head:
        yield source.error(f"format {spec.id} cannot hold a quantized head", (*place, "head"))
    if settings.embeddings and not spec.quantizes_embeddings:
        yield source.error(
            f"format {spec.id} cannot hold quantized embeddings", (*place, "embeddings")
        )


def check_config(
    fates: Iterable[TensorFate], naming: Naming, format_id: str, source: Source, key: Key
) -> None:
    """RecipeError at `key` where a format's config cannot express these settings together."""
    fates = list(fates)
    layers = {
        fate.name.removesuffix(".weight"): layout
        for fate in fates
        if (layout := fate.quantize.layout if fate.quantize else fate.held)
    }
    if not layers:
        return
    spec = FORMATS[format_id]
    write: Any = import_module(spec.config_module)
    try:
        write.quantization_config(
            layers,
            version=spec.version,
            unquantized=unquantized(fates, naming),
            head=naming.head,
            names=EngineNames(naming),
        )
    except RequestError as error:
        name, is_setting, value = (error.hint or "").partition(": ")
        hint = source.says((*key[:-1], name), value) if is_setting else error.hint
        raise source.error(error.message, key, hint) from None


def _of_held(
    fates: Iterable[TensorFate], contents: Contents, settings: QuantizeStep, source: Source,
    place: Key,
) -> Iterator[RecipeError]:  # fmt: skip
    """What came quantized and is left alone has to fit into the format as it is."""
    held = [fate for fate in fates if fate.held]
    head = f"{contents.naming.head}.weight"

    def refused(format_id: str) -> Iterator[str]:
        spec = FORMATS[format_id]
        for fate in held if contents.format != format_id else ():
            assert fate.held is not None
            rows, cols = fate.shape
            if why := misfit(fate.held, (rows, cols), spec, head=fate.name == head):
                yield f"{fate.name} is left as it came, {fate.to}, and {why}"

    first = next(refused(settings.format), None)
    if first is None:
        return
    grids = {settings.grid, *(o.grid for o in settings.overrides if o.grid)}
    others = [
        spec.id
        for spec in FORMATS.values()
        if grids <= spec.grids
        and spec.quantizes_head >= settings.head
        and not any(refused(spec.id))
    ]
    plain = "make plain weights of it first: llmopt convert --to hf"
    advice = [source.says((*place, "format"), others[0]) + " can"] if others else []
    yield source.error(first, (*place, "format"), ", or ".join([*advice, plain]))


def _of_zeros(
    chosen: LinearSettings, source: Source, place: Key, keys: dict[str, Key]
) -> Iterator[RecipeError]:
    if not chosen.symmetric and not GRIDS[chosen.grid].asymmetric:
        symmetric = (*place, *keys["symmetric"])
        hint = source.says(symmetric, value=True)
        yield source.error(f"grid {chosen.grid} has no zero points", symmetric, hint)


def bits_per_weight(fates: list[TensorFate]) -> float:
    """Stored bits per weight over the quantized tensors; NaN where there is none."""
    quantized = [f for f in fates if f.quantize]
    weights = sum(math.prod(f.shape) for f in quantized)
    return sum(f.bytes for f in quantized) * 8 / weights if weights else math.nan
