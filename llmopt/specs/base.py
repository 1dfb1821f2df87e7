"""The shapes of what exists. Data only: nothing here imports an implementation."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Literal, TypeVar

from llmopt.errors import RequestError

T = TypeVar("T")

#: the kind of most artifacts: a folder of transformers' with config.json and safetensors
CHECKPOINT = "checkpoint"


@dataclass(frozen=True, kw_only=True)
class VerbSpec:
    """Something that a step does.

    `package` has the modules `settings` (what a recipe may say), `plan` (a written step -> planned
    ones) and `run` (the work). `version` is raised when a change makes old results no longer what
    it would write. Without a `command` no user names it: other verbs' plans ask for its steps.
    """

    id: str
    package: str
    version: int
    yields: Literal["model", "results", "advice"]
    summary: str
    command: bool = True


@dataclass(frozen=True, kw_only=True)
class GridSpec:
    """A number format. `module` implements llmopt.grids.base.Grid."""

    id: str
    module: str
    bits: int
    summary: str
    asymmetric: bool = True
    scale_bytes: int = 2


@dataclass(frozen=True, kw_only=True)
class MethodSpec:
    """A way of choosing codes. `settings` names the class of what a recipe may say of it."""

    id: str
    module: str
    summary: str
    needs_calibration: bool
    #: whether that is E[x x^T] of the inputs; else E[x^2], where there is text
    hessian: bool
    #: "module:class", without torch
    settings: str
    #: what `transform: auto` stands for
    transform: str = "none"


@dataclass(frozen=True, kw_only=True)
class KindSpec:
    """What an artifact is on disk.

    `title` is what sentences call it. What holds a model has a `module`, which implements
    llmopt.formats.kind.Kind.
    """

    id: str
    title: str
    holds: Literal["model", "results", "advice"]
    module: str | None = None
    #: ends of the names of files that may stand for it (`-o FILE`, and MODEL for a model) -> what
    #: such a file is called in the artifact's folder
    files: Mapping[str, str] = field(default_factory=dict)
    #: ends of the names of its files with weights
    weights: tuple[str, ...] = ()
    #: ids of what runs it, the preferred one first
    runtimes: tuple[str, ...] = ()
    #: whether running it runs code that came with it: only what was made here, or is trusted, runs
    native_code: bool = False


@dataclass(frozen=True, kw_only=True)
class FormatSpec:
    """A container layout on disk. One that holds no grid is read, never written."""

    id: str
    module: str
    summary: str
    grids: frozenset[str]
    #: no torch; `quantization_config` writes what config.json says, `parse` reads it
    config_module: str
    #: grids that activations may be rounded to when the artifact computes
    activations: frozenset[str] = frozenset()
    #: group sizes it can hold; None: any
    group_sizes: frozenset[int] | None = None
    #: bytes beside codes and scales: a group index of 4 bytes an input; zero points always, even
    #: where they are all the same
    stores_index: bool = False
    stores_zeros: bool = False
    #: whether it can say which group each input is in, where they are not in order
    group_index: bool = True
    #: bytes that say the shape of a linear whose codes are packed; its digits come on top of them
    #: where it stands there as text
    shape_bytes: int = 0
    shape_in_text: bool = False
    #: bytes of a scale where it is not the grid's own matter; whether it takes scales in any dtype
    scale_bytes: int | None = None
    any_scale: bool = False
    #: whether quantize_config.json repeats what config.json says
    repeats_config: bool = False
    quantizes_head: bool = True
    quantizes_embeddings: bool = False
    #: input and output widths must be multiples of these for the codes to pack
    in_multiple: int = 1
    out_multiple: int = 1
    #: whether it can hold zero points
    asymmetric: bool = True
    #: whether it says that zero points are in the middle, where they are
    says_symmetric: bool = True
    #: smallest zero point that an asymmetric tensor may have
    min_zero: int = 0
    #: whether linears that share an input are one to its engines, and so have the same settings
    fuses: bool = True
    #: what artifacts in it are: an id in specs.KINDS
    kind: str = CHECKPOINT
    #: what `quant_method` in config.json says, where it is not the id
    quant_method: str | None = None
    #: quantize_config value, for layouts that come in versions
    version: str | None = None


@dataclass(frozen=True, kw_only=True)
class LoaderSpec:
    """A program that loads artifacts; `code` does it, with PATH for the place."""

    id: str
    title: str
    language: str
    code: str


@dataclass(frozen=True, kw_only=True)
class RuntimeSpec:
    """One way to run an artifact. `load` in `module` returns an Engine."""

    id: str
    module: str
    summary: str
    #: what pip's extra is called and the module that it installs; None: always there
    extra: str | None = None
    package: str | None = None
    #: whether it computes in a dtype of the user's choice
    chooses_dtype: bool = False
    #: whether it has a beam search
    beams: bool = False
    #: whether a walk over the blocks computes the same logits as its engine
    by_blocks: bool = False


def load(module: str) -> ModuleType:
    """The module that an entry of a table names: what implements it is imported here alone."""
    return importlib.import_module(module)


def load_class(entry: str, kind: type[T]) -> type[T]:
    """The class, one of this kind, that an entry "module:class" of a table names."""
    module, _, name = entry.partition(":")
    found = getattr(load(module), name)
    if isinstance(found, type) and issubclass(found, kind):
        return found
    raise TypeError(f"{entry} is no {kind.__name__}")


def shortened(text: str, most: int = 80) -> str:
    """Text for a message: on one line, printable, with its middle left out where it is long."""
    if len(text) > most:
        text = f"{text[: most // 2]}...{text[-most // 4 :]}"
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def counted(count: int, noun: str) -> str:
    """1 -> "1 window", 2000 -> "2,000 windows"."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that `name` was most likely meant to be."""
    folded = {each.casefold(): each for each in known}
    matches = difflib.get_close_matches(name.casefold(), folded, n=1, cutoff=0.6)
    return folded[matches[0]] if matches else None


def suggestion(name: str, known: Iterable[str]) -> str:
    """A hint for an unknown name: the nearest known one, or all of them."""
    known = sorted(known)
    match = nearest(name, known)
    return f"did you mean {match!r}?" if match else f"known: {', '.join(known)}"


def lookup(table: Mapping[str, T], kind: str, name: str) -> T:
    """The entry called `name`, or RequestError with the nearest name."""
    if name in table:
        return table[name]
    raise RequestError(f"unknown {kind} {shortened(name)!r}", hint=suggestion(name, table))
