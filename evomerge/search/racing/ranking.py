"""What strategies are told of a generation that was scored on different numbers of items."""

from __future__ import annotations

import math
from collections.abc import Mapping

from evomerge.candidate import Evaluation
from evomerge.objectives import Objective
from evomerge.search.racing.cheap import ordered_below


def ranked(
    evaluations: Mapping[int, Evaluation], objective: Objective, cheap: Objective | None = None
) -> dict[int, float]:
    """By candidate the value of an objective such that none who was scored on less is above one who went on.

    Those that fell on the cheap rung are below all others, in the order of its scores by its objective `cheap`.

    An estimate from few items is the more often too high the more there are of them: without this, those that lost
    their race would rank above the winners.
    """
    by_steps: dict[int, list[int]] = {}
    fallen = {n: e for n, e in evaluations.items() if cheap is not None and e.objectives and not e.race.get("items")}
    for number, evaluation in evaluations.items():
        if evaluation.objectives and number not in fallen:
            steps = sum(name.startswith("step/") for name in evaluation.race)
            by_steps.setdefault(steps, []).append(number)
    found: dict[int, float] = {}
    ceiling = math.inf
    for steps in sorted(by_steps, reverse=True):
        gains = {n: objective.gain(evaluations[n].objectives[objective.name]) for n in by_steps[steps]}
        for number, gain in gains.items():
            found[number] = objective.gain(min(gain, ceiling))
        ceiling = min(ceiling, *gains.values())
    return found if cheap is None else found | ordered_below(fallen, ceiling, cheap, objective)
