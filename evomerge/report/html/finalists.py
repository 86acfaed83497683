"""The candidates that were scored on all items in the end: what the search thought of them, and what they have."""

from __future__ import annotations

import math

from markupsafe import Markup

from evomerge.report.finalists import finalists as finalists_of
from evomerge.report.finalists import race_lines
from evomerge.report.formatting import number, signed
from evomerge.report.html.data import RunView
from evomerge.report.html.page import Page


def finalists(view: RunView, page: Page) -> Markup | None:
    """What the race saved, and a table of the finalists."""
    lines = race_lines(view.history)
    if not lines:
        return None
    races = {trial.candidate: trial.race for trial in view.history.trials}
    found = finalists_of(view.history.finalists, races, view.objective.name)
    rows = [
        {
            "candidate": finalist.candidate,
            "search": number(finalist.search) if math.isfinite(finalist.search) else "–",
            "error": number(finalist.error) if finalist.error > 0 else "",
            "validation": number(finalist.validation),
            "change": signed(-finalist.shrinkage),
            "winner": finalist.winner,
        }
        for finalist in found
    ]
    return page.render("finalists.html", lines=lines, rows=rows)
