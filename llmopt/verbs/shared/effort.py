"""What the steps of each verb have to do, from headers alone. No torch."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from llmopt import threads
from llmopt.methods.quantize.settings import AwqSettings, Feedback, Refined
from llmopt.model.change import Change
from llmopt.model.contents import Contents
from llmopt.model.effort import Effort, total
from llmopt.model.layout import Layout
from llmopt.specs import METHODS
from llmopt.specs.folds import pairs
from llmopt.specs.ggml import GGML_TYPES
from llmopt.specs.walking import FACTOR_BLOCK, rows_at_once
from llmopt.specs.work import columns, encoding, feedback, feedback_products
from llmopt.step import Text
from llmopt.verbs.shared.computing import Computing
from llmopt.verbs.shared.settings import Solving

#: sweeps that a kind of work called feedback has
_SWEEPS = 2
#: scales that AWQ's search judges (methods.transform.awq)
_SCALES = 41
#: bytes of memory that pass by for each weight that is read, filled in, decoded and compared
_HANDLED = 60
#: the same where codes are held to the weights that they were chosen for (evaluate.codes)
_CODES_HANDLED = 200
#: the same where a model is loaded whole
_LOADED = 16
#: generations timed of each model, and the tokens before each (evaluate.speed, verbs.bench)
_GENERATIONS, _PROMPT = 4, 128
#: windows that a budget's choices are measured on, and choices beside one a kind of linear
_MOST_HELD_OUT, _MOST_SEEN, _MEASUREMENTS = 16, 64, 26


def quantize_effort(
    contents: Contents,
    changes: Sequence[Change],
    calibration: Text | None,
    solving: Solving,
    *,
    in_turn: bool,
    transform: bool = False,
) -> Effort:
    """A walk that chooses codes, and what it writes.

    in_turn: an inlet's statistics see what was changed before it. transform: scales are folded.
    """
    parts, hessians = [_files(contents, changes)], METHODS[solving.method].hessian
    if calibration is not None:
        walk, naming = Computing(contents, calibration), contents.naming
        head = any(change.quantized and change.module == naming.head for change in changes)
        parts.append(walk.blocks("in turn" if in_turn else "twice", to_head=head))
        parts.append(walk.statistics(hessians=hessians))
        if transform:
            parts += [walk.forward(), walk.statistics(hessians=True)]
            parts.append(_scales(walk))
    for each in _alike(contents, changes, lambda change: (change.quantized,)):
        parts.append(_solve(each, solving, guided=calibration is not None))
    return total(parts)


def convert_effort(contents: Contents, changes: Sequence[Change]) -> Effort:
    """Values that move from one layout to another, or are rounded to the nearest."""
    rounded = sum(math.prod(change.shape) for change in changes if change.quantized)
    return _files(contents, changes) + Effort({"nearest": rounded})


def imatrix_effort(contents: Contents, calibration: Text) -> Effort:
    """A forward, and sums of squares of what flows into linears."""
    walk = Computing(contents, calibration)
    read = Effort({"read": contents.nbytes, "moved": contents.weight_count * 4 * 2})
    return total((read, walk.forward(), walk.statistics(hessians=False, head=True)))


def bench_effort(
    models: Sequence[Contents], base: Contents | None, text: Text, *,
    new_tokens: int, speed: bool, together: bool,
) -> Effort:  # fmt: skip
    """Each model beside the base on all windows, and alone where it is timed.

    `models` has the base where it is measured, too. together: the base is walked once for all.
    """
    others = [model for model in models if model is not base]
    parts = []
    for index, model in enumerate(others or models):
        beside = base if model is not base and not (together and index) else None
        for each in filter(None, [beside, model]):
            run = Computing(each, text)
            parts += [run.forward(), run.logits()]
        if base is not None and model is not base:
            parts.append(_codes(model))
    for each in {id(model): model for model in (*models, *([base] if base else []))}.values():
        parts.append(_loaded(each))
        if speed:
            parts += [_loaded(each), _generating(each, text, new_tokens)]
    return total([*parts, Effort({"start": 1.0 if speed else 0.0})])


def allocate_effort(
    contents: Contents, changes: Sequence[Change], calibration: Text, solving: Solving
) -> Effort:
    """A walk forward and one back, every option of every linear, and measurements of choices."""
    held_out = max(1, min(_MOST_HELD_OUT, calibration.count // 4))
    seen = min(_MOST_SEEN, calibration.count - held_out)
    walk = Computing(contents, replace(calibration, count=seen))
    measured = Computing(contents, replace(calibration, count=held_out))
    kinds = len({change.module.rpartition(".")[2] for change in changes if change.options})
    once = total((measured.forward(), measured.logits(), _loaded(contents)))
    parts = [walk.forward() * 4, walk.logits() * 3, walk.statistics(hessians=True)]
    parts += [once * (kinds + _MEASUREMENTS), _loaded(contents) * 2]
    for each in _alike(contents, changes, lambda change: change.options):
        parts.append(_solve(each, solving, guided=True))
    return total(parts)


@dataclass(frozen=True)
class _Alike:
    """Linears that share an input and what they become, solved together; `rows` of all.

    walked: whether they are linears of the walk, and not streamed.
    """

    rows: int
    cols: int
    layouts: tuple[Layout, ...]
    walked: bool


def _alike(
    contents: Contents,
    changes: Iterable[Change],
    wanted: Callable[[Change], Sequence[Layout | None]],
) -> Iterator[_Alike]:
    """The linears that are to have these layouts, or to try them."""
    naming, inlet = contents.naming, dict[str, str]()
    for block in range(naming.block_count):
        for names in naming.linears(block):
            inlet |= dict.fromkeys(names, names[0])
    found: dict[tuple[str, tuple[Layout, ...]], list[tuple[int, int]]] = defaultdict(list)
    for change in changes:
        layouts = tuple(layout for layout in wanted(change) if layout is not None)
        if layouts and len(change.shape) == 2:
            first = inlet.get(change.module, change.module)
            found[first, layouts].append((change.shape[0], change.shape[1]))
    walked = {*inlet, naming.head}
    for (first, layouts), shapes in found.items():
        rows = sum(shape[0] for shape in shapes)
        yield _Alike(rows, shapes[0][1], layouts, first in walked)


def _solve(linears: _Alike, solving: Solving, *, guided: bool) -> Effort:
    """Codes for linears in each of their layouts; `guided` by statistics of their inputs."""
    rows, cols, guided = linears.rows, linears.cols, guided and linears.walked
    hessians = guided and METHODS[solving.method].hessian
    wide = (cols + FACTOR_BLOCK) / 2 if cols > FACTOR_BLOCK else cols
    # of weights, and of errors where the method does not know what they cost
    known = isinstance(solving.settings, Feedback) and solving.settings.refine > 0
    compared = {"products": (2 if known else 4) * rows * cols * wide} if hessians else {}
    parts = [Effort({"moved": _HANDLED * rows * cols}), Effort(compared)]
    for layout in linears.layouts:
        if layout.grid in GGML_TYPES:
            parts.append(_encode(linears, layout.grid, solving, guided=guided))
        else:
            parts.append(_choose(linears, solving))
    return total(parts)


def _encode(linears: _Alike, type_id: str, solving: Solving, *, guided: bool) -> Effort:
    weights, settings = linears.rows * linears.cols, solving.settings
    if GGML_TYPES[type_id].is_float:
        return Effort({"moved": 6 * weights})
    if not (guided and isinstance(settings, Feedback)):
        return Effort({encoding(type_id, solving.search): weights})
    share = (1 + settings.refine) / (1 + _SWEEPS)
    kind = feedback(type_id)
    found = {kind: weights * share, columns(kind): _columns(linears) * share}
    products = _products(linears, feedback_products(settings.refine))
    return Effort(found) + products + _factor(linears.cols)


def _choose(linears: _Alike, solving: Solving) -> Effort:
    weights, settings = linears.rows * linears.cols, solving.settings
    if isinstance(settings, AwqSettings):
        return Effort({"clipping": weights})
    if not isinstance(settings, Refined):
        return Effort({"nearest": weights})
    if isinstance(settings, Feedback):
        first = {"feedback": weights, columns("feedback"): _columns(linears)}
        sweeps = settings.refine + bool(settings.refine)
        products, factor = feedback_products(settings.refine), _factor(linears.cols)
    else:
        first, sweeps = {"nearest": weights}, settings.refine
        products, factor = 2 * settings.refine, Effort()
    swept = {
        "feedback sweep": weights * sweeps,
        columns("feedback sweep"): _columns(linears) * sweeps,
    }
    return total((Effort(first), Effort(swept), _products(linears, products), factor))


def _columns(linears: _Alike) -> int:
    """Columns that are gone through one after the other, side by side with those of other rows."""
    parts = math.ceil(linears.rows / rows_at_once(linears.cols))
    return math.ceil(parts / threads.usual()) * linears.cols


def _products(linears: _Alike, times: int) -> Effort:
    """Of errors with the Hessian or its factor: so often with what stands on one side of it."""
    return Effort({"products": linears.rows * linears.cols**2 * times})


def _factor(cols: int) -> Effort:
    return Effort({"factors": cols**3 / 3, "factor elements": cols**2})


def _scales(walk: Computing) -> Effort:
    """AWQ's search, for every fold whose shapes match."""
    found: dict[str, float] = defaultdict(float)
    contents, naming = walk.contents, walk.contents.naming
    config = contents.family.language_config(contents.config)
    for block in range(naming.block_count):
        for pair in pairs(naming, block, config, dict.fromkeys(contents.tensors)):
            shapes = [walk.shape(name) for name in pair.readers]
            if pair.linear and any(cols != walk.shape(pair.source)[0] for _, cols in shapes):
                continue
            for rows, cols in shapes:
                found["scale search"] += _SCALES * rows * cols
                found["products"] += _SCALES * 2 * rows * cols**2
    return Effort(dict(found))


def _files(contents: Contents, changes: Iterable[Change]) -> Effort:
    """The source read, parts and then files written, which are hashed."""
    written = sum(change.bytes for change in changes)
    moved = contents.nbytes + 2 * written
    return Effort(
        {"read": contents.nbytes, "written": 2 * written, "hashed": written, "moved": moved}
    )


def _loaded(model: Contents) -> Effort:
    """A model whole in float32."""
    return Effort({"read": model.nbytes, "moved": _LOADED * model.weight_count})


def _codes(model: Contents) -> Effort:
    """Codes held to the weights that they were chosen for."""
    quantized = sum(math.prod(t.shape) for t in model.tensors.values() if t.layout)
    return Effort({"moved": _CODES_HANDLED * quantized})


def _generating(model: Contents, text: Text, new_tokens: int) -> Effort:
    """Some generations: a prompt at once, and then every weight for each token."""
    prompt = Computing(model, replace(text, count=1, length=min(text.length, _PROMPT)))
    weights = 4 * sum(math.prod(t.shape) for t in model.tensors.values() if len(t.shape) == 2)
    each = total((prompt.forward(), Effort({"decoding": weights * new_tokens})))
    return each * _GENERATIONS
