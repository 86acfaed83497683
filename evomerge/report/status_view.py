"""The progress of a run on a terminal: a panel that a running search draws again and again, and one line of text."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from evomerge.recipes.pool_info import UNIFORM
from evomerge.report.chart import chart_of, range_of
from evomerge.report.formatting import clean, count, duration, rate
from evomerge.report.saved_tokens import SavedTokens, halved_text
from evomerge.report.status import RunStatus
from evomerge.report.worker_lines import worker_lines

_STATES = {
    "running": "bold green",
    "ended": "bold",
    "interrupted": "bold yellow",
    "dead": "bold red",
    "damaged": "bold red",
    "unknown": "bold yellow",
}
_SOURCES = {
    "kept": "in the model already",
    "referenced": "a source's own",
    "memory": "worker's cache",
    "shared": "shared cache",
    "computed": "merged",
}
_STAGE_STYLES = {"cheap": "green", "merge": "cyan", "note": "yellow", "model": "blue", "other": "magenta"}
_WIDEST = 100
_ROWS = 28
_LABELS = 11
_SHOWN_REASONS = 3
_SHOWN_BASELINES = 6


class StatusPanel:
    """The whole picture; print with a `rich.console.Console`. It takes the terminal's width, up to 100 columns.

    Args:
        status: what to show.
        message: what the search is doing, in place of the state and its detail.
        rows: of the terminal; in a low one details are left out.
    """

    def __init__(self, status: RunStatus, message: str | None = None, *, rows: int | None = None) -> None:
        self._status, self._message = _fit_to_show(status), message
        self._low = rows is not None and rows < _ROWS

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = min(_WIDEST, max(20, options.max_width - 2))  # the ^C that a terminal writes behind it starts no line
        inner = width - 4
        status = self._status
        parts: list[RenderableType] = [_bar(status, inner)] if status.evaluations else []
        if parts and not self._low:
            parts.append(Text())
        table = Table.grid(padding=(0, 1))
        table.add_column(no_wrap=True, style="dim", width=_LABELS)
        table.add_column(overflow="fold", ratio=1)
        if self._message is None:
            table.add_row("state", self._state())
        for label, shown in _rows(status, inner - _LABELS - 1, self._low):
            table.add_row(label, shown)
        parts.append(table)
        yield Panel(
            Group(*parts),
            title=Text(status.run.resolve().name, style="bold"),
            title_align="left",
            subtitle=None if self._message is None else Text(self._message, style="green"),
            subtitle_align="left",
            box=box.ROUNDED,
            border_style="dim",
            width=width,
        )

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(min(40, options.max_width), min(_WIDEST, options.max_width))

    def _state(self) -> Text:
        status = self._status
        text = Text(status.state, style=_STATES[status.state])
        text.append(f", {status.detail}", style="not bold default")
        return text.append(f"; last event {duration(status.idle)} ago", style="not bold default")


def _fit_to_show(status: RunStatus) -> RunStatus:
    """A status with names and messages that cannot move the cursor: a run may be a stranger's."""
    return replace(
        status,
        detail=clean(status.detail),
        objective=clean(status.objective, 40),
        phase=None if status.phase is None else clean(status.phase, 60),
        baselines={clean(name, 40): value for name, value in status.baselines.items()},
        failures={clean(reason): count for reason, count in status.failures.items()},
        workers=tuple(
            replace(work, worker=clean(work.worker, 40), stage=clean(work.stage, 20)) for work in status.workers
        ),
    )


def progress_line(status: RunStatus) -> str:
    """The most important of it in one line of plain text."""
    status = _fit_to_show(status)
    total = f"/{status.evaluations}" if status.evaluations is not None else ""
    parts = [f"{status.told}{total} evaluated" + (f", phase {status.phase}" if status.phase else "")]
    if status.best is not None:
        gains = ", ".join(f"{gain:+.4f} on {name}" for name, gain in _gains(status))
        apart = f", {text}" if (text := _apart(status)) else ""
        parts.append(f"best {status.objective} {status.best:.4f}{apart}" + (f" ({gains})" if gains else ""))
    if status.front is not None:
        parts.append(f"Pareto front {status.front}")
    pruned = status.counts.get("pruned", 0)
    if pruned:
        parts.append(f"{pruned} pruned")
    failed = status.told - status.counts.get("ok", 0) - pruned
    if failed:
        reason = next(iter(status.failures), "")
        parts.append(f"{failed} failed" + (f" ({clean(reason, 80)})" if reason else ""))
    if status.per_hour is not None:
        parts.append(f"{rate(status.per_hour)} an hour")
    if status.rules is not None and status.rules.patience is not None:
        parts.append(status.rules.patience_line())
    if status.ratings is not None and status.ratings.waiting:
        parts.append(f"{count(status.ratings.waiting, 'candidate')} with the raters")
    if status.left is not None and status.told < (status.evaluations or 0):
        parts.append(f"{duration(status.left)} left")
    return "; ".join(parts)


def _bar(status: RunStatus, width: int) -> RenderableType:
    assert status.evaluations
    left = f"{status.told} of {status.evaluations}"
    share = f"{100 * status.told / status.evaluations:.0f} %"
    right = (
        share if status.left is None or status.told >= status.evaluations else f"{share}, {duration(status.left)} left"
    )
    grid = Table.grid(padding=(0, 2, 0, 0))
    for _ in range(3):
        grid.add_column(no_wrap=True)
    room = max(5, width - len(left) - len(right) - 5)
    bar = ProgressBar(
        total=status.evaluations, completed=status.told, width=room, complete_style="green", finished_style="green"
    )
    grid.add_row(Text(left, style="bold"), bar, Text(right))
    return grid


def _rows(status: RunStatus, width: int, low: bool) -> Iterator[tuple[str, RenderableType]]:
    if status.phase is not None:
        yield "phase", Text(status.phase)
    yield from _score(status, width, low)
    if status.front is not None:
        volume = f", hypervolume {status.hypervolume:.4f}" if status.hypervolume is not None else ""
        yield "front", Text(f"{count(status.front, 'recipe')}{volume}")
    if status.baselines:
        yield "models", _flow(_baselines(status), width)
    if status.ratings is not None:
        yield "ratings", _flow([clean(line) for line in status.ratings.lines()], width)
    if status.rules is not None:
        yield "ends", _flow(status.rules.lines(), width)
    if status.held_out_asked:
        yield "held-out", Text(_held_out(status))
    yield "speed", _flow(_speed(status), width)
    if status.shares:
        yield "time", _time(status, width)
    if status.calibration is not None:
        yield "data", Text(status.calibration.text())
    yield "cache", _cache(status, width, low)
    if status.halved:
        yield "memory", Text(halved_text(status.halved))
    if status.failures:
        yield "failed", Text(_failures(status))
    if status.workers:
        yield "workers", _flow(worker_lines(status.workers, time.time()), width)
    elif status.in_flight:
        yield "in flight", Text(count(status.in_flight, "candidate"))


def _score(status: RunStatus, width: int, low: bool) -> Iterator[tuple[str, RenderableType]]:
    if status.best is None:
        yield "best", Text("no candidate scored yet")
        return
    best = Text.assemble(
        (f"{status.objective} {status.best:.4f}", "bold green"), f", candidate {status.best_candidate}"
    )
    yield "best", best
    if apart := _apart(status):
        yield "", Text(apart)
    for name, gain in _gains(status):
        yield "", Text.assemble((f"{gain:+.4f}", "green" if gain > 0 else "red"), f" on {name}")
    chart = [] if low else chart_of(status.curve, min(60, width - 18), 3)
    if chart:
        least, most = range_of(status.curve)
        ends = (most, None, least)
        lines = [
            Text.assemble((line, "green"), "" if end is None else (f" {end:.4f}", "dim"))
            for line, end in zip(chart, ends, strict=True)
        ]
        yield "best so far", Text("\n").join(lines)


def _gains(status: RunStatus) -> list[tuple[str, float]]:
    """What the best candidate has gained on the best source and on the uniform average."""
    source = status.best_source
    found = [(f"{source}, the best source", status.gain_on(source)), (f"the {UNIFORM}", status.gain_on(UNIFORM))]
    return [(name, gain) for name, gain in found if gain is not None]


def _apart(status: RunStatus) -> str:
    """What the gains are of, where the best was scored otherwise than the baselines; empty where it was not."""
    if status.compared == status.best or not status.baselines:
        return ""
    if status.compared is None:
        return "no gain: baselines were scored as in the search, the winner only as a finalist"
    return f"{status.compared:.4f} in the search, scored as the baselines"


def _flow(parts: Sequence[str], width: int) -> Text:
    """Parts with dots between them, in lines that end between two parts wherever they fit."""
    lines: list[str] = []
    for part in parts:
        if lines and len(lines[-1]) + 3 + len(part) <= width:
            lines[-1] += f" · {part}"
        else:
            lines.append(part)
    return Text("\n".join(lines))


def _held_out(status: RunStatus) -> str:
    """How far held-out scoring is."""
    all_, done = status.held_out_asked, status.held_out
    text = f"{f'{done} of ' if done < all_ else ''}{count(all_, 'model')} scored"
    return text + (f" in {duration(status.held_out_seconds)}" if done and status.held_out_seconds else "")


def _baselines(status: RunStatus) -> list[str]:
    sign = -1 if status.direction == "minimize" else 1
    ranked = sorted(status.baselines.items(), key=lambda entry: -sign * entry[1])
    more = [f"{len(ranked) - _SHOWN_BASELINES} more"] if len(ranked) > _SHOWN_BASELINES else []
    return [f"{name} {value:.4f}" for name, value in ranked[:_SHOWN_BASELINES]] + more


def _speed(status: RunStatus) -> list[str]:
    if status.per_hour is None:
        return ["not known yet"]
    medians = ", ".join(f"{name} {duration(value)}" for name, value in status.stages.items())
    speed = f"{rate(status.per_hour)} candidates an hour over {duration(status.seconds)}"
    saved = tokens.lines() if (tokens := SavedTokens.of(status.tokens)) is not None else []
    return [speed, *([f"median {medians}"] if medians else []), *saved, *status.race]


def _time(status: RunStatus, width: int) -> RenderableType:
    """Parts of the time as a bar of colours, and in words."""
    shares = {name: status.shares[name] for name in _STAGE_STYLES if name in status.shares}
    room = min(24, width - 44)
    text = Text()
    used = 0
    for place, (name, share) in enumerate(shares.items()):
        cells = room - used if place == len(shares) - 1 else round(share * room)
        used += cells
        text.append("━" * max(0, cells), style=_STAGE_STYLES[name])
    text.append("  " if room > 0 else "")
    for place, (name, share) in enumerate(shares.items()):
        text.append(" · " if place else "")
        text.append(f"{name} {100 * share:.1f} %", style=_STAGE_STYLES[name])
    return text


def _cache(status: RunStatus, width: int, low: bool) -> Text:
    cache = status.cache
    total = sum(cache.slices.values())
    if not total or cache.slice_hits is None:
        return Text("nothing merged yet")
    hits = f"{100 * cache.slice_hits:.1f} % of slices"
    if cache.byte_hits is not None:
        hits += f", {100 * cache.byte_hits:.1f} % of bytes"
    where = [f"{_SOURCES[name]} {100 * count / total:.1f} %" for name, count in cache.slices.items() if count]
    saved = _flow([f"{hits} not merged again", f"{duration(cache.saved)} saved"], width)
    return saved if low else Text("\n").join([saved, _flow(where, width)])


def _failures(status: RunStatus) -> str:
    failed = sum(status.failures.values())
    reasons = list(status.failures.items())
    shown = [f"{count} × {reason}" for reason, count in reasons[:_SHOWN_REASONS]]
    more = sum(count for _, count in reasons[_SHOWN_REASONS:])
    return f"{failed} of {status.told}\n" + "\n".join([*shown, *([f"{more} × others"] if more else [])])
