"""Imports run one way, and what must answer fast imports no torch."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from llmopt.formats.codec import Codec
from llmopt.specs import FORMATS, GRIDS, VERBS
from llmopt.specs.formats import IMATRIX, PLAIN

ROOT = Path(__file__).parents[1] / "llmopt"

#: lowest first; a module may import from its own layer's package and from layers below
LAYERS: list[set[str]] = [
    {"errors", "threads", "caches", "__init__"},
    {"specs"},
    {"model"},
    {"recipe", "artifact", "machine", "pretrained"},
    {"step"},
    {"report"},
    {"processor"},
    {"linalg", "corpora"},
    {"grids"},
    {"methods", "formats"},
    {"sources", "soundness"},
    {"blockwalk", "runtimes"},
    {"evaluate", "discovery"},
    {"allocate"},
    {"verbs"},
    {"planner", "generation", "verification"},
    {"preflight", "forecast"},
    {"pipeline"},
    {"doctor", "hub", "inspection"},
    {"cli"},
    {"__main__"},
]
NO_TORCH = {
    "threads",
    "planner",
    "artifact",
    "model",
    "machine",
    "specs",
    "recipe",
    "report",
    "step",
    "sources",
    "soundness",
    "hub",
    "verification",
    "cli",
    "inspection",
}


def modules() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


def package_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def name_of(path: Path) -> str:
    parts = ("llmopt", *path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path, *, at_run_time: bool = False) -> set[str]:
    """Dotted names that a module imports; `at_run_time` leaves out TYPE_CHECKING blocks."""
    tree = ast.parse(path.read_text("utf-8"))
    if at_run_time:
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
                node.body = []
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def layer(package: str) -> int:
    return next(i for i, names in enumerate(LAYERS) if package in names)


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_imports_run_one_way(path: Path) -> None:
    package = package_of(path)
    own = layer(package)
    for name in imports(path):
        if not name.startswith("llmopt."):
            continue
        target = name.split(".")[1]
        if not any((ROOT / f"{target}{suffix}").exists() for suffix in ("", ".py")):
            continue  # a name from llmopt/__init__.py
        allowed = target == package or layer(target) < own
        assert allowed, f"{name_of(path)} imports {name}, which is not below it"


def test_no_module_is_in_a_cycle() -> None:
    names = {name_of(path): path for path in modules()}
    graph = {n: imports(p) & (names.keys() - {n}) for n, p in names.items()}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail[trail.index(name) :], name))
        if name not in done:
            for other in sorted(graph[name]):
                if not other.startswith(name + ".") and not name.startswith(other + "."):
                    visit(other, (*trail, name))
            done.add(name)

    for name in sorted(graph):
        visit(name, ())


def test_verbs_do_not_import_each_other() -> None:
    for path in ROOT.glob("verbs/*/*.py"):
        for name in imports(path):
            if name.startswith("llmopt.verbs."):
                verb = name.split(".")[2]
                assert verb in (path.parent.name, "shared"), f"{name_of(path)} imports {name}"


#: torch-free besides: what plans are made of
NO_TORCH_FILES = sorted(
    [
        *ROOT.glob("verbs/*/settings.py"),
        *ROOT.glob("verbs/*/plan.py"),
        *(path for path in ROOT.glob("forecast/*.py") if path.stem != "measure"),
    ]
)


@pytest.mark.parametrize(
    "path",
    [*NO_TORCH_FILES, *(p for p in modules() if package_of(p) in NO_TORCH)],
    ids=name_of,
)
def test_fast_modules_do_not_name_torch(path: Path) -> None:
    assert not {n for n in imports(path, at_run_time=True) if n.split(".")[0] == "torch"}


def test_typer_stays_in_the_command_line() -> None:
    for path in modules():
        if package_of(path) != "cli":
            assert not {n for n in imports(path) if n.split(".")[0] == "typer"}, path


def test_only_the_command_line_prints() -> None:
    for path in modules():
        if package_of(path) in ("cli",):
            continue
        calls = [n for n in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(n, ast.Call)]
        assert not [c for c in calls if isinstance(c.func, ast.Name) and c.func.id == "print"], path


@pytest.mark.parametrize(
    "arguments", [["--help"], ["plan", "demo"], ["plan", "gguf"], ["recipes", "list"]]
)
def test_what_must_answer_fast_loads_no_torch(arguments: list[str], tmp_path: Path) -> None:
    unwanted = {"torch", "transformers", "huggingface_hub"}
    if arguments == ["--help"]:  # commands are made when they are called
        unwanted |= {"pydantic", "yaml", "rich", "llmopt.recipe"}
    code = (
        "import sys\n"
        f"sys.argv = ['llmopt', *{arguments!r}]\n"
        "from llmopt.cli.main import run\n"
        "try:\n    run()\n"
        "except SystemExit as stop:\n"
        "    assert stop.code == 0, stop.code\n"
        f"assert not {unwanted!r} & sys.modules.keys()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr


def test_no_function_is_too_long() -> None:
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef):
                length = (node.end_lineno or 0) - node.lineno + 1
                assert length <= 60, f"{path.name}:{node.name} has {length} lines"


#: calls that make something of a folder's files which may name code, or of a template
_LOADERS = {
    "from_pretrained", "from_config", "for_model", "load_dataset", "load_from_disk", "pipeline",
    "apply_chat_template", "get_class_from_dynamic_module", "load_adapter", "get_kernel",
}  # fmt: skip
#: calls that run what they are given, and the modules that may make each
_RUNNERS: dict[str, tuple[str, ...]] = {
    "eval": (), "exec": (), "compile": (), "__import__": (), "run_path": (),
    "run_module": (), "spec_from_file_location": (), "Unpickler": (),
    "Environment": ("llmopt.report.html",),
    "render_jinja_template": ("llmopt.corpora.rendering",),
    "Popen": (
        "llmopt.corpora.chat", "llmopt.doctor", "llmopt.evaluate.alone", "llmopt.specs.discovered",
    ),
}  # fmt: skip


def calls(path: Path) -> list[ast.Call]:
    return [
        node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Call)
    ]


def called(call: ast.Call) -> str:
    return ast.unparse(call.func)


def test_one_module_loads_what_comes_with_a_model() -> None:
    for path in modules():
        for call in calls(path):
            last = called(call).rpartition(".")[2]
            if last in _LOADERS:
                assert name_of(path) == "llmopt.pretrained", f"{name_of(path)} calls {called(call)}"
            if last in _RUNNERS and called(call) not in ("model.eval", "re.compile"):
                assert name_of(path) in _RUNNERS[last], f"{name_of(path)} calls {called(call)}"
            assert not called(call).startswith(("pickle.", "os.system", "subprocess.run")), path


def test_loaders_say_that_no_code_is_trusted() -> None:
    for path in modules():
        for call in calls(path):
            given = {word.arg: ast.unparse(word.value) for word in call.keywords}
            assert given.get("trust_remote_code", "False") == "False", path
            if called(call) in (
                "AutoTokenizer.from_pretrained",
                "AutoModelForCausalLM.from_config",
            ):
                assert given["trust_remote_code"] == "False"
            if called(call) == "AutoTokenizer.from_pretrained":
                assert given["local_files_only"] == "True"
            if called(call) == "torch.load":
                assert given["weights_only"] == "True"
            if called(call) in ("yaml.load", "yaml.compose"):
                assert given["Loader"] in ("yaml.SafeLoader", "yaml.BaseLoader")


#: verbs, and what conversions may be asked for; fp8, which is read only, is a grid's name, too
NAMED = {*VERBS, PLAIN, IMATRIX, *FORMATS} - GRIDS.keys()
#: packages in which a verb or a target may be called by its name
NAMING = {"verbs", "specs", "cli"}


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_no_verb_or_target_is_asked_for_by_its_name(path: Path) -> None:
    """What others want to know of it is a field of a table."""
    if package_of(path) in NAMING:
        return
    for name in imports(path):
        of_a_verb = name.startswith("llmopt.verbs.") and name.split(".")[2] != "shared"
        assert not of_a_verb, f"{name_of(path)} imports {name}"
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Constant):
            assert node.value not in NAMED, f"{name_of(path)} says {node.value!r}"


def test_one_function_imports_what_tables_name() -> None:
    for path in modules():
        found = imports(path) & {"importlib.import_module"}
        used = [call for call in calls(path) if called(call) == "importlib.import_module"]
        if found or used:
            assert name_of(path) in ("llmopt.specs.base", "llmopt.errors"), name_of(path)


def test_no_two_public_classes_have_one_name() -> None:
    """But for implementations of a table's Protocol, which are called what it is."""
    found: dict[str, list[str]] = {}
    for path in modules():
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found.setdefault(node.name, []).append(name_of(path))
    del found[Codec.__name__]
    assert not {name: where for name, where in found.items() if len(where) > 1}


def test_modules_and_most_functions_fit_a_screen_or_two() -> None:
    lengths = []
    for path in modules():
        text = path.read_text("utf-8")
        assert text.count("\n") <= 400, path
        nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)]
        lengths += [(node.end_lineno or 0) - node.lineno + 1 for node in nodes]
    assert sorted(lengths)[len(lengths) * 9 // 10] <= 22


def test_few_types_say_nothing_of_what_they_hold() -> None:
    """Uses of dict[str, Any], under whatever name."""
    texts = [path.read_text("utf-8") for path in modules()]
    names = {
        name for text in texts for name in re.findall(r"^(\w+) = dict\[str, Any\]", text, re.M)
    }
    count = 0
    for text in texts:
        lines = [line for line in text.splitlines() if not line.startswith(("from ", "    from "))]
        count += sum(line.count("dict[str, Any]") for line in lines)
        count += sum(len(re.findall(rf"\b{name}\b", line)) for name in names for line in lines)
    assert count < 100
