"""The report as one HTML page that needs nothing else: no script, no font, no request."""

from __future__ import annotations

from jinja2 import Environment, PackageLoader, StrictUndefined

from llmopt import __version__
from llmopt.report.content import content
from llmopt.report.picture import picture
from llmopt.report.results import Results
from llmopt.report.verdict import RULE


def render(results: Results) -> str:
    """The whole page. Every value is escaped by the template engine."""
    environment = Environment(
        loader=PackageLoader("llmopt.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    what = content(results)
    page = environment.get_template("page.html")
    return page.render(
        what=what, picture=picture(results, what.verdict), rule=RULE, version=__version__
    )
