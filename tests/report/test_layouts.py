"""The three layouts: whole, escaped, and without holes where values are missing."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from llmopt.report import html, markdown, terminal
from llmopt.report.comparison import Comparison
from llmopt.report.quality import class_of

Make = Callable[..., Any]
EVIL = "<b>|*x*</b>`[bold]"
VOID = {"meta", "line", "circle", "path"}
SPEED = {
    "speed.first_token": 0.0234,
    "speed.prefill": 1234.0,
    "speed.decode": 56.7,
    "speed.token_p50": 0.017,
    "speed.token_p95": 0.021,
    "memory.peak": 123_456_789,
}


class Page(HTMLParser):
    """Collects tags, attributes and text; `open` is empty at the end of well nested HTML."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style" and data.strip():
            self.text.append(" ".join(data.split()))

    def count(self, tag: str, **attributes: str) -> int:
        return sum(name == tag and attributes.items() <= found.items() for name, found in self.tags)


@pytest.fixture
def full(comparison: Make, entry: Make, base: Any, manifest: dict[str, Any]) -> Comparison:
    failed = [{"gate": "kl.mean < 0.05", "value": 0.2, "passed": False}]
    entries = [base, entry("w8", 50, 0.001), entry("w4", 30, 0.01)]
    entries.append(entry("w3", 20, 0.2, gates=failed))
    made: Comparison = comparison(*entries, speeds={"w4": SPEED}, manifests={"w4": manifest})
    return made


@pytest.fixture
def bare(comparison: Make) -> Comparison:
    made: Comparison = comparison({"name": "only", "metrics": {"size.bytes": 1}})
    return made


def printed(made: Comparison, width: int = 100) -> str:
    stream = StringIO()
    Console(width=width, file=stream).print(terminal.table(made, width))
    return stream.getvalue()


@pytest.mark.parametrize("name", ["w", "a-name-that-is-far-too-long-for-any-terminal"])
def test_a_narrow_terminal_has_names_and_classes_whole(
    name: str, comparison: Make, entry: Make, base: Any
) -> None:
    made = comparison(base, entry(name, 50, 0.001), speeds={name: SPEED})
    wide, narrow = printed(made, 110), printed(made, 80)
    assert ("tok/s" in wide, "A wider terminal" in wide) == (True, False)
    assert "A wider terminal shows " in narrow
    assert "tok/s" not in narrow.splitlines()[1]
    assert name[:14] in narrow
    assert "…" not in narrow
    assert class_of(made.entries[1]) in narrow


def test_page_says_first_what_to_ship(full: Comparison) -> None:
    page = Page(html.render(full))
    assert page.open == []
    assert page.text[1] == "Ship w4"  # after the title
    assert page.count("h1") == 1


def test_page_needs_nothing_from_outside(full: Comparison) -> None:
    source = html.render(full)
    page = Page(source)
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in page.tags}
    assert not re.search(r"https?:|url\(|@import|\bsrc=|\bon\w+=", source)
    assert page.count("meta", content="default-src 'none'; style-src 'unsafe-inline'") == 1


def test_page_has_every_section(full: Comparison) -> None:
    page = Page(html.render(full))
    for heading in (
        "Results",
        "Quality against size",
        "Gates",
        "Quality in full",
        "Speed",
        "What happened to the tensors",
        "Largest errors",
        "Settings",
        "Provenance",
        "Versions",
    ):
        assert heading in page.text
    for value in ("int8 g128", "20.0%", "calibration.sequences", "made from demo", "c" * 64):
        assert value in page.text
    assert page.text.index("w2") < page.text.index("w1")  # the worst error first


def test_page_is_accessible(full: Comparison) -> None:
    page = Page(html.render(full))
    assert page.count("html", lang="en") == 1
    svg = next(found for tag, found in page.tags if tag == "svg")
    ids = {found["id"] for _, found in page.tags if "id" in found}
    assert svg["role"] == "img"
    assert set((svg["aria-labelledby"] or "").split()) <= ids
    assert page.count("th", scope="col") > 10
    assert page.count("th", scope="row") > 10


def test_chart_draws_each_model_but_the_original(full: Comparison) -> None:
    page = Page(html.render(full))
    assert page.count("svg", role="img") == 2  # one for wide screens, one for narrow ones
    assert page.count("path", **{"class": "whisker"}) == 2 * 3
    assert page.count("path", **{"class": "front"}) == 2
    labels = [found for tag, found in page.tags if found.get("class") == "label"]
    for drawn, width, height in ((labels[:3], 960, 460), (labels[3:], 360, 340)):
        places = {(float(found["x"] or 0), float(found["y"] or 0)) for found in drawn}
        assert len(places) == 3
        assert all(0 < x < width and 0 < y < height for x, y in places)
    assert any("the original is 100 MB at a KL of 0" in text for text in page.text)


def test_smaller_is_further_left_and_worse_is_further_up(full: Comparison) -> None:
    page = Page(html.render(full))
    dots = [found for tag, found in page.tags if tag == "circle" and "cx" in found]
    (w8_x, w8_y), (w4_x, w4_y) = [
        (float(d["cx"] or 0), float(d["cy"] or 0)) for d in dots if "class" not in d
    ][:2]
    assert w4_x < w8_x
    assert w4_y < w8_y  # SVG's y grows downwards


@pytest.mark.parametrize("kl", [0.0, 1e-9, 5.0])
def test_chart_survives_extremes(comparison: Make, entry: Make, kl: float) -> None:
    page = Page(
        html.render(comparison(entry("a", 30, kl), entry("b", 30, 0.01), entry("c", 30, 0.01)))
    )
    assert page.open == []
    assert page.count("path", **{"class": "whisker"}) == 2 * (2 if kl == 0 else 3)


def test_missing_values_are_dashes(bare: Comparison) -> None:
    page = Page(html.render(bare))
    assert page.text[1] == "Nothing to ship"
    assert page.count("svg") == 0
    assert "–" in page.text
    for source in (html.render(bare), markdown.render(bare), printed(bare)):
        assert "None" not in source
        assert not re.search(r"\bnan\b", source)


def test_names_are_text_in_every_layout(
    comparison: Make, entry: Make, manifest: dict[str, Any]
) -> None:
    manifest["ledger"][1]["name"] = EVIL
    manifest["settings"][EVIL] = EVIL
    gates = [{"gate": EVIL, "value": 1.0, "passed": True}]
    evil = comparison(
        entry(EVIL, 30, 0.01, gates=gates, format=EVIL),
        entry("b", 40, 0.001),
        manifests={EVIL: manifest},
    )
    source = html.render(evil)
    page = Page(source)
    assert page.open == []
    assert page.count("b") == 0
    assert page.text.count(EVIL) >= 6
    assert EVIL in printed(evil)
    table_rows = [line for line in markdown.render(evil).splitlines() if line.startswith("|")]
    assert not any(re.search(r"(?<!\\)[<*`]", line) for line in table_rows)


def test_markdown_tables_are_square(full: Comparison) -> None:
    source = markdown.render(full)
    assert source.startswith("# Ship w4\n\n30.0 MB")
    blocks = re.findall(r"(?:^\|.*\n)+", source, re.MULTILINE)
    assert len(blocks) >= 8
    for block in blocks:
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(widths) == 1
    assert r"kl.mean \< 0.05" in source


def test_terminal_fits_100_columns_and_marks_rows(full: Comparison) -> None:
    text = printed(full)
    assert all(len(line.rstrip()) <= 100 for line in text.splitlines())
    assert "→ w4" in text
    assert "× w3" in text
    assert "ship w4: 30.0 MB" in text
    assert "…" not in text


def test_settings_that_agree_are_one_column(
    comparison: Make, entry: Make, manifest: dict[str, Any]
) -> None:
    entries = [entry("a", 30, 0.01), entry("b", 40, 0.001)]
    agreed = markdown.render(comparison(*entries, manifests={"a": manifest, "b": manifest}))
    assert r"| Key | All models |" in agreed
    other = manifest | {"settings": {"method": "rtn", "symmetric": None}}
    differ = markdown.render(comparison(*entries, manifests={"a": manifest, "b": other}))
    assert "| method | gptq | rtn |" in differ
    assert "| symmetric | true | null |" in differ


def test_rendering_is_deterministic(full: Comparison) -> None:
    assert html.render(full) == html.render(full)


def test_reports_import_no_torch() -> None:
    code = (
        "import sys\n"
        "from llmopt.report import html, markdown, terminal\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_another_runtime_measured_says_so(comparison: Make, entry: Make, base: Any) -> None:
    base, ours = base | {"runtime": "torch"}, entry("q4", 30, 0.01, runtime="llama.cpp")
    found = comparison(base, ours | {"format": "gguf"}, speeds={"q4": SPEED})
    console = Console(width=100, file=StringIO())
    console.print(terminal.table(found))
    pages = [console.file.getvalue(), markdown.render(found), html.render(found)]  # type: ignore[attr-defined]
    for page in pages:
        assert page.count("in llama.cpp") == 1
        assert ("without repacked weights" in page) == (page is not pages[0])
        assert "in torch" not in page
