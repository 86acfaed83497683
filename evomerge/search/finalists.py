"""The candidates that are scored on all items in the end, and the winner among them.

A search scores so many candidates that the best of them is partly the luckiest, the more so where they were scored on
few items. Scoring some of the best once more, on items that did not choose them, takes that luck away.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evomerge.candidate import Candidate, Evaluation
from evomerge.errors import InfeasibleError
from evomerge.genomes.genome import Genome
from evomerge.objectives import Objective
from evomerge.protocols import SearchSpace, Strategy

SPARE = 8
"""So many times as many candidates as there are finalists are estimated again in the end."""


@dataclass(frozen=True)
class Leader:
    """One of the best candidates.

    Attributes:
        candidate: it.
        finished: whether it went on to the end of its race.
        complete: whether it was scored on all items.
        gain: the first objective that it was told with, larger is better.
    """

    candidate: Candidate
    finished: bool
    complete: bool
    gain: float


class Leaders:
    """The best candidates so far by the first objective; those that went on to the end of their race come first.

    Args:
        objective: the first one.
        most: how many are kept.
        rescores: whether the search's scores on all items are not yet what finalists are compared by.
        estimated: whether candidates are told with estimates: then `SPARE` times as many are kept until `narrow`.

    Attributes:
        apart: whether they are scored on items of their own in the end, which the search has none of.
    """

    def __init__(self, objective: Objective, most: int, rescores: bool = False, estimated: bool = False) -> None:
        self._objective, self._most, self._rescores = objective, most, rescores
        self._kept = most * (SPARE if estimated else 1)
        self.apart = False
        self._found: list[Leader] = []
        self._models: set[object] = set()

    def see(self, candidate: Candidate, evaluation: Evaluation) -> None:
        """Take in an evaluation; a model that is known already, and those not scored on any item, are ignored."""
        value = evaluation.objectives.get(self._objective.name)
        if value is None or evaluation.status not in ("ok", "pruned") or evaluation.race.get("items") == 0:
            return
        complete = not self._rescores and evaluation.race.get("items") == evaluation.race.get("of")
        self.add(Leader(candidate, evaluation.ok, complete, self._objective.gain(value)))

    def add(self, leader: Leader) -> None:
        """Keep a candidate where it is among the best."""
        if not self._most or model_of(leader.candidate) in self._models:
            return
        self._found.append(leader)
        self._found.sort(key=lambda each: (not each.finished, -each.gain, each.candidate.id))
        del self._found[self._kept :]
        self._models = {model_of(each.candidate) for each in self._found}

    def narrow(self, value: Callable[[int], float | None]) -> None:
        """Keep as many as are meant: the best by what is known now of those that were not scored on all items.

        Each was told with an estimate of its time, of which the first are the worst, so that the luckiest of the early
        candidates would be before better ones of later.

        Args:
            value: a candidate's first objective by its id; ``None`` where nothing new is known.
        """

        def gain(leader: Leader) -> float:
            found = None if leader.complete else value(leader.candidate.id)
            return leader.gain if found is None else self._objective.gain(found)

        self._found.sort(key=lambda each: (not each.finished, -gain(each), each.candidate.id))
        del self._found[self._most :]
        self._models = {model_of(each.candidate) for each in self._found}

    @property
    def candidates(self) -> list[Candidate]:
        """The best first."""
        return [each.candidate for each in self._found]

    @property
    def models(self) -> set[object]:
        """What tells their models apart (`model_of`)."""
        return set(self._models)

    @property
    def known(self) -> dict[int, tuple[Candidate, Evaluation]]:
        """Those that were scored on all items in the search, by id: scoring them again would say nothing new."""
        found = {}
        for each in self._found:
            if each.complete and not self.apart:
                objectives = {self._objective.name: self._objective.gain(each.gain)}
                number = each.candidate.id
                found[number] = each.candidate, Evaluation(number, "ok", "validation", objectives=objectives)
        return found

    def compared(self, scored: Sequence[tuple[Candidate, Evaluation]]) -> dict[str, Any]:
        """Fields of a ``finalists`` event: what the candidates had in the search, and what they have on all items."""
        told = {each.candidate.id: self._objective.gain(each.gain) for each in self._found}
        return {
            **({"on": "validation"} if self.apart else {}),
            "candidates": [candidate.id for candidate, _ in scored],
            "search": [told.get(candidate.id) for candidate, _ in scored],
            "validation": [evaluation.objectives.get(self._objective.name) for _, evaluation in scored],
        }

    def state(self) -> list[list[Any]]:
        """As JSON values, candidates by their ids."""
        return [[each.candidate.id, each.finished, each.complete, each.gain] for each in self._found]

    def load(self, state: Sequence[Sequence[Any]], candidates: Mapping[int, Candidate]) -> None:
        """Go on from `state`."""
        self._found, self._models = [], set()
        for number, finished, complete, gain in state:
            self.add(Leader(candidates[int(number)], bool(finished), bool(complete), float(gain)))


def model_of(candidate: Candidate) -> object:
    """What tells a candidate's model from others: its recipe's hash, or its genome where genomes are the models."""
    return candidate.recipe.hash if candidate.recipe is not None else candidate.genome


def best_of(
    scored: Sequence[tuple[Candidate, Evaluation]], objective: Objective
) -> tuple[Candidate, Evaluation] | None:
    """The best of those that could be scored, the earliest among equals."""
    found = [(c, e) for c, e in scored if e.ok and objective.name in e.objectives]
    return max(found, key=lambda pair: (objective.gain(pair[1].objectives[objective.name]), -pair[0].id), default=None)


def favourite(space: SearchSpace, strategy: Strategy, new_id: Callable[[], int], known: set[object]) -> list[Candidate]:
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
    if model_of(Candidate(0, recipe, genome)) in known:
        return []
    return [Candidate(new_id(), recipe, genome)]
