"""The report as one HTML page that needs nothing else: no script, no font, no request."""

from __future__ import annotations

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from llmopt import __version__
from llmopt.report.chart import NARROW, WIDE, Chart, chart
from llmopt.report.comparison import Comparison
from llmopt.report.content import Content, content
from llmopt.report.recommendation import RULE
from llmopt.report.sheet import shortened


def render(*comparisons: Comparison) -> str:
    """The whole page, a part for each of what cannot be compared. Every value is escaped."""
    environment = Environment(
        loader=PackageLoader("llmopt.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["shortened"] = _shortened
    parts = [(what, _charts(each, what)) for each in comparisons for what in [content(each)]]
    headlines = " · ".join(what.recommendation.headline for what, _ in parts)
    page = environment.get_template("page.html")
    return page.render(parts=parts, title=headlines, rule=RULE, version=__version__)


def _charts(comparison: Comparison, what: Content) -> list[tuple[str, Chart]]:
    """The plot at two widths, of which style sheets show one; [] with too little to plot."""
    frames = {"wide": WIDE, "narrow": NARROW}
    drawn = {kind: chart(comparison, what.recommendation, frame) for kind, frame in frames.items()}
    return [(kind, found) for kind, found in drawn.items() if found is not None]


def _shortened(text: str) -> Markup:
    """Text whose digests are short, and whole where one points at them."""
    whole = Markup('<abbr title="{1}">{0}</abbr>')
    pieces = shortened(text)
    return Markup("").join(s if s == full else whole.format(s, full) for s, full in pieces)
