"""Makes the report of one run, or of several side by side, and writes it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from evomerge.files import write_text_atomic
from evomerge.report.html.curve import curve
from evomerge.report.html.data import RunView
from evomerge.report.html.front import front
from evomerge.report.html.grid import grid
from evomerge.report.html.headline import headline
from evomerge.report.html.held_out import held_out
from evomerge.report.html.importance import importance
from evomerge.report.html.lineage import lineage
from evomerge.report.html.niches import niches
from evomerge.report.html.page import Page
from evomerge.report.html.recipe_map import recipe_map

FILE = "report.html"


def write_report(runs: Sequence[Path | str], output: Path | None = None) -> Path:
    """Write the report of the runs and return its file.

    Args:
        runs: run folders; several are compared.
        output: the file; ``report.html`` in the folder of the first run by default.

    Raises:
        LedgerError: a folder is not a run's.
        OutputError: the file cannot be written.
    """
    views = [RunView.of(run) for run in runs]
    file = output if output is not None else views[0].folder.path / FILE
    write_text_atomic(file, report_html(views))
    return file


def report_html(views: Sequence[RunView]) -> str:
    """The report as HTML."""
    view = views[0]
    page = Page(f"{view.name} · evomerge")
    parts = (
        ("held-out", "Scores", held_out),
        ("search", "Search", curve),
        ("front", "Front", front),
        ("archive", "Archive", grid),
        ("niches", "Niches", niches),
        ("recipe", "Recipe", recipe_map),
        ("lineage", "Lineage", lineage),
        ("genes", "Genes", importance),
    )
    sections = [page.section(identity, title, partial(make, view, page)) for identity, title, make in parts]
    # The head comes last: it says what the others could not read.
    head = page.section("top", "", partial(headline, view, page))
    return page.html([head, *sections])
