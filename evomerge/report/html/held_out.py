"""The models side by side on the reported items, and the winner task by task, with paired tests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from evomerge.report.formatting import clean, count, number, signed
from evomerge.report.forwards_apart import apart_text
from evomerge.report.html.data import RunView
from evomerge.report.html.headline import p_cell
from evomerge.report.html.page import Page
from evomerge.report.html.plots import ACCENT, FAINT, GROUND, QUIET, Plot, axis, figure, label, rounded
from evomerge.report.outcome import BEST, metric_name
from evomerge.report.summary import Row, Summary, TaskResult
from evomerge.report.table import distinct

WIDEST = 5
"""Tasks that have columns of their own."""
_MOST_TASKS = 40


@dataclass(frozen=True)
class Line:
    """A row of the table of models."""

    name: str
    kind: str
    scores: list[str]
    mean: str
    gain: str
    interval: str
    p: str
    winner: bool


def held_out(view: RunView, page: Page) -> Markup | None:
    """Tables of models and tasks."""
    summary = view.summary
    if summary is None:
        return None
    tasks = summary.tasks if 1 < len(summary.tasks) <= WIDEST else ()
    metrics = {metric_name(task.metric) for task in summary.tasks}
    names = distinct([task.task for task in summary.tasks])
    ranked = [row for row in summary.rows if row.gain is not None]
    best = max(ranked, key=lambda row: row.gain or 0.0, default=None)
    return page.render(
        "held_out.html",
        split=summary.split,
        metric=clean(next(iter(metrics))) if len(metrics) == 1 else "",
        headings=[clean(name, 40) for name in names[: len(tasks)]],
        several=len(summary.tasks) > 1,
        lines=[_line(row, summary, tasks, row is best) for row in summary.rows],
        tasks=[_task(task, name) for task, name in zip(summary.tasks, names, strict=True)][:_MOST_TASKS]
        if len(summary.tasks) > 1 and summary.evolved is not None and summary.evolved.mean is not None
        else [],
        more=max(0, len(summary.tasks) - _MOST_TASKS),
        items=sum(task.items for task in summary.tasks),
        mixed=summary.mixed,
        dtype=clean(summary.dtype),
        figure=_dots(summary, names),
        ratings=f"{summary.ratings.text()}." if summary.ratings is not None else "",
        apart=apart_text(best_trial.apart) if (best_trial := view.history.held_out.get(BEST)) is not None else "",
    )


def _line(row: Row, summary: Summary, tasks: tuple[TaskResult, ...], winner: bool) -> Line:
    best = row.name == summary.best_baseline and row.kind != "evolved"
    test = row.comparison
    kind = {"base": "base", "baseline": "baseline", "source": "source", "evolved": ""}[row.kind]
    return Line(
        name="The evolved merge" if row.kind == "evolved" else clean(row.name, 80),
        kind="best baseline" if best else "" if row.name == kind else kind,
        scores=[number(row.scores.get(task.task)) for task in tasks],
        mean=number(row.mean) if row.mean is not None else clean(row.status, 20),
        gain="–" if best else signed(row.gain),
        interval="" if row.interval is None else f"{signed(row.interval[0])} to {signed(row.interval[1])}",
        p="" if test is None else p_cell(test.p_value),
        winner=winner,
    )


def _task(task: TaskResult, short: str) -> dict[str, Any]:
    test = task.comparison
    return {
        "name": clean(short, 60),
        "metric": clean(metric_name(task.metric)) + (", lower is better" if task.lower_is_better else ""),
        "many": count(task.items) if task.items else "–",
        "evolved": number(task.evolved),
        "rival": clean(task.best_baseline, 60),
        "score": number(task.baseline_score),
        "gain": signed(task.gain),
        "p": "" if test is None else p_cell(test.p_value),
        "record": "" if test is None else f"{count(test.wins)}–{count(test.losses)}",
        "won": test is not None and test.significant and (task.gain or 0) > 0,
        "lost": test is not None and test.significant and (task.gain or 0) < 0,
    }


def _dots(summary: Summary, names: list[str]) -> Plot | None:
    """Every model's score on every task: how the winner lies among the models that it is made of."""
    if len(summary.tasks) < 2 or len({metric_name(task.metric) for task in summary.tasks}) > 1:
        return None
    tasks = summary.tasks[:_MOST_TASKS]
    short = [label(name, 34) for name in names[: len(tasks)]]
    symbols = ("circle-open", "square-open", "diamond-open", "triangle-up-open", "cross-open", "x-open", "star-open")
    traces: list[dict[str, Any]] = []
    for place, row in enumerate(sorted(summary.rows, key=lambda row: row.kind == "evolved")):
        won = row.kind == "evolved"
        symbol = "circle" if won else symbols[place % len(symbols)]
        marker: dict[str, Any] = {"symbol": symbol, "size": 13 if won else 10, "color": ACCENT if won else QUIET}
        if not won:
            marker["line"] = {"width": 1.6, "color": QUIET}
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": "evolved" if won else label(row.name, 40),
                "x": rounded(row.scores.get(task.task) for task in tasks),
                "y": short,
                "marker": marker,
                "hovertemplate": "%{x:.4g}<extra>%{fullData.name}</extra>",
            }
        )
    lanes = axis(autorange="reversed", gridcolor=FAINT, griddash="dot", showgrid=True)
    layout = {"xaxis": axis(metric_name(label(summary.tasks[0].metric))), "yaxis": lanes, "showlegend": True}
    layout["legend"] = {"itemclick": False, "itemdoubleclick": False, "bgcolor": GROUND}
    return Plot(
        {"scores": figure(*traces, **layout)},
        110 + 46 * len(tasks) + 22 * (len(traces) // 4),
        "Scores of every model on every task",
    )
