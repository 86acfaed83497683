"""The recipe of a run's Pareto front that suits a preference among its objectives best."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evomerge.config.resume_command import resume_command
from evomerge.errors import ConfigError, RecipeError
from evomerge.objectives import Objective
from evomerge.preferences import nearest_by, read_preference, written
from evomerge.run.folder import RunFolder
from evomerge.run.inside import LEDGER
from evomerge.run.ledger import read_ledger
from evomerge.utils.files import read_bounded
from evomerge.utils.safe_yaml import MAX_CHARACTERS, parse

KEY = "--preference"


@dataclass(frozen=True)
class Preferred:
    """A member of a front.

    Attributes:
        candidate: its number in the run.
        objectives: of it by name, on the items of the search.
        front: how many members there are.
        preference: as it was understood: ``maths=0.7,chat=0.3``.
        file: its recipe.
    """

    candidate: int
    objectives: Mapping[str, float]
    front: int
    preference: str
    file: Path

    def sentence(self) -> str:
        """Which was picked, and what it scores."""
        scores = ", ".join(f"{name} {value:.4f}" for name, value in self.objectives.items())
        of = f"of {self.front} on the front" if self.front > 1 else "alone on the front"
        return f"candidate {self.candidate}, {of}, is nearest by {self.preference}: {scores} on the items of the search"


def preferred_recipe(path: str | Path, text: str) -> Preferred:
    """The member of a run's front that is nearest to the front's best by a preference.

    Distances are Tchebycheff's (`evomerge.preferences.distances`), each objective in units of the front's own range.

    Args:
        path: a run folder.
        text: ``maths=0.7,chat=0.3``: weights of 0 or more, of any sum; objectives left out weigh nothing.

    Raises:
        RecipeError: no run, or one whose front cannot be read or has no recipes.
        ConfigError: a run of one objective, or a preference that is none.
    """
    run = RunFolder(Path(path))
    if not (run.path / LEDGER).is_file():
        raise RecipeError(f"{KEY} was given, and {path} is not a run folder", "a run, whose front it picks from")
    objectives, front = _front(run)
    names = [objective.name for objective in objectives]
    weights = read_preference(text, names, KEY)
    gains = np.array([[o.gain(values[o.name]) for o in objectives] for values in front.values()])
    candidate = list(front)[nearest_by(gains, weights)]
    file = run.pareto_recipes / f"{candidate}.yaml"  # not what the list says: it may be anybody's
    if not file.is_file():
        raise RecipeError(
            f"candidate {candidate} of the front of {path} has no recipe",
            "a run whose candidates are recipes, and whose folder best/pareto is as the search left it",
        )
    return Preferred(candidate, front[candidate], len(front), written(weights, names), file)


def _front(run: RunFolder) -> tuple[list[Objective], dict[int, dict[str, float]]]:
    """The objectives of a run, and those of every member of its front, by number."""
    if not run.pareto.is_file():
        _refuse_without_front(run)
    try:
        content = parse(read_bounded(run.pareto, MAX_CHARACTERS, follow=False).decode())
        objectives = [Objective(str(name), _direction(way)) for name, way in content["objectives"].items()]
        front = {
            int(entry["candidate"]): {o.name: _finite(entry["objectives"][o.name]) for o in objectives}
            for entry in content["front"]
        }
        if len(objectives) < 2 or not front:
            raise ValueError("no front")
    except (RecipeError, OSError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise RecipeError(f"{run.pareto} cannot be read", "the file that the search wrote") from error
    return objectives, front


def _refuse_without_front(run: RunFolder) -> None:
    names: list[str] = []
    for event in read_ledger(run):
        if event["event"] == "started":
            names = list(event.get("objectives") or ())
            break
    if len(names) == 1:
        raise ConfigError(
            f"{KEY} was given, and the run {run.path} has one objective ({names[0]})",
            "a run of several, whose front it picks from",
            f"leave {KEY} out: there is one best",
        )
    raise RecipeError(
        f"the run {run.path} has no list of its front, {run.pareto}",
        "a run with at least one scored candidate",
        f"`{resume_command(run.path)}` writes it again, from what is recorded",
    )


def _direction(way: Any) -> Any:
    if way not in ("maximize", "minimize"):
        raise ValueError(way)
    return way


def _finite(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(value)
    return float(value)
