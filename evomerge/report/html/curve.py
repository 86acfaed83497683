"""The search as it went: every candidate, and the best so far, by evaluations and by time, with baselines as lines."""

from __future__ import annotations

import math
from typing import Any

from markupsafe import Markup

from evomerge.objectives import Objective
from evomerge.report.formatting import clean, count, duration, number, percent, signed
from evomerge.report.html.data import RunView
from evomerge.report.html.page import Page
from evomerge.report.html.plots import ACCENT, FAINT, LINE, QUIET, Plot, axis, beside, figure, label, rounded, thinned
from evomerge.report.trial import Trial

_MOST_OBJECTIVES = 4


def curve(view: RunView, page: Page) -> Markup | None:
    """A figure for every objective."""
    scored = [trial for trial in view.history.trials if trial.status == "ok"]
    if not scored:
        return None
    plots = [(clean(o.name), objective_plot(view, o)) for o in view.history.objectives[:_MOST_OBJECTIVES]]
    return page.render(
        "curve.html",
        plots=[(n, p) for n, p in plots if p],
        several=len(plots) > 1,
        summary=_sentence(view),
        failed=len(scored) < len(view.history.trials),
    )


def best_so_far(trials: list[Trial], objective: Objective) -> list[tuple[int, float, float, int]]:
    """Every improvement of an objective: evaluations until then, seconds, value, candidate."""
    found: list[tuple[int, float, float, int]] = []
    best = -math.inf
    for place, trial in enumerate(trials, 1):
        value = trial.objectives.get(objective.name, math.nan) if trial.status == "ok" else math.nan
        if objective.gain(value) > best:
            best = objective.gain(value)
            found.append((place, trial.clock, value, trial.candidate))
    return found


def objective_plot(view: RunView, objective: Objective) -> Plot | None:
    """The curve of one objective."""
    trials = view.history.trials
    steps = best_so_far(trials, objective)
    if not steps:
        return None
    longest = trials[-1].clock
    unit, name = (60.0, "minutes") if longest < 7200 else (3600.0, "hours")
    if longest < 120:
        unit, name = 1.0, "seconds"
    views = {
        "By evaluations": _figure(view, objective, steps, lambda place, clock: float(place), "evaluations"),
        "By time": _figure(view, objective, steps, lambda place, clock: clock / unit, f"{name} of search"),
    }
    return Plot(
        views, 380, f"Best {objective.name} so far: {number(steps[-1][2])} after {count(len(trials))} candidates"
    )


def _figure(
    view: RunView, objective: Objective, steps: list[tuple[int, float, float, int]], at: Any, title: str
) -> dict[str, Any]:
    trials = view.history.trials
    ok = [(place, t) for place, t in enumerate(trials, 1) if t.status == "ok" and objective.name in t.objectives]
    shown = [ok[place] for place in thinned(len(ok))]
    values = [t.objectives[objective.name] for _, t in ok]
    last = at(len(trials), trials[-1].clock)
    dots = {
        "type": "scatter",
        "mode": "markers",
        "name": "candidate",
        "x": rounded(at(place, t.clock) for place, t in shown),
        "y": rounded(t.objectives[objective.name] for _, t in shown),
        "customdata": [t.candidate for _, t in shown],
        "marker": {"size": 5 if len(shown) < 600 else 4, "color": QUIET, "opacity": 0.45},
        "hovertemplate": "candidate %{customdata}<br>%{y:.4f}<extra></extra>",
    }
    best = {
        "type": "scatter",
        "mode": "lines",
        "name": "best so far",
        "x": rounded([*(at(place, clock) for place, clock, _, _ in steps), last]),
        "y": rounded([*(value for _, _, value, _ in steps), steps[-1][2]]),
        "customdata": [*(candidate for *_, candidate in steps), steps[-1][3]],
        "line": {"shape": "hv", "color": ACCENT, "width": 2.5},
        "hovertemplate": "best so far: candidate %{customdata}<br>%{y:.4f}<extra></extra>",
    }
    missing = [place for place, t in enumerate(trials, 1) if t.status != "ok"]
    low, high = _range(view, objective, values)
    traces: list[dict[str, Any]] = [dots, best]
    if missing:
        kept = [missing[place] for place in thinned(len(missing), 1000)]
        bottom = low if objective.direction == "maximize" else high
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": "no score",
                "x": rounded(at(place, trials[place - 1].clock) for place in kept),
                "y": rounded([bottom] * len(kept)),
                "customdata": [[trials[p - 1].candidate, label(trials[p - 1].status)] for p in kept],
                "marker": {"symbol": "line-ns-open", "size": 7, "color": "var(--bad)", "line": {"width": 1}},
                "cliponaxis": False,
                "hovertemplate": "candidate %{customdata[0]}: %{customdata[1]}<extra></extra>",
            }
        )
    lines, words = baseline_lines(view, objective, low, high)
    phases, phase_words = _phases(view, at)
    layout = {
        "xaxis": axis(title, range=[0, last * 1.01 or 1], showgrid=False),
        "yaxis": axis(label(objective.name), range=[low - 0.03 * (high - low), high + 0.08 * (high - low)]),
        "shapes": [*lines, *phases],
        "annotations": [*words, *phase_words],
    }
    return figure(*traces, **layout)


def _range(view: RunView, objective: Objective, values: list[float]) -> tuple[float, float]:
    """Of the axis: hopeless candidates may lie outside, baselines and the best may not."""
    ordered = sorted(v for v in values if math.isfinite(v))
    known = [t.objectives[objective.name] for t in view.history.baselines.values() if objective.name in t.objectives]
    known = [value for value in known if math.isfinite(value)]
    cut = len(ordered) // 10
    kept = ordered[cut:] if objective.direction == "maximize" else ordered[: len(ordered) - cut]
    everything = [*kept, *known] or [0.0]
    low, high = min(everything), max(everything)
    pad = 0.5 * abs(low) or 0.5
    return (low, high) if high > low else (low - pad, high + pad)


def baseline_lines(
    view: RunView, objective: Objective, low: float, high: float
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """A dashed line for every baseline, with its name where names do not overlap."""
    found = {
        name: t.objectives[objective.name]
        for name, t in view.history.baselines.items()
        if math.isfinite(t.objectives.get(objective.name, math.nan))
    }
    ordered = sorted(found.items(), key=lambda entry: -objective.gain(entry[1]))[:12]
    lines, words, taken = [], [], list[float]()
    for place, (name, value) in enumerate(ordered):
        color = QUIET if place == 0 else FAINT
        lines.append(
            {
                "type": "line",
                "xref": "paper",
                "x0": 0,
                "x1": 1,
                "y0": value,
                "y1": value,
                "line": {"color": color, "width": 1.2, "dash": "dash"},
                "layer": "below",
            }
        )
        if all(abs(value - other) > 0.055 * (high - low) for other in taken):
            taken.append(value)
            words.append(beside(label(name, 30), value, color=QUIET))
    return lines, words


def _phases(view: RunView, at: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """A thin line where a phase ends, and its name."""
    history = view.history
    lines, words = [], []
    for number_ in range(1, len(history.phases)):
        before = [place for place, t in enumerate(history.trials, 1) if t.phase < number_]
        if not before:
            continue
        x = at(before[-1], history.trials[before[-1] - 1].clock)
        line = {"color": LINE, "width": 1.5}
        lines.append({"type": "line", "yref": "paper", "y0": 0, "y1": 1, "x0": x, "x1": x, "line": line})
        name, wanted = history.phases[number_].get("phase"), "preference" in history.phases[number_]
        if wanted and name == history.phases[number_ - 1].get("phase"):
            continue  # the first of several preferences has said it
        name = label(name, 20)
        words.append(
            {
                "text": f"{name} →",
                "x": x,
                "y": 1,
                "yref": "paper",
                "xanchor": "left",
                "yanchor": "top",
                "showarrow": False,
            }
        )
    return lines, words


def _sentence(view: RunView) -> str:
    """How soon the best came, and whether it still rose at the end."""
    history, objective = view.history, view.objective
    steps = best_so_far(history.trials, objective)
    if not steps:
        return ""
    at, seconds, value, candidate = steps[-1]
    total = len(history.trials)
    first = (
        f"The best candidate by {clean(objective.name)} is number {candidate}, found after {count(at, 'evaluation')}"
    )
    text = f"{first} ({duration(seconds)})."
    known = [t.objectives[objective.name] for t in history.baselines.values() if objective.name in t.objectives]
    if known:
        best = max(known, key=objective.gain)
        passed = next((step for step in steps if objective.gain(step[2]) > objective.gain(best)), None)
        if passed is not None:
            text += f" The best baseline was passed after {count(passed[0], 'evaluation')}"
            text += f"; the gain on the search items is {signed(objective.gain(value) - objective.gain(best))}."
        else:
            text += " No candidate passed the best baseline on the search items."
    if at > 0.9 * total and total >= 50 and view.state == "ended":
        text += f" It came in the last {percent(1 - 0.9)} of the search: a larger budget may find more."
    return text
