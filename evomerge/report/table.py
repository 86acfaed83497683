"""The table of a run for terminals, logs and files: 80 columns are enough and colours are not needed."""

from __future__ import annotations

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from evomerge.report.formatting import clean, count, fixed, p_text, signed_fixed
from evomerge.report.outcome import metric_name
from evomerge.report.statistics import Comparison
from evomerge.report.summary import Row, Summary

_WIDEST = 4  # tasks that fit beside the mean in 80 columns; the second table has them all
_HEADING = 10  # letters
_WINNER = "bold green"


def render(summary: Summary) -> RenderableType:
    """The tables and sentences of a run: print with a `rich.console.Console`."""
    parts: list[RenderableType] = [_models(summary)]
    if len(summary.tasks) > 1 and summary.evolved is not None and summary.evolved.mean is not None:
        parts.append(_per_task(summary))
    parts.append(Text(verdict(summary) + "\n", style="bold"))
    parts.extend(Text(line, style="dim", overflow="fold") for line in _notes(summary))
    return Group(*parts)


def verdict(summary: Summary) -> str:
    """In one sentence: whether the evolved merge beats the best baseline, by how much and how surely."""
    row = summary.evolved
    if row is None or row.mean is None or row.gain is None:
        return "No candidate of the search could be scored: there is no evolved merge to compare."
    rival = f"the best of the baselines ({summary.best_baseline})"
    amount = f"{signed_fixed(row.gain)} on {_what(summary)}"
    test = row.comparison
    if test is None:
        return f"The evolved merge differs from {rival} by {amount}; without per-item scores nothing can be tested."
    evidence = f"paired {test.test} p = {p_text(test.p_value)}, {test.items} items"
    if row.interval is not None:
        evidence += f", 95% interval {signed_fixed(row.interval[0])} to {signed_fixed(row.interval[1])}"
    if not test.significant:
        return f"No significant difference between the evolved merge and {rival}: {amount} ({evidence})."
    if row.gain > 0 and test.difference > 0:
        return f"The evolved merge beats {rival} by {amount} ({evidence})."
    if row.gain < 0 and test.difference < 0:
        return f"The evolved merge is worse than {rival}: {amount} ({evidence})."
    return f"The evolved merge against {rival}: {amount}, but its items say otherwise ({evidence})."


def _models(summary: Summary) -> Table:
    shown = summary.tasks if len(summary.tasks) <= _WIDEST else ()
    metrics = {metric_name(task.metric) for task in summary.tasks}
    table = _table(
        f"{summary.run.name}: {'/'.join(metrics) if len(metrics) == 1 else 'scores'} on the {_split(summary)} items"
    )
    table.add_column("model", overflow="fold")
    for task, name in zip(shown, distinct([task.task for task in shown]), strict=True):
        metric = metric_name(task.metric) if len(metrics) > 1 else None
        table.add_column(_heading(name, metric), justify="right", overflow="fold")
    if len(summary.tasks) > 1:
        table.add_column("mean", justify="right", no_wrap=True)
    table.add_column("gain", justify="right", no_wrap=True)
    table.add_column("p", justify="right", no_wrap=True)
    winner = _winner(summary)
    for row in summary.rows:
        scores = [fixed(row.scores.get(task.task)) for task in shown]
        mean = [fixed(row.mean)] if len(summary.tasks) > 1 else []
        best = row.name == summary.best_baseline and row.kind != "evolved"
        gain = "best" if best else signed_fixed(row.gain) if row.status == "ok" else row.status
        p_value = "" if best else _p(row.comparison)
        name = f"{'>' if row is winner else ' '} {_label(row)}"
        table.add_row(Text(name), *scores, *mean, gain, p_value, style=_WINNER if row is winner else None)
    return table


def _per_task(summary: Summary) -> Table:
    table = _table("each task against the baseline that is best on it")
    table.add_column("task (metric)", overflow="fold")
    table.add_column("evolved", justify="right", no_wrap=True)
    table.add_column("best baseline", overflow="fold")
    table.add_column("score", justify="right", no_wrap=True)
    table.add_column("gain", justify="right", no_wrap=True)
    table.add_column("p", justify="right", no_wrap=True)
    for task in summary.tasks:
        test = task.comparison
        won = test is not None and test.significant and task.gain is not None and task.gain > 0
        table.add_row(
            Text(f"{task.task} ({metric_name(task.metric)}{', lower is better' if task.lower_is_better else ''})"),
            fixed(task.evolved),
            Text(task.best_baseline),
            fixed(task.baseline_score),
            signed_fixed(task.gain),
            _p(test),
            style=_WINNER if won else None,
        )
    return table


def _notes(summary: Summary) -> list[str]:
    sizes = [task.items for task in summary.tasks]
    each = f"{sizes[0]} a task" if len(set(sizes)) == 1 else ", ".join(f"{t.task} {t.items}" for t in summary.tasks)
    total = f" ({each})" if len(sizes) > 1 else ""
    notes = [
        "gain, p: against the best baseline; + is better whatever the metric; p is two-sided"
        + (", per task not corrected for the number of tasks." if len(sizes) > 1 else "."),
        f"Items: {sum(sizes)}{total}, {_split(summary)} split. dtype: {summary.dtype}. {_searched(summary)}",
    ]
    if summary.mixed:
        notes.insert(1, "mean: metrics where lower is better count negatively.")
    if summary.split == "search":
        notes.append("These are the items that the search chose the winner by: its score is optimistic. Set held_out.")
    if summary.guesses and len(summary.tasks) > 1:
        notes.append(
            "The run does not say what its metrics count: weights are equal here, directions go by their names."
        )
    notes.extend(summary.race)
    if summary.calibration is not None:
        text = summary.calibration.text()
        notes.append(f"{text[0].upper()}{text[1:]}.")
    if summary.ratings is not None:
        notes.append(f"{summary.ratings.text()}.")
    if summary.phases:
        parts = ", then ".join(f"{name} ({count} evaluations)" for name, count in summary.phases)
        notes.append(f"Phases: {parts}.")
    if summary.front is not None:
        size, volume = summary.front
        above = f"; hypervolume above the worst baselines {volume:.4g}" if volume is not None else ""
        notes.append(f"Pareto front: {count(size, 'recipe')}, listed in best/pareto.yaml{above}.")
    if summary.stopped is not None and summary.stopped.startswith("search."):
        notes.append(f"The search ended by {clean(summary.stopped, 300)}.")
    if summary.stopped is None:
        notes.append("The run has not ended: this is its state so far.")
    if summary.recipe is not None:
        notes.append(f"Best recipe: {summary.recipe}")
    return notes


def _searched(summary: Summary) -> str:
    parts = ", ".join(f"{count} {status}" for status, count in summary.counts.items())
    return f"Candidates searched: {sum(summary.counts.values())}" + (f" ({parts})." if parts else ".")


def _winner(summary: Summary) -> Row | None:
    ranked = [row for row in summary.rows if row.gain is not None]
    return max(ranked, key=lambda row: row.gain or 0.0, default=None)


def _what(summary: Summary) -> str:
    if len(summary.tasks) == 1:
        return summary.tasks[0].metric
    unequal = len({round(task.weight, 9) for task in summary.tasks}) > 1
    return f"the {'weighted ' if unequal else ''}mean of {len(summary.tasks)} tasks"


def _label(row: Row) -> str:
    return f"{row.name} (base)" if row.kind == "base" and row.name != "base" else row.name


def _table(title: str) -> Table:
    return Table(
        title=Text(title, style="bold"),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1),
        collapse_padding=True,
        pad_edge=False,
    )


def distinct(names: list[str]) -> list[str]:
    """The names without the words that all of them begin or end with: the table below has them whole."""
    words = [name.split("_") for name in names]
    if len(words) < 2:
        return names
    shortest = min(map(len, words))
    first = next((i for i in range(shortest) if len({w[i] for w in words}) > 1), shortest - 1)
    last = next((i for i in range(shortest - first) if len({w[-1 - i] for w in words}) > 1), 0)
    return ["_".join(word[first : len(word) - last]) for word in words]


def _heading(name: str, metric: str | None) -> Text:
    """A task's name, broken at underscores into short lines, and its metric."""
    lines = [""]
    for part in name.replace("_", "_\0").split("\0"):
        if lines[-1] and len(lines[-1] + part) > _HEADING:
            lines.append("")
        lines[-1] += part
    return Text("\n".join([*lines, *([metric] if metric else [])]))


def _split(summary: Summary) -> str:
    return summary.split.replace("_", "-")


def _p(comparison: Comparison | None) -> str:
    return "-" if comparison is None else p_text(comparison.p_value)
