"""Rows as people look at them in a notebook."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from io import StringIO
from typing import Any

from rich.console import RenderableType

from evomerge.report.plain_console import PlainConsole

WIDTH = 100
_HTML = '<pre style="white-space: pre; overflow-x: auto; line-height: normal">{code}</pre>'


def frame(rows: Iterable[Mapping[str, Any]]) -> Any:
    """The rows as a pandas DataFrame; where pandas is not installed, as a list of dictionaries."""
    listed = [dict(row) for row in rows]
    try:
        import pandas
    except ImportError:
        return listed
    return pandas.DataFrame(listed)


def as_text(shown: RenderableType, width: int = WIDTH) -> str:
    """What a terminal of this width shows, without colours."""
    page = StringIO()
    PlainConsole(file=page, width=width, color_system=None, force_terminal=False).print(shown)
    return "\n".join(line.rstrip() for line in page.getvalue().splitlines())


def as_html(shown: RenderableType, width: int = WIDTH) -> str:
    """The same as HTML, in bold and in colours; text of strangers is escaped."""
    console = PlainConsole(file=StringIO(), width=width, record=True, force_terminal=True, color_system="standard")
    console.print(shown)
    return console.export_html(inline_styles=True, code_format=_HTML)
