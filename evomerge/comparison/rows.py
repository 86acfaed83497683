"""The numbers of a protocol's table, every one of an evaluation in the ledger of its test."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from evomerge.comparison.columns import Column, columns_of
from evomerge.comparison.found import Kind, TestedRow, name_of, tested_rows
from evomerge.comparison.plan import OVERLAP, TEST, Plan
from evomerge.comparison.resources import read_peaks
from evomerge.recipes.pool_info import UNIFORM, baseline_recipes
from evomerge.report.history import History, read_history
from evomerge.report.statistics import Comparison, Floats, compare
from evomerge.report.trial import Trial
from evomerge.run.folder import RunFolder
from evomerge.run.items import read_items


@dataclass(frozen=True)
class ComparedRow:
    """A model of the table.

    Attributes:
        name, kind: of it.
        candidate: of its evaluation, in the ledger of the test.
        recipe_hash: of its recipe.
        error: why it has no scores; empty where it has.
        scores: by column.
        items: by column, the values of the items.
        average: mean of the columns of which more is better; ``None`` where one is missing.
        normalised: mean over these of the score over that of the model that was fine-tuned on the task.
        forgetting: by how much it is below the base, a mean over columns of what was lost, nothing gained counted.
        merge_seconds: that merging it took.
        memory: bytes at the peak while it was merged and scored; ``None`` where that is not known.
        chosen: where it was chosen, and what that took; ``None`` of models that were not.
        choosing_memory: bytes at the peak of that; likewise.
        worst: of a search the paired test against the untuned method against which it says least; ``None`` of others.
        worst_of: that method.
    """

    name: str
    kind: Kind
    candidate: int
    recipe_hash: str
    error: str
    scores: Mapping[str, float]
    items: Mapping[str, Floats]
    average: float | None = None
    normalised: float | None = None
    forgetting: float | None = None
    merge_seconds: float = math.nan
    memory: int | None = None
    chosen: TestedRow | None = None
    choosing_memory: int | None = None
    worst: Comparison | None = None
    worst_of: str = ""


@dataclass(frozen=True)
class Outcome:
    """What a protocol came to.

    Attributes:
        plan: of the protocol.
        columns: of the table.
        rows: base, sources, methods, searches.
        against: of each search by name, the paired test against each untuned method by name.
        overlap: how many test items are items of the search, of how many; ``None`` where that is not known, or where
            the test has no items of its own.
    """

    plan: Plan
    columns: Sequence[Column]
    rows: Sequence[ComparedRow]
    against: Mapping[str, Mapping[str, Comparison]]
    overlap: tuple[int, int] | None


def outcome_of(plan: Plan, folder: Path) -> Outcome:
    """Read a run whose test has ended.

    Raises:
        EvomergeError: a part is missing or damaged.
    """
    history = read_history(folder / TEST)
    columns = _columns(history)
    pool = RunFolder(folder / TEST).read_pool()
    tested = {row.name: row for row in tested_rows(plan, folder)}
    peaks = read_peaks(folder / TEST)
    trials: list[tuple[str, Kind, Trial]] = [
        (name, "base" if name == pool.base else "source", trial) for name, trial in history.baselines.items()
    ]
    trials += [(name_of(trial), tested[name_of(trial)].kind, trial) for trial in _in_order(history, tested)]
    rows = [
        _row(folder, columns, name, kind, trial, peaks.get(trial.candidate), tested.get(name))
        for name, kind, trial in trials
    ]
    hashes = {name: recipe.hash for name, recipe in baseline_recipes(pool).items()}
    rows = [replace(row, recipe_hash=row.recipe_hash or hashes.get(row.name, "")) for row in rows]
    rows = [replace(row, kind="untuned") if row.name == UNIFORM else row for row in rows]
    named = [row.scores for row in rows if row.kind == "untuned" and row.name != UNIFORM]
    rows = [row for row in rows if row.name != UNIFORM or row.scores not in named]  # the protocol has it by its name
    rows = [_with_means(row, rows, columns, plan) for row in rows]
    against = _against(rows, columns)
    rows = [_with_worst(row, against) for row in rows]
    return Outcome(plan, columns, rows, against, _overlap(folder))


def _columns(history: History) -> list[Column]:
    return columns_of(history.shares("search"), history.objectives, f"the fitness of {history.folder.path}")


def _in_order(history: History, tested: Mapping[str, TestedRow]) -> list[Trial]:
    """The trials in the order of the protocol: brute force goes through them in one of its own."""
    places = {name: place for place, name in enumerate(tested)}
    known = [trial for trial in history.trials if name_of(trial) in places]
    return sorted(known, key=lambda trial: places[name_of(trial)])


def _row(
    folder: Path,
    columns: Sequence[Column],
    name: str,
    kind: Kind,
    trial: Trial,
    memory: int | None,
    chosen: TestedRow | None,
) -> ComparedRow:
    ok = trial.status == "ok"
    items = {}
    if ok and trial.digest is not None:
        kept = read_items(folder / TEST, trial.candidate, "search", digest=trial.digest)
        items = {own.name: kept[own.metric] for own in columns if own.metric in kept}
    peaks = read_peaks(folder / chosen.part) if chosen is not None and chosen.part else {}
    values = {**trial.objectives, **trial.metrics}
    return ComparedRow(
        name,
        kind,
        trial.candidate,
        trial.recipe_hash,
        "" if ok else trial.error or trial.status,
        {own.name: values[own.metric] for own in columns if ok and own.metric in values},
        items,
        merge_seconds=trial.seconds.get("merge", math.nan),
        memory=memory,
        chosen=chosen if chosen is not None and chosen.part else None,
        choosing_memory=max(peaks.values(), default=None),
    )


def _with_means(row: ComparedRow, rows: Sequence[ComparedRow], columns: Sequence[Column], plan: Plan) -> ComparedRow:
    counted = [own for own in columns if not own.lower_is_better]
    if not counted or any(own.name not in row.scores for own in counted):
        return row
    average = float(np.mean([row.scores[own.name] for own in counted]))
    experts = [_expert(own, rows, plan) for own in counted]
    normalised = None
    if all(experts):
        pairs = zip(counted, experts, strict=True)
        normalised = float(np.mean([row.scores[own.name] / value for own, value in pairs if value is not None]))
    base = next((own for own in rows if own.kind == "base"), None)
    wanted = plan.protocol.forgetting
    kept = [own for own in counted if not wanted or own.task in wanted]
    forgetting = None
    if base is not None and base is not row and kept and all(own.name in base.scores for own in kept):
        forgetting = float(np.mean([max(0.0, base.scores[own.name] - row.scores[own.name]) for own in kept]))
    return replace(row, average=average, normalised=normalised, forgetting=forgetting)


def _expert(column: Column, rows: Sequence[ComparedRow], plan: Plan) -> float | None:
    """The score of the model that was fine-tuned on a task, or else of the source that is best on it."""
    named = plan.protocol.experts.get(column.task)
    known = [row.scores[column.name] for row in rows if row.kind == "source" and column.name in row.scores]
    if named is not None:
        known = [row.scores[column.name] for row in rows if row.name == named and column.name in row.scores]
    return max(known, default=0.0) or None


def _against(rows: Sequence[ComparedRow], columns: Sequence[Column]) -> dict[str, dict[str, Comparison]]:
    """Paired tests of every search against every untuned method, on columns of which more is better."""
    counted = [own.name for own in columns if not own.lower_is_better]

    def items(row: ComparedRow) -> dict[str, Floats]:
        return {name: row.items[name] for name in counted if name in row.items}

    found: dict[str, dict[str, Comparison]] = {}
    for row in rows:
        if row.kind != "search" or len(items(row)) < len(counted):
            continue
        others = [own for own in rows if own.kind == "untuned" and len(items(own)) == len(counted)]
        found[row.name] = {own.name: compare(items(row), items(own)) for own in others}
    return found


def _with_worst(row: ComparedRow, against: Mapping[str, Mapping[str, Comparison]]) -> ComparedRow:
    tests = against.get(row.name)
    if not tests:
        return row
    # Where it is not above one, that is what is to be said; else where it is least sure.
    name = min(tests, key=lambda own: (tests[own].difference > 0, -tests[own].p_value * (tests[own].difference > 0)))
    return replace(row, worst=tests[name], worst_of=name)


def _overlap(folder: Path) -> tuple[int, int] | None:
    try:
        content = json.loads((folder / OVERLAP).read_text(encoding="utf-8"))
        return int(content["same"]), int(content["tested"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
