"""The page: templates, the figures that are drawn on it, and all that it needs inside one file."""

from __future__ import annotations

import base64
import gzip
import hashlib
import importlib.resources
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import jinja2
from markupsafe import Markup

from evomerge.report import formatting as words
from evomerge.report.html.plots import Plot, embed
from evomerge.utils.installation import VERSION
from evomerge.utils.sizes import size_text

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Section:
    """A part of a report.

    Attributes:
        identity: its anchor.
        title: its heading; empty for the head of the page.
        content: HTML.
    """

    identity: str
    title: str
    content: Markup


@dataclass
class Page:
    """A report in the making.

    Attributes:
        title: of the page.
        plots: what its sections draw, by identity.
        paths: whether paths are shown whole; else only their last names, since reports are passed on.
    """

    title: str
    plots: dict[str, Plot] = field(default_factory=dict)
    paths: bool = False

    def render(self, template: str, **values: Any) -> Markup:
        """A template of this package with these values, which are escaped."""
        return Markup(_environment().get_template(template).render(plot=self.plot, **values))

    def plot(self, plot: Plot | None) -> Markup:
        """The place of a figure; nothing for none."""
        if plot is None:
            return Markup()
        identity = f"plot-{len(self.plots)}"
        self.plots[identity] = plot
        return Markup(
            _environment()
            .get_template("plot.html")
            .render(identity=identity, plot=plot, about=words.clean(plot.about, 300))
        )

    def section(self, identity: str, title: str, make: Callable[[], Markup | None]) -> Section | None:
        """A section, or a line that says why it could not be made: one part that fails must not cost the others."""
        try:
            content = make()
        except Exception as error:
            _log.debug("section %s", identity, exc_info=True)
            reason = words.clean(f"{type(error).__name__}: {error}", 500)
            content = self.render("missing.html", reason=reason)
        return None if content is None else Section(identity, title, content)

    def html(self, sections: Sequence[Section | None]) -> str:
        """The whole file."""
        shown = [
            section if self.paths else replace(section, content=Markup(names_only(section.content)))
            for section in sections
            if section is not None
        ]
        script, plotly = _resource("page.js"), _plotly() if self.plots else ""
        figures = {
            identity: {"height": plot.height, "views": list(plot.views.values())}
            for identity, plot in self.plots.items()
        }
        return (
            _environment()
            .get_template("page.html")
            .render(
                title=self.title,
                version=VERSION,
                paths=self.paths,
                written=datetime.now(UTC).strftime("%d %B %Y, %H:%M UTC").lstrip("0"),
                sections=shown,
                style=Markup(_resource("style.css")),
                figures=Markup(embed(figures) if self.paths else names_only(embed(figures))),
                plotly=_packed(plotly) if plotly else "",
                script=Markup(script),
                policy=_policy([script, plotly] if plotly else [script]),
            )
        )


_PATH = re.compile(r"""((?:^|[\s"'=(>\[;,]))(?:~|[A-Za-z]:)?[/\\](?:[^\s<>"'&/\\]+[/\\])+([^\s<>"'&/\\]+)""")
"""An absolute path of two names or more in HTML or JSON: what is before it, and its last name."""


def names_only(text: str) -> str:
    """HTML or JSON whose absolute paths have become their last names."""
    return _PATH.sub(r"\1…/\2", text)


def _policy(scripts: Sequence[str]) -> str:
    """What the page may do: run its own scripts and no others, and fetch nothing."""
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


_made: list[jinja2.Environment] = []


def _environment() -> jinja2.Environment:
    if not _made:
        environment = jinja2.Environment(
            loader=jinja2.PackageLoader("evomerge.report.html"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        for name in ("clean", "number", "signed", "count", "percent", "duration", "listed"):
            environment.filters[name] = getattr(words, name)
        environment.filters["size"] = size_text
        _made.append(environment)
    return _made[0]


def _resource(name: str) -> str:
    return importlib.resources.files("evomerge.report.html").joinpath("templates", name).read_text(encoding="utf-8")


def _plotly() -> str:
    return importlib.resources.files("plotly").joinpath("package_data", "plotly.min.js").read_text(encoding="utf-8")


def _packed(script: str) -> str:
    """A script for the page to unpack: a third of its size, in Base64 two fifths."""
    return base64.b64encode(gzip.compress(script.encode(), mtime=0)).decode()
