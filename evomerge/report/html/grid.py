"""The archive of MAP-Elites: the best candidate of every cell, rebuilt from the ledger."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from evomerge.objectives import Objective
from evomerge.report.formatting import clean, listed, number, percent
from evomerge.report.history import History
from evomerge.report.html.data import RunView
from evomerge.report.html.headline import node_of
from evomerge.report.html.page import Page
from evomerge.report.html.plots import QUIET, RAISED, Plot, axis, figure, label, rounded, thinned
from evomerge.report.study import genes_of
from evomerge.report.trial import Trial
from evomerge.strategies.archives.descriptors import GENES, MOST

_MOST_CELLS = 10_000
_LOG = 1e-12


@dataclass(frozen=True)
class Grid:
    """The elites of a grid.

    Attributes:
        names: of the descriptors.
        ranges, cells: of each.
        elites: the best trial of every filled cell, by the cell's numbers.
        observed: whether a range is what was seen, for the ledger does not keep it.
    """

    names: list[str]
    ranges: list[tuple[float, float]]
    cells: list[int]
    elites: dict[tuple[int, ...], Trial]
    observed: bool


def grid(view: RunView, page: Page) -> Markup | None:
    """The heat map of the archive."""
    history = view.history
    for place in range(len(history.phases) - 1, -1, -1):
        node = node_of(view.config, history.phases[place], "strategy")
        if str(node.get("_target_", "")).rpartition(".")[2] in ("MapElites", "CmaMe"):
            break
    else:
        return None
    objective = next((o for o in history.objectives if o.name == node.get("objective")), view.objective)
    own = [trial for trial in history.trials if trial.phase == place and trial.status == "ok"]
    found = rebuild(history, own, node, objective)
    if found is None:
        return page.render("missing.html", reason="its descriptors cannot be read from the ledger")
    total = math.prod(found.cells)
    return page.render(
        "grid.html",
        picture=_picture(found, objective)
        if node.get("archive", "grid") == "grid"
        else _scatter(found, own, history, objective),
        tessellated=node.get("archive", "grid") != "grid",
        filled=len(found.elites),
        total=total,
        coverage=percent(len(found.elites) / total),
        names=[clean(name, 60) for name in found.names],
        objective=clean(objective.name),
        observed=found.observed,
        mean=number(sum(t.objectives[objective.name] for t in found.elites.values()) / max(1, len(found.elites))),
    )


def rebuild(history: History, own: Sequence[Trial], node: Mapping[str, Any], objective: Objective) -> Grid | None:
    """Fill the grid again, in the order of the ledger; of equals the earlier stays."""
    genes = history.genes[own[0].phase] if own and own[0].phase < len(history.phases) else []
    names = [str(n) for n in node["descriptors"]] if isinstance(node.get("descriptors"), list) else None
    names = names or _default(history.objectives, genes)
    values = [(trial, descriptors(trial, names, history)) for trial in own]
    known = [(trial, point) for trial, point in values if point is not None]
    if not known or not names:
        return None
    given = node.get("ranges")
    ranges, observed = [], False
    for place, name in enumerate(names):
        entry = given[place] if isinstance(given, list) and place < len(given) else None
        if not (isinstance(entry, list) and len(entry) == 2):
            entry = [0.0, 1.0]
            if name.startswith(GENES):
                observed = True
                entry = [min(p[place] for _, p in known), max(p[place] for _, p in known)]
        low, high = float(entry[0]), float(entry[1])
        ranges.append((low, high if high > low else low + 1.0))
    cells = _cells(node.get("cells", 10), len(names))
    elites: dict[tuple[int, ...], Trial] = {}
    for trial, point in known:
        where = tuple(
            min(many - 1, max(0, math.floor((value - low) / (high - low) * many + _LOG)))
            for value, (low, high), many in zip(point, ranges, cells, strict=True)
        )
        gain = objective.gain(trial.objectives.get(objective.name, math.nan))
        held = elites.get(where)
        if math.isfinite(gain) and (held is None or gain > objective.gain(held.objectives[objective.name])):
            elites[where] = trial
    return Grid(names, ranges, cells, elites, observed)


def descriptors(trial: Trial, names: Sequence[str], history: History) -> list[float] | None:
    """A trial's place, or ``None`` where a descriptor is missing."""
    genes: Mapping[str, Any] | None = None
    point = []
    for name in names:
        if name.startswith(GENES):
            genes = genes_of(trial, history) if genes is None else genes
            glob = name.removeprefix(GENES)
            matching = [v for g, v in genes.items() if fnmatch.fnmatchcase(g, glob) and isinstance(v, int | float)]
            value = sum(matching) / len(matching) if matching else math.nan
        else:
            value = trial.objectives.get(name, trial.metrics.get(name, math.nan))
        if math.isnan(value):
            return None
        point.append(float(value))
    return point


def _default(objectives: Sequence[Objective], genes: Sequence[str]) -> list[str]:
    """As `Descriptors` chooses them."""
    if len(objectives) > 1:
        return [objective.name for objective in objectives[1:]]
    endings = dict.fromkeys(name.partition("/")[2] for name in genes if "/" in name)
    return [f"{GENES}*/{ending}" for ending in list(endings)[:MOST]] or [f"{GENES}*"]


def _cells(given: Any, dimensions: int) -> list[int]:
    listed_ = given if isinstance(given, list) else [given] * dimensions
    cells = [n if isinstance(n, int) and n > 0 else 10 for n in listed_]
    return cells if len(cells) == dimensions else [10] * dimensions


def _picture(found: Grid, objective: Objective) -> Plot | None:
    """The first two descriptors; of further ones the best is taken."""
    columns = found.cells[0]
    rows = found.cells[1] if len(found.cells) > 1 else 1
    if columns * rows > _MOST_CELLS:
        return None
    best: dict[tuple[int, int], Trial] = {}
    for where, trial in found.elites.items():
        place = (where[0], where[1] if len(where) > 1 else 0)
        held = best.get(place)
        if held is None or objective.gain(trial.objectives[objective.name]) > objective.gain(
            held.objectives[objective.name]
        ):
            best[place] = trial
    (low, high), (bottom, top) = found.ranges[0], found.ranges[1] if len(found.ranges) > 1 else (0.0, 1.0)
    at = lambda a, b, many: [float(f"{a + (b - a) * (k + 0.5) / many:.6g}") for k in range(many)]  # noqa: E731  # twice, here
    trace = {
        "type": "heatmap",
        "x": at(low, high, columns),
        "y": at(bottom, top, rows),
        "z": [
            [
                None if (t := best.get((c, r))) is None else float(f"{t.objectives[objective.name]:.6g}")
                for c in range(columns)
            ]
            for r in range(rows)
        ],
        "customdata": [
            [None if (t := best.get((c, r))) is None else t.candidate for c in range(columns)] for r in range(rows)
        ],
        "colorscale": RAISED if objective.direction == "maximize" else [[1 - p, c] for p, c in reversed(RAISED)],
        "colorbar": {"thickness": 8, "outlinewidth": 0, "tickfont": {"size": 10}, "xpad": 6, "nticks": 5},
        "xgap": 1.5,
        "ygap": 1.5,
        "hoverongaps": False,
        "hovertemplate": "candidate %{customdata}<br>%{z:.4f}<extra></extra>",
    }
    layout = {
        "xaxis": axis(label(found.names[0], 50), range=[low, high], showgrid=False),
        "yaxis": axis(label(found.names[1], 50) if rows > 1 else "", range=[bottom, top], showgrid=False)
        | ({"showticklabels": False} if rows == 1 else {}),
    }
    about = f"Best {objective.name} by {listed(found.names)}"
    return Plot({"grid": figure(trace, **layout)}, 420 if rows > 1 else 160, clean(about))


def _scatter(found: Grid, own: Sequence[Trial], history: History, objective: Objective) -> Plot | None:
    """Of a tessellation, whose cells the ledger does not keep: every candidate where it lies, by its score."""
    points = [(t, p) for t in own if (p := descriptors(t, found.names, history)) is not None]
    points = [points[place] for place in thinned(len(points))]
    trace = {
        "type": "scatter",
        "mode": "markers",
        "x": rounded(p[0] for _, p in points),
        "y": rounded(p[1] if len(p) > 1 else 0.0 for _, p in points),
        "customdata": [t.candidate for t, _ in points],
        "text": rounded(t.objectives.get(objective.name) for t, _ in points),
        "marker": {
            "size": 7,
            "color": rounded(t.objectives.get(objective.name) for t, _ in points),
            "colorscale": RAISED,
            "line": {"width": 0.5, "color": QUIET},
            "colorbar": {"thickness": 8, "outlinewidth": 0, "tickfont": {"size": 10}, "xpad": 6},
        },
        "hovertemplate": "candidate %{customdata}<br>%{text}<extra></extra>",
    }
    second = label(found.names[1], 50) if len(found.names) > 1 else ""
    layout = {"xaxis": axis(label(found.names[0], 50)), "yaxis": axis(second)}
    return Plot({"scatter": figure(trace, **layout)}, 420, clean(f"{objective.name} by {listed(found.names)}"))
