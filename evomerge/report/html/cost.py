"""What the search took: seconds by stage, what the layer cache saved, and the candidates that failed, with reasons."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from evomerge.report.formatting import clean, count, duration
from evomerge.report.html.data import RunView
from evomerge.report.html.page import Page
from evomerge.report.saved_tokens import SavedTokens, halved_text
from evomerge.report.trial import Trial
from evomerge.utils.sizes import size_text

STAGES = {
    "merge": "merging",
    "note": "noting statistics of the sources, once",
    "cheap": "on the cheap rung",
    "model": "in the model",
    "other": "everything else",
}
SLICES = {
    "computed": "merged",
    "kept": "in the model already",
    "referenced": "a source's own",
    "memory": "from the worker's cache",
    "shared": "from the shared cache",
}
_REASONS = 12
SHADES = tuple(f"color-mix(in srgb, var(--accent) {share}%, var(--ground))" for share in (100, 62, 40, 24, 14))
"""Of the accent colour, for the parts of a bar."""


@dataclass(frozen=True)
class Share:
    """A part of a bar."""

    name: str
    share: float
    value: str
    color: str


@dataclass
class Reason:
    """Candidates that failed alike."""

    status: str
    example: str
    count: int = 0
    candidates: list[int] = field(default_factory=list)


def cost(view: RunView, page: Page) -> Markup | None:
    """Bars of seconds and slices, and the table of failures."""
    history = view.history
    every = [*history.trials, *history.validated.values(), *history.baselines.values(), *history.held_out.values()]
    every = [trial for trial in every if trial.source is None]
    if not every:
        return None
    seconds = _sums(trial.seconds for trial in every)
    merge = _sums(trial.merge for trial in every)
    ok = [trial for trial in history.trials if trial.status in ("ok", "pruned") and trial.source is None]
    median = {
        name: statistics.median(times)
        for name in seconds
        if name != "note"  # of the first candidates only
        and (times := [t.seconds[name] for t in ok if name in t.seconds])
    }
    slices = {name: merge.get(name, 0.0) for name in SLICES}
    ordered = {name: seconds[name] for name in ("model", "cheap", "merge", "note", "other") if name in seconds}
    total = sum(seconds.values())
    return page.render(
        "cost.html",
        total=duration(total),
        wall=duration(history.seconds + history.held_out_seconds),
        workers=_workers(total, history.seconds + history.held_out_seconds),
        stages=_shares(ordered | seconds, STAGES, duration),
        median=[(STAGES.get(name, clean(name, 40)), duration(value)) for name, value in median.items()],
        slices=_shares(slices, SLICES, lambda value: count(round(value))) if sum(slices.values()) else [],
        saved=duration(merge.get("saved", 0.0)) if merge.get("saved") else "",
        bytes=size_text(merge.get("bytes", 0.0)),
        computed=size_text(merge.get("computed_bytes", 0.0)),
        tokens=SavedTokens.of(history.tokens),
        calibration=history.calibration.text() if history.calibration is not None else "",
        halved=halved_text(history.halved) if history.halved else "",
        reasons=(found := reasons(history.trials))[:_REASONS],
        more=len(found) - _REASONS,
        failed=sum(reason.count for reason in found),
        told=len(history.trials),
    )


def reasons(trials: Sequence[Trial]) -> list[Reason]:
    """Failures by status and message, numbers left out of the comparison; the most frequent first."""
    found: dict[tuple[str, str], Reason] = {}
    for trial in trials:
        if trial.status in ("ok", "pruned"):
            continue
        key = trial.status, re.sub(r"[-+]?\d[\d.,e+-]*", "#", trial.error[:300])
        example = clean(trial.error, 240) or "no reason was given"
        reason = found.setdefault(key, Reason(clean(trial.status, 20), example))
        reason.count += 1
        if len(reason.candidates) < 3:
            reason.candidates.append(trial.candidate)
    return sorted(found.values(), key=lambda reason: -reason.count)


def _sums(parts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    total: dict[str, float] = {}
    for part in parts:
        for name, value in part.items():
            if value == value:
                total[name] = total.get(name, 0.0) + value
    return total


def _shares(values: Mapping[str, float], names: Mapping[str, str], text: Callable[[float], str]) -> list[Share]:
    total = sum(values.values()) or 1.0
    return [
        Share(names.get(name, clean(name, 40)), value / total, text(value), SHADES[place % len(SHADES)])
        for place, (name, value) in enumerate(values.items())
        if value > 0
    ]


def _workers(total: float, wall: float) -> str:
    """How much was done at once, where that was more than one thing."""
    return f"{total / wall:.1f}" if wall > 0 and total / wall > 1.5 else ""
