"""The ancestors of the winner: which candidates were merged or varied on the way to it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from evomerge.report.formatting import clean, count, number
from evomerge.report.html.data import RunView
from evomerge.report.html.page import Page
from evomerge.report.html.plots import ACCENT, FAINT, GROUND, QUIET, Plot, axis, figure, label, rounded
from evomerge.report.trial import Trial

MOST = 150
"""Ancestors that are drawn: the latest."""


@dataclass(frozen=True)
class Ancestry:
    """The winner and those that it descends from.

    Attributes:
        members: by candidate; the winner last.
        generation: 0 for those without known parents, else one more than the latest parent's.
        left_out: ancestors that are too many to be shown.
    """

    members: dict[int, Trial]
    generation: dict[int, int]
    left_out: int


def lineage(view: RunView, page: Page) -> Markup | None:
    """The graph of the winner's ancestors."""
    winner = view.winner
    if winner is None or not winner.parents:
        return None
    found = ancestry(view, winner)
    depth = found.generation[winner.candidate]
    roots = [trial for trial in found.members.values() if found.generation[trial.candidate] == 0]
    return page.render(
        "lineage.html",
        picture=_picture(view, found, winner),
        ancestors=len(found.members) - 1 + found.left_out,
        generations=depth,
        roots=len(roots),
        left_out=found.left_out,
        seeds=_seeds(roots),
    )


def ancestry(view: RunView, winner: Trial) -> Ancestry:
    """All that the winner descends from, the latest first where there are too many."""
    known = {trial.candidate: trial for trial in view.history.trials}
    found: set[int] = set()
    todo = [winner.candidate]
    while todo:
        candidate = todo.pop()
        if candidate in found:
            continue
        found.add(candidate)
        todo += [parent for parent in known[candidate].parents if parent in known and parent < candidate]
    kept = sorted(found)[-MOST:]
    generation: dict[int, int] = {}
    for candidate in kept:  # parents are older than their children
        parents = [generation[p] for p in known[candidate].parents if p in generation]
        generation[candidate] = 1 + max(parents, default=-1)
    return Ancestry({candidate: known[candidate] for candidate in kept}, generation, len(found) - len(kept))


def _seeds(roots: list[Trial]) -> list[str]:
    """Names of the seeds of a lineage among those that everything descends from."""
    names = []
    for trial in roots:
        steps = trial.genome.get("lineage") if isinstance(trial.genome, dict) else None
        if isinstance(steps, list) and steps and len(steps[-1][0]) == 1:
            names.append(clean(steps[-1][0][0], 40))
    return list(dict.fromkeys(names))


def _picture(view: RunView, found: Ancestry, winner: Trial) -> Plot:
    objective = view.objective
    members = list(found.members.values())

    def place(trial: Trial) -> tuple[int, float]:
        return found.generation[trial.candidate], trial.objectives.get(objective.name, math.nan)

    xs: list[float | None] = []
    ys: list[float | None] = []
    for trial in members:
        for parent in trial.parents:
            if parent in found.members:
                for x, y in (place(found.members[parent]), place(trial)):
                    xs.append(x)
                    ys.append(y)
                xs.append(None)
                ys.append(None)
    edges = {
        "type": "scatter",
        "mode": "lines",
        "x": xs,
        "y": rounded(ys),
        "line": {"color": FAINT, "width": 1},
        "hoverinfo": "skip",
    }
    nodes = {
        "type": "scatter",
        "mode": "markers",
        "x": [place(trial)[0] for trial in members],
        "y": rounded(place(trial)[1] for trial in members),
        "customdata": [[trial.candidate, _about(trial)] for trial in members],
        "marker": {
            "size": [14 if trial is winner else 8 for trial in members],
            "color": [ACCENT if trial is winner else GROUND for trial in members],
            "line": {"color": [ACCENT if trial is winner else QUIET for trial in members], "width": 1.6},
        },
        "hovertemplate": "candidate %{customdata[0]}<br>%{y:.4f}<br>%{customdata[1]}<extra></extra>",
    }
    layout: dict[str, Any] = {
        "xaxis": axis("generation", showgrid=False, dtick=max(1, math.ceil(max(found.generation.values()) / 10))),
        "yaxis": axis(label(objective.name)),
    }
    return Plot(
        {"lineage": figure(edges, nodes, **layout)}, 400, f"{count(len(members) - 1, 'ancestor')} of the winner"
    )


def _about(trial: Trial) -> str:
    """How a candidate was made, in a few words."""
    steps = trial.genome.get("lineage") if isinstance(trial.genome, dict) else None
    parents = " and ".join(str(parent) for parent in trial.parents)
    text = f"of {parents}" if parents else "no parents"
    if isinstance(steps, list) and steps:
        values = steps[-1][0]
        if len(values) == 1:
            return label(f"seed {values[0]}", 40)
        mixes = [number(v) for v in values[::2] if isinstance(v, float)][:3]
        text += f", mix {', '.join(mixes)}"
    return text
