"""Several runs side by side: their curves together, their held-out scores, and what differs in their configurations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from evomerge.errors import EvomergeError
from evomerge.report.formatting import clean, count, duration, number, signed
from evomerge.report.html.curve import baseline_lines, best_so_far
from evomerge.report.html.data import RunView
from evomerge.report.html.headline import STRATEGIES, Notice, named, node_of, notices, p_cell
from evomerge.report.html.page import Page
from evomerge.report.html.plots import QUIET, Plot, axis, figure, label, rounded, series
from evomerge.report.outcome import RunRecord, Scored, metric_name
from evomerge.report.statistics import Comparison, compare
from evomerge.report.table import distinct

MOST_RUNS = 40
_MOST_KEYS = 80
_WIDEST = 6
_NOT_COMPARED = ("name", "run_dir", "hydra")


@dataclass(frozen=True)
class Line:
    """A row of the table of runs, or of the models that they begin with."""

    name: str
    note: str
    scores: list[str]
    mean: str
    gain: str
    against: str
    p: str
    color: str = ""


def names_of(views: Sequence[RunView]) -> list[str]:
    """A name for every run: its folder's, with the folder above it where two are called alike."""
    names = [view.name for view in views]
    if len(set(names)) < len(names):
        names = [clean("/".join(view.folder.path.resolve().parts[-2:]), 120) for view in views]
    if len(set(names)) < len(names):
        names = [f"{name} ({place})" for place, name in enumerate(names, 1)]
    return names


def comparison_head(views: Sequence[RunView], page: Page) -> Markup:
    """The head: which run is best, and whether that is sure."""
    names = names_of(views)
    scored = [
        (name, value)
        for name, view in zip(names, views, strict=True)
        if (value := mean_of(view, _split(views))) is not None
    ]
    title = f"{len(views)} runs side by side"
    lead = "None of them has a winner with held-out scores yet."
    if scored:
        lower = next(v.summary.lower_is_better for v in views if v.summary is not None)
        best = (min if lower else max)(scored, key=lambda entry: entry[1])
        lead = f"{best[0]} has the best winner on the reported items: {number(best[1])} on average."
        if len(scored) > 1:
            lead += f" The others: {', '.join(f'{n} {number(v)}' for n, v in scored if n != best[0])}."
    notes = [
        Notice(f"{name}: {notice.text}", notice.kind)
        for name, view in zip(names, views, strict=True)
        for notice in notices(view, view.summary)
    ]
    return page.render("headline.html", kicker="", title=title, lead=clean(lead, 900), facts=[], notices=notes[:20])


def mean_of(view: RunView, split: str) -> float | None:
    """The winner's mean on these items."""
    if view.summary is None or view.summary.split != split or view.summary.evolved is None:
        return None
    return view.summary.evolved.mean


def _split(views: Sequence[RunView]) -> str:
    """The items that runs are compared on: held-out ones where any run has scores of them."""
    return "held_out" if any(v.summary is not None and v.summary.split == "held_out" for v in views) else "search"


def comparison_scores(views: Sequence[RunView], page: Page) -> Markup | None:
    """The table of winners, tested against the first run's item by item."""
    names = names_of(views)
    split = _split(views)
    first = next((view for view in views if mean_of(view, split) is not None), None)
    if first is None or first.summary is None:
        return None
    tasks = first.summary.tasks
    shown = tasks if 1 < len(tasks) <= _WIDEST else ()
    lines = []
    for place, (name, view) in enumerate(zip(names, views, strict=True)):
        row = view.summary.evolved if view.summary is not None and view.summary.split == split else None
        test = against(view, first) if view is not first else None
        lines.append(
            Line(
                name,
                _note(view) + (" · no held-out scores" if row is None and split == "held_out" else ""),
                [number(row.scores.get(task.task)) if row else "–" for task in shown],
                number(row.mean) if row and row.mean is not None else "–",
                signed(row.gain) if row else "–",
                "" if test is None else signed(test.difference),
                "" if test is None else p_cell(test.p_value),
                series(place),
            )
        )
    models = [
        Line(
            clean(row.name, 60),
            "baseline",
            [number(row.scores.get(t.task)) for t in shown],
            number(row.mean),
            "",
            "",
            "",
        )
        for row in first.summary.rows
        if row.kind != "evolved"
    ]
    return page.render(
        "compare_scores.html",
        lines=lines,
        models=models,
        headings=[clean(name, 40) for name in distinct([task.task for task in tasks])][: len(shown)],
        first=names[list(views).index(first)],
        metric=", ".join(dict.fromkeys(clean(metric_name(task.metric), 30) for task in tasks)),
        split="held-out" if first.summary.split == "held_out" else "search",
        items=count(sum(task.items for task in tasks)),
        same=_same_items(views, split),
    )


def _note(view: RunView) -> str:
    """Strategy, evaluations, time."""
    history = view.history
    phases = history.phases or [{}]
    how = [named(node_of(view.config, phase, "strategy"), STRATEGIES) for phase in phases]
    parts = [", then ".join(dict.fromkeys(word for word in how if word))]
    parts += [count(len(history.trials), "evaluation"), duration(history.seconds)]
    if history.started.get("seed") is not None:
        parts.append(f"seed {clean(history.started['seed'], 20)}")
    return " · ".join(part for part in parts if part)


def against(view: RunView, first: RunView) -> Comparison | None:
    """A winner's paired test against another run's; ``None`` where they have other items."""
    if view.record is None or first.record is None:
        return None
    own, other = view.record.best, first.record.best
    if own is None or other is None or view.record.split != first.record.split:
        return None
    metrics = first.record.headlines(other.evaluation)
    try:
        return compare(
            _items(own, metrics),
            _items(other, metrics),
            lower_is_better={task for task, metric in metrics.items() if first.record.lower_is_better(metric)},
            weights={task: first.record.weight(metric) for task, metric in metrics.items()},
        )
    except (EvomergeError, KeyError):
        return None


def _items(model: Scored, metrics: Mapping[str, str]) -> dict[str, Any]:
    return {task: model.evaluation.items[metric] for task, metric in metrics.items()}


def _same_items(views: Sequence[RunView], split: str) -> bool:
    """Whether the same models got the same held-out scores in all runs: then the items were the same."""
    records: list[RunRecord] = [view.record for view in views if view.record is not None]
    records = [record for record in records if record.split == split]
    for record in records[1:]:
        known = {model.name: model.evaluation for model in records[0].baselines}
        for model in record.baselines:
            other = known.get(model.name)
            if other is not None and set(other.items) != set(model.evaluation.items):
                return False
            if other is not None and any(
                values.shape != other.items[name].shape or not np.array_equal(values, other.items[name], equal_nan=True)
                for name, values in model.evaluation.items.items()
            ):
                return False
    return True


def comparison_curves(views: Sequence[RunView], page: Page) -> Markup | None:
    """The best-so-far curves of all runs in one figure."""
    names = names_of(views)
    every = [objective for view in views for objective in view.history.objectives]
    shared = [objective for objective in dict.fromkeys(every) if every.count(objective) > 1]
    plots = [(clean(o.name), plot) for o in shared[:3] if (plot := _curves(views, names, o)) is not None]
    alone = [n for n, view in zip(names, views, strict=True) if not set(shared[:3]) & set(view.history.objectives)]
    if not plots:
        return page.render("missing.html", reason="the runs have no objective in common")
    return page.render("curves.html", plots=plots, several=len(plots) > 1, alone=alone)


def _curves(views: Sequence[RunView], names: Sequence[str], objective: Any) -> Plot | None:
    steps = [best_so_far(view.history.trials, objective) for view in views]
    if not any(steps):
        return None
    longest = max((view.history.seconds for view in views), default=0.0)
    unit, word = (3600.0, "hours") if longest >= 7200 else (60.0, "minutes") if longest >= 120 else (1.0, "seconds")
    figures = {}
    for title, by_time in (("By evaluations", False), ("By time", True)):
        traces = []
        for place, (view, own) in enumerate(zip(views, steps, strict=True)):
            if not own:
                continue
            trials = view.history.trials
            end = trials[-1].clock / unit if by_time else float(len(trials))
            traces.append(
                {
                    "type": "scatter",
                    "mode": "lines",
                    "name": label(names[place], 44),
                    "x": rounded([*(clock / unit if by_time else float(at) for at, clock, _, _ in own), end]),
                    "y": rounded([*(value for _, _, value, _ in own), own[-1][2]]),
                    "line": {"shape": "hv", "width": 2.4, "color": series(place)},
                    "hovertemplate": "%{fullData.name}<br>%{y:.4f}<extra></extra>",
                }
            )
        values = [value for own in steps for _, _, value, _ in own]
        low, high = min(values), max(values)
        lines, words = baseline_lines(views[0], objective, low, high)
        best = lines[:1], words[:1]
        figures[title] = figure(
            *traces,
            xaxis=axis(f"{word} of search" if by_time else "evaluations", showgrid=False, rangemode="tozero"),
            yaxis=axis(label(objective.name)),
            shapes=best[0],
            annotations=[{**word_, "font": {"size": 11, "color": QUIET}} for word_ in best[1]],
            showlegend=True,
        )
    return Plot(figures, 420 + 20 * (len(views) // 4), f"Best {clean(objective.name)} so far of {len(views)} runs")


def comparison_configs(views: Sequence[RunView], page: Page) -> Markup | None:
    """The keys of the configurations whose values are not the same in all runs."""
    flat = [dict(flattened(own)) for own in _alike([view.config for view in views])]
    keys = [key for key in dict.fromkeys(k for own in flat for k in own) if key.partition(".")[0] not in _NOT_COMPARED]
    changed = [key for key in keys if len({repr(own.get(key, _ABSENT)) for own in flat}) > 1]
    return page.render(
        "compare_configs.html",
        names=names_of(views),
        rows=[{"key": clean(key, 80), "groups": _groups([own.get(key, _ABSENT) for own in flat])} for key in changed][
            :_MOST_KEYS
        ],
        same=len(keys) - len(changed),
        more=max(0, len(changed) - _MOST_KEYS),
        colors=[series(place) for place in range(len(views))],
    )


class _Absent:
    def __str__(self) -> str:
        return "–"

    __repr__ = __str__


_ABSENT = _Absent()


def _groups(values: Sequence[Any]) -> list[dict[str, Any]]:
    """The runs by their value."""
    found: dict[str, dict[str, Any]] = {}
    for place, value in enumerate(values):
        own = found.setdefault(repr(value), {"runs": [], "value": clean(_word(value), 80)})
        own["runs"].append(place)
    return list(found.values())


def _word(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def _alike(configs: Sequence[Any]) -> list[Any]:
    """The configurations; where the runs have other classes of a part, these alone: their keys have no counterpart."""
    if not all(isinstance(config, Mapping) for config in configs):
        return list(configs)
    targets = {str(config.get("_target_")) for config in configs}
    if len(targets) > 1:
        return [{"_target_": clean(str(config.get("_target_")).rpartition(".")[2], 60)} for config in configs]
    found: list[dict[str, Any]] = [dict(config) for config in configs]
    for key in set.intersection(*(set(config) for config in configs)):
        for own, entry in zip(found, _alike([config[key] for config in configs]), strict=True):
            own[key] = entry
    return found


def flattened(value: Any, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """The leaves of a configuration by their dotted keys."""
    if isinstance(value, Mapping) and value and depth < 12:
        for key, entry in value.items():
            yield from flattened(entry, f"{prefix}.{key}" if prefix else str(key), depth + 1)
    elif isinstance(value, list) and value and all(isinstance(entry, Mapping | list) for entry in value) and depth < 12:
        for place, entry in enumerate(value):
            yield from flattened(entry, f"{prefix}[{place}]", depth + 1)
    else:
        yield prefix, value
