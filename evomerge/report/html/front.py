"""The Pareto front of a search with several objectives, and its hypervolume as it grew."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from evomerge.objectives import Objective, ParetoArchive
from evomerge.report.formatting import clean, count, number
from evomerge.report.html.data import RunView
from evomerge.report.html.fits import fits_of
from evomerge.report.html.headline import node_of
from evomerge.report.html.page import Page
from evomerge.report.html.plots import ACCENT, QUIET, TEXT, Plot, axis, figure, label, rounded, thinned
from evomerge.report.trial import Trial

_PAIRS = 6
_ROWS = 30


def front(view: RunView, page: Page) -> Markup | None:
    """The front, its table, and its hypervolume."""
    objectives = view.history.objectives
    if len(objectives) < 2:
        return None
    members = front_of(view.history.trials, objectives)
    if not members:
        return None
    objectives = objectives[:8]
    pairs = list(itertools.combinations(objectives, 2))[:_PAIRS]
    views = {
        f"{clean(a.name, 20)} / {clean(b.name, 20)}" if len(pairs) > 1 else "front": _figure(view, members, a, b)
        for a, b in pairs
    }
    last = (view.history.phases or [{}])[-1]
    own = view.history.of_phase(max(0, len(view.history.phases) - 1)).trials
    fits = fits_of(own, view.history.objectives, node_of(view.config, last, "strategy"))
    ordered = sorted(members, key=lambda trial: -objectives[0].gain(trial.objectives[objectives[0].name]))
    return page.render(
        "front.html",
        picture=Plot(views, 420, f"Pareto front of {len(members)} recipes"),
        size=len(members),
        objectives=[(clean(o.name, 40), o.direction) for o in objectives],
        rows=[
            {
                "candidate": trial.candidate,
                "values": [number(trial.objectives[o.name]) for o in objectives],
                "winner": trial.candidate == view.history.winner,
                "outside": fits is not None and trial.candidate in fits.outside,
            }
            for trial in ordered[:_ROWS]
        ],
        more=max(0, len(ordered) - _ROWS),
        growth=_growth(view),
        fits=fits.line if fits is not None else "",
    )


def front_of(trials: Sequence[Trial], objectives: Sequence[Objective]) -> list[Trial]:
    """The trials that no other dominates."""
    archive = ParetoArchive(objectives)
    known = {}
    for trial in trials:
        if trial.status == "ok" and archive.add(trial.candidate, trial.objectives):
            known[trial.candidate] = trial
    return [known[candidate] for candidate in archive]


def _figure(view: RunView, members: Sequence[Trial], a: Objective, b: Objective) -> dict[str, Any]:
    history = view.history
    ok = [t for t in history.trials if t.status == "ok" and {a.name, b.name} <= set(t.objectives)]
    shown = [ok[place] for place in thinned(len(ok))]
    hover = f"candidate %{{customdata}}<br>{label(a.name)} %{{x:.4f}}<br>{label(b.name)} %{{y:.4f}}<extra></extra>"
    winner = [trial for trial in members if trial.candidate == history.winner]
    of_two = len(history.objectives) == 2
    line = sorted(members, key=lambda trial: trial.objectives[a.name])
    shape = "vh" if (a.direction == "maximize") else "hv"
    known = [(name, t.objectives) for name, t in history.baselines.items() if {a.name, b.name} <= set(t.objectives)]
    known = [(n, o) for n, o in known if math.isfinite(o[a.name]) and math.isfinite(o[b.name])]

    def points(trials: Sequence[Trial], **more: Any) -> dict[str, Any]:
        return {
            "type": "scatter",
            "mode": "markers",
            "x": rounded(t.objectives[a.name] for t in trials),
            "y": rounded(t.objectives[b.name] for t in trials),
            "customdata": [t.candidate for t in trials],
            "hovertemplate": hover,
            **more,
        }

    traces = [
        points(shown, name="candidates", marker={"size": 5, "color": QUIET, "opacity": 0.45}),
        points(
            line,
            name="Pareto front",
            mode="lines+markers" if of_two else "markers",
            line={"shape": shape, "color": ACCENT, "width": 2},
            marker={"size": 8, "color": ACCENT},
        ),
        points(
            winner,
            name="winner",
            marker={"size": 15, "symbol": "circle-open", "color": ACCENT, "line": {"width": 2.5}},
        ),
        {
            "type": "scatter",
            "mode": "markers+text",
            "name": "baselines",
            "x": rounded(o[a.name] for _, o in known),
            "y": rounded(o[b.name] for _, o in known),
            "text": [label(name, 30) for name, _ in known],
            "textposition": "top center",
            "textfont": {"size": 11, "color": QUIET},
            "marker": {"size": 9, "symbol": "diamond-open", "color": TEXT, "line": {"width": 1.5}},
            "hovertemplate": "%{text}<br>%{x:.4f}, %{y:.4f}<extra></extra>",
        },
    ]
    layout = {
        "xaxis": axis(_title(a), range=_range([t.objectives[a.name] for t in ok], [o[a.name] for _, o in known], a)),
        "yaxis": axis(_title(b), range=_range([t.objectives[b.name] for t in ok], [o[b.name] for _, o in known], b)),
        "showlegend": True,
    }
    return figure(*traces, **layout)


def _range(values: Sequence[float], known: Sequence[float], objective: Objective) -> list[float]:
    """All baselines and all but the worst twentieth of the candidates."""
    ordered = sorted((v for v in values if math.isfinite(v)), key=objective.gain)
    everything = [*ordered[len(ordered) // 20 :], *known]
    low, high = min(everything), max(everything)
    pad = 0.07 * (high - low) or 0.5
    return [low - pad, high + pad]


def _title(objective: Objective) -> str:
    return label(objective.name) + (" (lower is better)" if objective.direction == "minimize" else "")


def _growth(view: RunView) -> Plot | None:
    """The hypervolume above the worst baselines, by evaluations."""
    steps = [
        (int(event["at"]), float(event["hypervolume"]))
        for event in view.history.improved
        if isinstance(event.get("hypervolume"), int | float)
    ]
    if len(steps) < 2:
        return None
    steps.append((len(view.history.trials), steps[-1][1]))
    trace = {
        "type": "scatter",
        "mode": "lines",
        "x": [at for at, _ in steps],
        "y": rounded(volume for _, volume in steps),
        "line": {"shape": "hv", "color": ACCENT, "width": 2.5},
        "hovertemplate": "%{y:.4g} after %{x} evaluations<extra></extra>",
    }
    layout = {
        "xaxis": axis("evaluations", showgrid=False, rangemode="tozero"),
        "yaxis": axis("hypervolume", rangemode="tozero"),
    }
    last = number(steps[-1][1])
    return Plot(
        {"growth": figure(trace, **layout)}, 240, f"Hypervolume by evaluations: {last} after {count(steps[-1][0])}"
    )
