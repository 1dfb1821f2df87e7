"""The contract of a verb: what its plan may ask and gives, what its run is given and gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol, TypeVar

from pydantic import JsonValue

from llmopt import artifact
from llmopt.artifact import Artifact
from llmopt.model.change import Change, ConfigChange
from llmopt.model.contents import Contents
from llmopt.model.effort import NO_EFFORT, Effort
from llmopt.model.footprint import IN_MEMORY, NOTHING, Arrangement, Footprint
from llmopt.model.ledger import LedgerEntry
from llmopt.model.results import CorpusName, Verdict
from llmopt.recipe.fields import Settings
from llmopt.recipe.source import Key, Source
from llmopt.specs import VERBS
from llmopt.specs.formats import PLAIN

#: the settings of a verb
S = TypeVar("S", bound=Settings)
S_in = TypeVar("S_in", bound=Settings, contravariant=True)
#: what a recipe calls the model that it begins with
MODEL = "model"


@dataclass(frozen=True)
class StepInput:
    """What a step reads: a step's id, the short name of an outside artifact, or "model"."""

    role: str
    name: str


@dataclass(frozen=True, kw_only=True)
class Text:
    """Text that a step reads: `count` sequences or windows of `length` tokens.

    `name` and `digest` say what it is, `source` where it lies on this machine, which is in no
    artifact. `cut_from` is the length that the model's context had no room for.
    """

    split: str
    name: str
    source: str
    field: str
    count: int
    length: int
    digest: str = ""
    cut_from: int | None = None

    def document(self) -> dict[str, JsonValue]:
        """What a step's key and its manifest say of it."""
        counted = "sequences" if self.split == "calibration" else "windows"
        found: dict[str, JsonValue] = {
            "source": self.name,
            "field": self.field,
            counted: self.count,
            "length": self.length,
            "digest": self.digest,
        }
        return found if self.cut_from is None else found | {"cut_from": self.cut_from}


@dataclass(frozen=True)
class NamedFile:
    """A file beside the model that a step reads: what it is, and where it lies."""

    name: str
    digest: str
    source: str

    def document(self) -> dict[str, JsonValue]:
        """What a step's key and its manifest say of it."""
        return {"name": self.name, "digest": self.digest}


@dataclass(frozen=True, kw_only=True)
class PlannedStep:
    """One step of the DAG, with nothing left to decide.

    `settings` are effective: nothing in them is left to decide. `key` is where the step stands in
    the recipe. `asked_by` is the written step that asked for this one, `judges` the step whose
    result it judges, with a verdict in that one's manifest and no result of its own. `writes` is
    the format of what it writes. `held_out` is text that its calibration must share nothing with.
    `notes` are for the user, once it has run.
    """

    id: str
    verb: str
    settings: Settings
    inputs: tuple[StepInput, ...]
    key: Key
    writes: str = PLAIN
    seed: int = 0
    asked_by: str | None = None
    judges: str | None = None
    calibration: Text | None = None
    evaluation: Text | None = None
    held_out: Text | None = None
    files: Mapping[str, NamedFile] = field(default_factory=dict)
    changes: tuple[Change, ...] = ()
    config_changes: tuple[ConfigChange, ...] = ()
    footprint: Footprint = NOTHING
    effort: Effort = NO_EFFORT
    arrangement: Arrangement = IN_MEMORY
    summary: str = ""
    notes: tuple[str, ...] = ()

    @property
    def parents(self) -> tuple[str, ...]:
        """The names of its inputs, each once."""
        return tuple(dict.fromkeys(each.name for each in self.inputs))

    def document(self) -> dict[str, JsonValue]:
        """Settings, texts and seed: what its key is made of and its manifest says."""
        texts = {"calibration": self.calibration, "evaluation": self.evaluation}
        said = self.settings.document()
        said |= {name: text.document() for name, text in texts.items() if text is not None}
        said |= {name: file.document() for name, file in self.files.items()}
        return said | {"seed": self.seed}

    def digest_key(self, digests: Mapping[str, str]) -> str:
        """The step's key, given the digest of each parent."""
        inputs = [[each.role, each.name, digests[each.name]] for each in self.inputs]
        return artifact.step_key(self.verb, VERBS[self.verb].version, self.document(), inputs)


@dataclass(frozen=True)
class Planned:
    """A written step as planned ones. `contents`: of the model that they leave, None for none."""

    steps: tuple[PlannedStep, ...]
    contents: Contents | None = None

    def after(self, *steps: PlannedStep) -> Planned:
        """The same, and then these."""
        return replace(self, steps=(*self.steps, *steps))


class PlanContext(Protocol):
    """What the planner tells the plan of a verb, about one step of a recipe."""

    @property
    def id(self) -> str:
        """The step's own."""

    @property
    def key(self) -> Key:
        """Where its settings stand in the recipe."""

    @property
    def source(self) -> Source:
        """The recipe, for errors with the place that asked for what cannot be."""

    @property
    def seed(self) -> int: ...

    @property
    def max_memory(self) -> int | None:
        """Bytes that no step may hold at once, where the recipe says so."""

    @property
    def model_name(self) -> str:
        """What the recipe's model is called: a hub id, `demo`, or a folder's name."""

    @property
    def file_name(self) -> str | None:
        """The one file that -o asks for; None where the result is a folder."""

    @property
    def judges(self) -> str | None:
        """The step that this one is to judge, where another plan asked for that."""

    @property
    def changes(self) -> tuple[Change, ...]:
        """What the plan that asked for this step knows of each tensor."""

    def inputs(self, role: str) -> tuple[StepInput, ...]:
        """What the step names in a role: steps, of a matrix all; the model; models outside."""

    def model(self, role: str = MODEL) -> StepInput:
        """The one model in a role; RecipeError where that is several, or none."""

    def contents(self, name: str) -> Contents:
        """What a model holds, or will hold; RecipeError for what is none."""

    def is_model(self, name: str) -> bool:
        """Whether there is, or will be, a model of this name."""

    def models(self) -> tuple[str, ...]:
        """The recipe's model, and all that steps planned so far will have written."""

    def calibration(self, needed_by: str | None, key: Key) -> Text | None:
        """The recipe's calibration text; None where none is given, and nothing needs it.

        `needed_by` is what the setting at `key` asks for. RecipeError where that has none.
        """

    def evaluation(self, windows: int | None = None) -> Text:
        """The recipe's held-out text, or as many windows of it."""

    def held_out(self) -> Text:
        """The same, where it is only kept apart: it has no digest, and enters no key."""

    @property
    def context_length(self) -> int | None:
        """Tokens that the recipe's model was made for, where its config says so."""

    @property
    def sequences(self) -> int:
        """How many sequences of calibration text there are to be."""

    def step(
        self, verb: str, settings: Mapping[str, object], name: str, *,
        key: Key = (), contents: Contents | None = None, judges: bool = False,
        changes: Sequence[Change] = (),
    ) -> tuple[PlannedStep, ...]:  # fmt: skip
        """Steps of another verb that this step asks for, called `<id>.<name>`.

        `settings` are validated by that verb's class, inputs by the names of steps. `key` is the
        setting that asks for it. `contents`: what this step will have written, for a step that
        reads that; with `judges` it writes its verdict into that one's manifest. `changes`: what is
        known of each tensor.
        """


class Plans(Protocol[S_in]):
    """A verb's module `plan`."""

    def plan(self, settings: S_in, context: PlanContext) -> Planned:
        """Turn a written step into planned ones, from headers alone.

        Raises RecipeError about the first mistake, with the others that do not follow from it.
        """


@dataclass(frozen=True)
class RunOptions:
    """What may differ from run to run without changing what is asked for."""

    device: str = "auto"
    #: of the processor; None: as many as torch takes
    threads: int | None = None
    #: replace a finished artifact that -o names
    overwrite: bool = False


@dataclass(frozen=True, kw_only=True)
class Work:
    """One step to do: what was planned, inputs to read, a folder to build in.

    `state` is a folder of the verb's own that outlives a kill. `progress` is told
    (what, done, total).
    """

    step: PlannedStep
    artifacts: Mapping[str, Artifact]
    folder: Path
    state: Path
    options: RunOptions
    progress: Callable[[str, int, int], None]

    def asked(self, kind: type[S]) -> S:
        """The step's effective settings, which are the verb's own."""
        assert isinstance(self.step.settings, kind)
        return self.step.settings

    def input(self, role: str = MODEL) -> Artifact:
        """What is read in a role, the first where that is several."""
        return self.inputs(role)[0]

    def inputs(self, role: str) -> tuple[Artifact, ...]:
        """All that is read in a role, in order."""
        return tuple(self.artifacts[each.name] for each in self.step.inputs if each.role == role)


@dataclass
class Outcome:
    """What a verb says of what it built. `run` holds all that differs from run to run."""

    format: str
    ledger: list[LedgerEntry] = field(default_factory=list)
    config_changes: tuple[ConfigChange, ...] = ()
    corpus: CorpusName | None = None
    evidence: Mapping[str, object] = field(default_factory=dict)
    gates: Sequence[Verdict] = ()
    run: Mapping[str, object] = field(default_factory=dict)


class Runs(Protocol):
    """A verb's module `run`."""

    def run(self, work: Work) -> Outcome:
        """Do one step; never calls another verb."""


#: one row of what there is to choose from
Table = Sequence[Mapping[str, object]]


class Tabulates(Protocol):
    """What a verb's module `run` has besides, where a command shows what it would begin with."""

    def table(self, work: Work) -> Table:
        """What there is to choose from; nothing is chosen or written."""
