"""Rows as people look at them in a notebook."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from io import StringIO
from typing import Any

from rich.console import RenderableType

from evomerge.report.history import History
from evomerge.report.plain_console import PlainConsole
from evomerge.report.study import genes_of
from evomerge.report.trial import Trial

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


def row_of(trial: Trial, history: History, name: str | None) -> dict[str, Any]:
    """A candidate as a row: what it was scored, by what genes."""
    names = [str(phase.get("phase")) for phase in history.phases]
    return {
        "candidate": trial.candidate,
        "name": name,
        "phase": names[trial.phase] if name is None and trial.phase < len(names) else None,
        "status": trial.status,
        **{objective.name: trial.objectives.get(objective.name) for objective in history.objectives},
        **{f"metrics.{metric}": value for metric, value in trial.metrics.items()},
        **({f"genes.{gene}": value for gene, value in genes_of(trial, history).items()} if name is None else {}),
        "seconds": sum(trial.seconds.values()),
        "parents": trial.parents,
        "error": trial.error,
    }
