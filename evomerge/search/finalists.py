"""The candidates that are scored on all items in the end, and the winner among them.

A search scores so many candidates that the best of them is partly the luckiest, the more so where they were scored on
few items. Scoring some of the best once more, on items that did not choose them, takes that luck away.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from evomerge.candidate import Candidate, Evaluation
from evomerge.errors import InfeasibleError
from evomerge.genomes.genome import Genome
from evomerge.objectives import Objective
from evomerge.protocols import SearchSpace, Strategy


class Leaders:
    """The best candidates so far by the first objective; those that went on to the end of their race come first.

    Args:
        objective: the first one.
        most: how many are kept.
    """

    def __init__(self, objective: Objective, most: int) -> None:
        self._objective, self._most = objective, most
        self._found: list[tuple[float, float, Candidate]] = []  # whether not pruned, and the gain
        self._recipes: set[str] = set()

    def see(self, candidate: Candidate, evaluation: Evaluation) -> None:
        """Take in an evaluation; candidates of a recipe that is known, and those without a value, are ignored."""
        value = evaluation.objectives.get(self._objective.name)
        if value is None or candidate.recipe is None or evaluation.status not in ("ok", "pruned"):
            return
        self.add(candidate, float(evaluation.ok), self._objective.gain(value))

    def add(self, candidate: Candidate, whole: float, gain: float) -> None:
        """Keep a candidate where it is among the best."""
        recipe = candidate.recipe.hash if candidate.recipe is not None else ""
        if not self._most or recipe in self._recipes:
            return
        self._found.append((whole, gain, candidate))
        self._found.sort(key=lambda entry: (-entry[0], -entry[1], entry[2].id))
        del self._found[self._most :]
        self._recipes = {c.recipe.hash for _, _, c in self._found if c.recipe is not None}

    @property
    def candidates(self) -> list[Candidate]:
        """The best first."""
        return [candidate for _, _, candidate in self._found]

    def compared(self, scored: Sequence[tuple[Candidate, Evaluation]]) -> dict[str, Any]:
        """Fields of a ``finalists`` event: what the candidates had in the search, and what they have on all items."""
        told = {candidate.id: self._objective.gain(gain) for _, gain, candidate in self._found}
        return {
            "candidates": [candidate.id for candidate, _ in scored],
            "search": [told.get(candidate.id) for candidate, _ in scored],
            "validation": [evaluation.objectives.get(self._objective.name) for _, evaluation in scored],
        }

    def state(self) -> list[list[Any]]:
        """As JSON values, candidates by their ids."""
        return [[candidate.id, whole, gain] for whole, gain, candidate in self._found]

    def load(self, state: Sequence[Sequence[Any]], candidates: Mapping[int, Candidate]) -> None:
        """Go on from `state`."""
        self._found, self._recipes = [], set()
        for number, whole, gain in state:
            self.add(candidates[int(number)], float(whole), float(gain))


def best_of(
    scored: Sequence[tuple[Candidate, Evaluation]], objective: Objective
) -> tuple[Candidate, Evaluation] | None:
    """The best of those that could be scored, the earliest among equals."""
    found = [(c, e) for c, e in scored if e.ok and objective.name in e.objectives]
    return max(found, key=lambda pair: (objective.gain(pair[1].objectives[objective.name]), -pair[0].id), default=None)


def favourite(space: SearchSpace, strategy: Strategy, new_id: Callable[[], int], known: set[str]) -> list[Candidate]:
    """The model that a strategy would bet on, a new candidate; none where it has none, or where that is known.

    Of a distribution its mean: each candidate is the mean and noise, and from noisy scores the mean knows the most.
    """
    ask: Callable[[], Genome | None] = getattr(strategy, "favourite", lambda: None)
    genome = ask()
    if genome is None:
        return []
    try:
        recipe = space.decode(genome)
    except InfeasibleError:
        return []
    return [] if recipe.hash in known else [Candidate(new_id(), recipe, genome)]
