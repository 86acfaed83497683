"""What the parts of a protocol have found: which recipes are tested, and where each was chosen."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from evomerge.comparison.plan import GRID, SEARCH, Plan
from evomerge.comparison.settings import SearchEntry
from evomerge.objectives import Objective, ParetoArchive
from evomerge.report.history import read_history
from evomerge.report.trial import Trial
from evomerge.session.best_recipe import best_recipe
from evomerge.session.preferred_recipe import preferred_recipe

Kind = Literal["base", "source", "untuned", "grid", "tuned", "search"]


@dataclass(frozen=True)
class TestedRow:
    """A recipe of the test.

    Attributes:
        name: of its row.
        kind: ``untuned``; ``grid``, one of its members, tested since a published table has it; ``tuned``, the grid's
            best; ``search``.
        recipe: as `search_spaces.listed.ListedSpace` takes it.
        part: the part of the protocol that chose it; empty where nothing was chosen.
        candidate: its number there.
        evaluations: candidates that it was chosen among.
        seconds: that choosing took.
    """

    name: str
    kind: Kind
    recipe: Mapping[str, Any]
    part: str = ""
    candidate: int | None = None
    evaluations: int = 0
    seconds: float = field(default=math.nan)


def tested_rows(plan: Plan, folder: Path) -> list[TestedRow]:
    """Everything that the test scores, beside the pool's own models.

    Args:
        plan: of the protocol.
        folder: of its run, in which grid and searches have ended.

    Raises:
        EvomergeError: one of them has no winner.
    """
    rows = [TestedRow(name, "untuned", recipe) for name, recipe in plan.untuned().items()]
    rows += _of_grid(plan, folder)
    for entry in plan.protocol.searches:
        rows += _of_search(entry, folder)
    return rows


def name_of(trial: Trial) -> str:
    """The name of a listed recipe, by its candidate's genome."""
    values = (
        trial.genome if isinstance(trial.genome, Sequence) and not isinstance(trial.genome, str) else [trial.genome]
    )
    return str(values[0]) if values else ""


def _of_grid(plan: Plan, folder: Path) -> list[TestedRow]:
    members = plan.protocol.grid_members
    if not members:
        return []
    history = read_history(folder / GRID)
    by_name = {name_of(trial): trial for trial in history.trials}
    wanted = plan.protocol.published.rows if plan.protocol.published is not None else {}
    rows = []
    for baseline in plan.protocol.methods:
        own = {name: values for name, values in baseline.members() if name in members}
        for name, values in own.items():
            if name in wanted:
                rows.append(TestedRow(name, "grid", {"method": baseline.method, "parameters": dict(values)}))
        trials = [by_name[name] for name in own if name in by_name and by_name[name].status == "ok"]
        best = _best(trials, history.objectives)
        if best is not None:
            recipe = {"method": baseline.method, "parameters": dict(own[name_of(best)])}
            seconds = sum(sum(trial.seconds.values()) for trial in trials)
            name = f"{baseline.name}, tuned"
            rows.append(TestedRow(name, "tuned", recipe, GRID, best.candidate, len(own), seconds))
    return rows


def _best(trials: Sequence[Trial], objectives: Sequence[Objective]) -> Trial | None:
    """The best of a grid; of several objectives the knee of its front. Of equals the first."""
    archive = ParetoArchive(objectives)
    for trial in trials:
        archive.add(trial.candidate, trial.objectives)
    if not len(archive):
        return None
    return next(trial for trial in trials if trial.candidate == archive.knee())


def _of_search(entry: SearchEntry, folder: Path) -> list[TestedRow]:
    part = f"{SEARCH}{entry.name}"
    run = folder / part
    history = read_history(run)
    cost = len(history.trials), history.seconds
    rows = [TestedRow(entry.name, "search", {"recipe": str(best_recipe(run))}, part, history.winner, *cost)]
    for preference in entry.preferences:
        found = preferred_recipe(run, preference)
        recipe = {"recipe": str(found.file)}
        rows.append(TestedRow(f"{entry.name}, {preference}", "search", recipe, part, found.candidate, *cost))
    return rows
