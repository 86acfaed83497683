"""Makes the report of one run, or of several side by side, and writes it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from markupsafe import Markup

from evomerge.errors import ConfigError
from evomerge.report.html.compare import (
    MOST_RUNS,
    comparison_configs,
    comparison_curves,
    comparison_head,
    comparison_scores,
)
from evomerge.report.html.cost import cost
from evomerge.report.html.curve import curve
from evomerge.report.html.data import RunView
from evomerge.report.html.finalists import finalists
from evomerge.report.html.front import front
from evomerge.report.html.grid import grid
from evomerge.report.html.headline import headline
from evomerge.report.html.held_out import held_out
from evomerge.report.html.importance import importance
from evomerge.report.html.items import items
from evomerge.report.html.lineage import lineage
from evomerge.report.html.niches import niches
from evomerge.report.html.page import Page
from evomerge.report.html.recipe_map import recipe_map
from evomerge.report.html.reproduce import reproduce
from evomerge.run.outputs import check_output_file
from evomerge.utils.files import write_text_atomic

FILE = "report.html"


def write_report(runs: Sequence[Path | str], output: Path | None = None, *, paths: bool = False) -> Path:
    """Write the report of the runs and return its file.

    Args:
        runs: run folders; several are compared.
        output: the file; ``report.html`` in the folder of the first run by default.
        paths: show absolute paths whole instead of their last names.

    Raises:
        LedgerError: a folder is not a run's.
        OutputError: the file cannot be written, or is one of a run's or a model's own.
    """
    if output is not None:
        check_output_file(output)
    views = [RunView.of(run) for run in runs]
    file = output if output is not None else views[0].folder.path / FILE
    write_text_atomic(file, report_html(views, paths=paths))
    return file


def report_html(views: Sequence[RunView], *, paths: bool = False) -> str:
    """The report as HTML: of one run, or of several side by side."""
    if len(views) > MOST_RUNS:
        raise ConfigError(f"{len(views)} runs were given", f"at most {MOST_RUNS} side by side")
    page = Page(f"{views[0].name} · evomerge" if len(views) == 1 else f"{len(views)} runs · evomerge", paths=paths)
    if len(views) > 1:
        sections = [page.section(identity, title, partial(make, views, page)) for identity, title, make in _SEVERAL]
        head = page.section("top", "", partial(comparison_head, views, page))
    else:
        sections = [page.section(identity, title, partial(make, views[0], page)) for identity, title, make in _ONE]
        # The head comes last: it says what the others could not read.
        head = page.section("top", "", partial(headline, views[0], page))
    return page.html([head, *sections])


_ONE: Sequence[tuple[str, str, Callable[[RunView, Page], Markup | None]]] = (
    ("held-out", "Scores", held_out),
    ("search", "Search", curve),
    ("finalists", "Finalists", finalists),
    ("front", "Front", front),
    ("archive", "Archive", grid),
    ("niches", "Niches", niches),
    ("recipe", "Recipe", recipe_map),
    ("lineage", "Lineage", lineage),
    ("genes", "Genes", importance),
    ("items", "Items", items),
    ("cost", "Cost", cost),
    ("reproduce", "Reproduce", reproduce),
)
_SEVERAL: Sequence[tuple[str, str, Callable[[Sequence[RunView], Page], Markup | None]]] = (
    ("scores", "Scores", comparison_scores),
    ("search", "Search", comparison_curves),
    ("configs", "Configurations", comparison_configs),
)
