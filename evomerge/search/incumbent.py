"""What a search has found so far: the best candidate, and with several objectives the Pareto front."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evomerge.candidate import Candidate, Evaluation
from evomerge.errors import ConfigError, nearest
from evomerge.objectives import SCALARISATIONS, Objective, ParetoArchive, Scalarisation

KNEE = "knee"


def check_choice(best: str | None, objectives: Sequence[Objective], weights: Mapping[str, float]) -> str:
    """The rule that chooses the winner, checked; the first objective for ``None``.

    Raises:
        ConfigError: the rule, or a weight's objective, is unknown.
    """
    names = [objective.name for objective in objectives]
    chosen = best or names[0]
    if chosen not in (*names, KNEE, *SCALARISATIONS):
        raise ConfigError(f"search.best is {chosen!r}", nearest(chosen, [*names, KNEE, *SCALARISATIONS]))
    if chosen in SCALARISATIONS or weights:
        Scalarisation.of(objectives, chosen if chosen in SCALARISATIONS else SCALARISATIONS[0], weights, [])
    return chosen


class Incumbent:
    """Keeps the best candidate; with several objectives, the front of those that no other dominates.

    Args:
        objectives: of the fitness.
        best: which one of the front is the winner: best in the objective of this name (``None``: the first), ``knee``
            (the nearest to the ideal in the front's own ranges), ``weighted`` or ``tchebycheff`` (`scalarise`). With
            one objective there is no choice.
        weights: of the objectives, for the last two.

    Attributes:
        best: the winner so far.
        front: candidates of the front by id; with one objective the winner alone.
    """

    def __init__(
        self, objectives: Sequence[Objective], best: str | None = None, weights: Mapping[str, float] | None = None
    ) -> None:
        self.objectives = tuple(objectives)
        self.best: Candidate | None = None
        self.values: dict[int, Mapping[str, float]] = {}
        self.front: dict[int, Candidate] = {}
        self._rule = check_choice(best, objectives, weights or {})
        self._weights = dict(weights or {})
        self._archive = ParetoArchive(objectives)
        self._baselines: list[Mapping[str, float]] = []

    @property
    def number(self) -> int | None:
        """The winner's id; ``None`` before there is one."""
        return None if self.best is None else self.best.id

    @property
    def value(self) -> float:
        """The first objective of the winner; NaN before there is one."""
        if self.best is None:
            return float("nan")
        return self.values[self.best.id][self.objectives[0].name]

    def baseline(self, evaluation: Evaluation) -> None:
        """Learn the score of one of the pool's own models: baselines give the scale and the reference point."""
        self._baselines.append(evaluation.objectives)

    def see(self, candidate: Candidate, evaluation: Evaluation) -> dict[str, Any] | None:
        """Take in an evaluation; returns the fields of an ``improved`` event when the best or the front changed."""
        if not evaluation.ok:
            return None
        if any(objective.name not in evaluation.objectives for objective in self.objectives):
            return None
        return (
            self._see_one(candidate, evaluation) if len(self.objectives) == 1 else self._see_many(candidate, evaluation)
        )

    def settle(self, candidate: Candidate, evaluation: Evaluation) -> None:
        """Let a candidate be the winner, whatever others had."""
        self.best, self.front = candidate, {candidate.id: candidate}
        self.values = {candidate.id: evaluation.objectives}

    def state(self) -> dict[str, Any]:
        """The winner and the front by id, with their objectives, as JSON values."""
        return {
            "best": self.best.id if self.best is not None else None,
            "front": [[number, dict(values)] for number, values in self.values.items()],
        }

    def load(
        self, state: Mapping[str, Any], candidates: Mapping[int, Candidate], baselines: Sequence[Mapping[str, float]]
    ) -> None:
        """Go on from `state`; the candidates that it names, and the baselines' objectives, are given."""
        self.values = {int(number): {str(n): float(v) for n, v in values.items()} for number, values in state["front"]}
        self.front = {number: candidates[number] for number in self.values}
        self.best = None if state["best"] is None else candidates[int(state["best"])]
        self._archive, self._baselines = ParetoArchive(self.objectives), list(baselines)
        for number, values in self.values.items() if len(self.objectives) > 1 else ():
            self._archive.add(number, values)

    def _see_one(self, candidate: Candidate, evaluation: Evaluation) -> dict[str, Any] | None:
        objective = self.objectives[0]
        value = evaluation.objectives[objective.name]
        if self.best is not None and not objective.gain(value) > objective.gain(self.value):
            return None
        self.best, self.front = candidate, {candidate.id: candidate}
        self.values = {candidate.id: evaluation.objectives}
        return self._event(candidate)

    def _see_many(self, candidate: Candidate, evaluation: Evaluation) -> dict[str, Any] | None:
        if not self._archive.add(candidate.id, evaluation.objectives):
            return None
        before = set(self.front)
        self.front[candidate.id] = candidate
        self.front = {i: self.front[i] for i in self._archive}
        self.values = dict(self._archive.values())
        self.best = self.front[self._choose()]
        fields = self._event(self.best)
        fields |= {"entered": candidate.id, "left": sorted(before - set(self.front)), "front": len(self.front)}
        reference = self.reference
        if reference is not None:
            fields["hypervolume"] = self._archive.hypervolume(reference)
        return fields

    @property
    def reference(self) -> dict[str, float] | None:
        """The point above which the hypervolume is taken: the worst baseline in every objective."""
        if not self._baselines:
            return None
        return {
            o.name: min((scores[o.name] for scores in self._baselines), key=o.gain)
            for o in self.objectives
            if all(o.name in scores for scores in self._baselines)
        }

    def _choose(self) -> int:
        if self._rule == KNEE:
            return self._archive.knee()
        if self._rule not in SCALARISATIONS:
            return self._archive.extreme(self._rule)
        scalarise = Scalarisation.of(self.objectives, self._rule, self._weights, self._baselines)
        return max(self.values, key=lambda i: (scalarise(self.values[i]), -i))

    def _event(self, best: Candidate) -> dict[str, Any]:
        made = best.recipe.hash if best.recipe is not None else None
        return {"candidate": best.id, "objective": self.value, "recipe_hash": made}
