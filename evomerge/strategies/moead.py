"""MOEA/D: a member for every preference among the objectives, each of which learns from those with similar ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from evomerge.candidate import Candidate, Evaluation
from evomerge.errors import ConfigError, nearest
from evomerge.genomes.genome import GenomeSpec
from evomerge.objectives import Objective
from evomerge.preferences import MOST, distances, drawn, named_or_lattice, scale_of
from evomerge.strategies.bases.capabilities import check_range
from evomerge.strategies.bases.generations import gain_of
from evomerge.strategies.bases.saving import settings_of, stacked, unstacked
from evomerge.strategies.bases.steady_state import FIRST, Array, Choices, SteadyState
from evomerge.strategies.variation import operators
from evomerge.strategies.variation.coordinates import Spread

WEIGHTS = ("lattice", "dirichlet")

_LARGEST = 1e100  # of a score: differences and sums of larger ones are no numbers


@dataclass(frozen=True, eq=False)
class _Solution:
    """A scored candidate: its coordinates and choices, which never change, its gains by objective, and its number."""

    point: Array
    choices: Choices
    gains: Array
    id: int

    def same_genes(self, point: Array, choices: Choices) -> bool:
        return np.array_equal(self.point, point) and np.array_equal(self.choices, choices)


class Moead(SteadyState):
    """MOEA/D without generations; implements `protocols.Strategy`.

    Zhang and Li, "MOEA/D: A Multiobjective Evolutionary Algorithm Based on Decomposition" (IEEE Transactions on
    Evolutionary Computation 11, 2007), with what Li and Zhang (ibid. 13, 2009) added: parents from everywhere now and
    then, and a bound on how many members a child replaces. The upper level of HM3 is this, with weights drawn from
    Dirichlet(1).

    Every preference, weights w of the objectives that sum to 1, has one member: the candidate that is nearest to the
    ideal by it, ``max_k w_k d_k`` with ``d_k = (z_k - f_k) / (z_k - n_k)`` (`evomerge.preferences.distances`; its small
    augmentation tells points apart whose largest distance is the same). z is the best of each objective so far, n the
    worst among the members that no other dominates; both move as the search goes on.

    The first proposals, as many as there are preferences, are the spec's start (and its seeds, if it has any) and
    random genomes. The first score of all is the member of every preference. From then on a candidate takes the place
    of at most `replace` members: of those by whose preference it is at least as near, the ones that it is nearer by the
    most. (In the papers they are tried in random order, and first genomes are placed at random.) After the first
    proposals preferences take turns: a child of the preference's member and of another one among its `neighbours`
    (those with the nearest weights) is made by SBX and polynomial mutation, as in `GeneticAlgorithm`, and replaces none
    but these. With probability ``1 - near`` the whole population are the neighbours.

    Evaluations that are not ``ok`` and scores that are not finite never join. A candidate from elsewhere joins as if it
    had been among the first. With one objective all preferences are the same, and it is a genetic algorithm.

    Args:
        spec: the genes, of any kind.
        objectives: one or more.
        seed: of all that is random here.
        preferences: how many, or a list of weights by objective (``[{maths: 0.7, chat: 0.3}, ...]``, of any sum).
        weights: where a number of preferences is given: ``lattice``, the finest simplex lattice of at most so many
            points; ``dirichlet``, so many drawn uniformly.
        neighbours: how many preferences share solutions, each itself among them; a fifth of them and at least 3 for
            ``None``.
        near: the probability that parents and replaced members are neighbours only.
        replace: how many members a child replaces at most.
        crossover: the probability that a child has two parents.
        crossover_eta: distribution index of SBX; 5 rather than the usual 15 to 20, which suits tens of thousands of
            evaluations.
        mutation: the probability that a gene is mutated; one over the number of free genes for ``None``.
        mutation_eta: distribution index of polynomial mutation; likewise.
        spread: standard deviation of the first genomes' random numbers around the start, in units of a gene's range;
            uniform within bounds for ``None``; ``auto`` as in `SteadyState`.
        batch: how many ``ask(None)`` proposes; one for each preference for ``None``.

    Raises:
        ConfigError: no free gene, or arguments out of range.
    """

    title: ClassVar[str] = "MOEA/D"
    multi_objective: ClassVar[bool] = True

    def __init__(
        self,
        spec: GenomeSpec,
        objectives: Sequence[Objective],
        *,
        seed: int,
        preferences: int | list[dict[str, float]] = 12,
        weights: Literal["lattice", "dirichlet"] = "lattice",
        neighbours: int | None = None,
        near: float = 0.9,
        replace: int = 2,
        crossover: float = 0.9,
        crossover_eta: float = 5.0,
        mutation: float | None = None,
        mutation_eta: float = 5.0,
        spread: Spread = None,
        batch: int | None = None,
    ) -> None:
        check_range("neighbours", 2 if neighbours is None else neighbours, 2, math.inf)
        check_range("near", near, 0, 1)
        check_range("replace", replace, 1, math.inf)
        check_range("crossover", crossover, 0, 1)
        check_range("crossover_eta", crossover_eta, 0, 1000)
        check_range("mutation", 0 if mutation is None else mutation, 0, 1)
        check_range("mutation_eta", mutation_eta, 0, 1000)
        if weights not in WEIGHTS:
            raise ConfigError(f"strategy.weights is {weights!r}", nearest(str(weights), WEIGHTS))
        self._preferences = _preferences(preferences, weights, objectives, seed)
        count = len(self._preferences)
        super().__init__(spec, objectives, seed=seed, spread=spread, batch=count if batch is None else batch)
        self._objectives = tuple(objectives)
        self._share = min(count, max(3, math.ceil(count / 5)) if neighbours is None else neighbours)
        self._near, self._replace = near, replace
        self._crossover, self._crossover_eta = crossover, crossover_eta
        self._mutation = 1 / len(self._coordinates.names) if mutation is None else mutation
        self._mutation_eta = mutation_eta
        self._around = _neighbours(self._preferences, self._share)
        self._members: list[_Solution] = []  # of the preferences in order; none before the first score
        self._ideal = np.full(len(self._objectives), -np.inf)
        self._firsts = self._turn = 0

    @property
    def preferences(self) -> Array:
        """The weights of the objectives, of shape ``(preferences, objectives)``; every row sums to 1."""
        return self._preferences.copy()

    def _agreed(self) -> dict[str, Any]:
        return settings_of(self._spec, self._objectives, spread=self._spread, **self._settings())

    def _settings(self) -> dict[str, Any]:
        return {
            "preferences": [[float(weight) for weight in row] for row in self._preferences],
            "neighbours": self._share,
            "near": self._near,
            "replace": self._replace,
            "crossover": self._crossover,
            "crossover_eta": self._crossover_eta,
            "mutation": self._mutation,
            "mutation_eta": self._mutation_eta,
        }

    def _begun(self) -> bool:
        wanted = len(self._preferences)
        enough = self._firsts >= wanted or self._firsts + self._flight.tags().count(FIRST) >= wanted
        return bool(self._members) and enough

    def _held(self) -> dict[str, Any]:
        distinct = list({id(member): member for member in self._members}.values())
        number = {id(member): place for place, member in enumerate(distinct)}
        return {
            **stacked([(m.point, m.choices, m.id) for m in distinct], self._coordinates),
            "gains": np.array([m.gains for m in distinct], dtype=np.float64).reshape(-1, len(self._objectives)),
            "ids": np.array([m.id for m in distinct], dtype=np.int64),
            "members": np.array([number[id(member)] for member in self._members], dtype=np.int64),
            "ideal": self._ideal.copy(),
            "firsts": self._firsts,
            "turn": self._turn,
        }

    def _hold(self, state: Mapping[str, Any]) -> None:
        gains, ids = list(np.array(state["gains"], dtype=np.float64)), np.asarray(state["ids"]).tolist()
        distinct = [_Solution(*fields) for fields in zip(*unstacked(state), gains, ids, strict=True)]
        self._members = [distinct[place] for place in np.asarray(state["members"]).tolist()]
        self._ideal = np.array(state["ideal"], dtype=np.float64)
        self._firsts, self._turn = int(state["firsts"]), int(state["turn"])

    def _varied(self) -> tuple[Array, Choices, int, tuple[int, ...]]:
        """A child of a preference's member and of a neighbour that is another."""
        rng, turn = self._rng, self._turn
        self._turn = (turn + 1) % len(self._preferences)
        everywhere = bool(rng.random() >= self._near)
        pool = range(len(self._preferences)) if everywhere else self._around[turn].tolist()
        a = self._members[turn]
        others = [place for place in pool if not a.same_genes(self._members[place].point, self._members[place].choices)]
        b = self._members[others[int(rng.integers(len(others)))]] if others else a
        point, choices, parents = operators.crossed(a, b, self._crossover, self._crossover_eta, rng)
        point, choices = self._mutated(point, choices, self._mutation)
        if self._held_already(point, choices):
            point, choices = self._mutated(point, choices, None)
        return point, choices, FIRST + 1 + 2 * turn + everywhere, parents

    def _held_already(self, point: Array, choices: Choices) -> bool:
        """Whether a member is this genome; points may differ within a step of a grid."""
        genome = self._coordinates.genome(point, choices)
        return any(genome == self._coordinates.genome(m.point, m.choices) for m in dict.fromkeys(self._members))

    def _mutated(self, point: Array, choices: Choices, rate: float | None) -> tuple[Array, Choices]:
        """With every gene mutated by chance; exactly one gene for ``None``."""
        steps = self._coordinates.steps
        return operators.mutated(point, choices, rate, self._mutation_eta, steps, self._counts, self._rng)

    def _learn(self, point: Array, choices: Choices, tag: int | None, candidate: Candidate, told: Evaluation) -> None:
        """Let a candidate be the member of some preferences by which it is at least as near as theirs."""
        gains = np.array([gain_of(told, objective) for objective in self._objectives])
        if not (np.abs(gains) < _LARGEST).all():
            return
        self._ideal = np.maximum(self._ideal, gains)
        new = _Solution(point, choices, gains, candidate.id)
        elsewhere = tag is None or tag == FIRST
        self._firsts += elsewhere
        if not self._members:
            self._members = [new] * len(self._preferences)
            return
        held = np.array([member.gains for member in self._members])
        scale = scale_of(np.vstack([held, gains]), self._ideal)
        now = np.diagonal(distances(held, self._preferences, self._ideal, scale))
        nearer = now - distances(gains[None], self._preferences, self._ideal, scale)[0]
        turn, everywhere = divmod(0 if tag is None else tag - FIRST - 1, 2)
        pool = np.arange(len(self._members)) if elsewhere or everywhere else self._around[turn]
        pool = pool[nearer[pool] >= 0]
        places = pool[np.argsort(-nearer[pool], kind="stable")][: self._replace]
        for place in places.tolist():
            self._members[place] = new


def _preferences(wanted: object, weights: str, objectives: Sequence[Objective], seed: int) -> Array:
    """The weights that a configuration asks for."""
    names = [objective.name for objective in objectives]
    if weights == "dirichlet" and isinstance(wanted, int) and not isinstance(wanted, bool):
        check_range("preferences", wanted, 1, MOST)
        return drawn(len(names), wanted, max(seed, 0))
    return named_or_lattice(wanted, names, "strategy.preferences")


def _neighbours(preferences: Array, share: int) -> NDArray[np.int64]:
    """For every preference those with the nearest weights, itself first, of shape ``(preferences, share)``.

    Where all are the same, as with one objective, all are neighbours.
    """
    apart = np.linalg.norm(preferences[:, None] - preferences, axis=2)
    if not apart.any():
        return np.tile(np.arange(len(preferences)), (len(preferences), 1))
    np.fill_diagonal(apart, -1.0)  # of equal weights too
    return np.argsort(apart, axis=1, kind="stable")[:, :share]
