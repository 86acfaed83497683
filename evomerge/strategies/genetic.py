"""A steady-state genetic algorithm with the standard operators."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np

from evomerge.candidate import Candidate, Evaluation
from evomerge.errors import ConfigError
from evomerge.genomes.genome import GenomeSpec
from evomerge.objectives import Objective
from evomerge.strategies.bases.capabilities import check_range
from evomerge.strategies.bases.generations import gain_of
from evomerge.strategies.bases.members import Member, members_of, members_state
from evomerge.strategies.bases.steady_state import FIRST, VARIED, Array, Choices, SteadyState
from evomerge.strategies.variation import operators
from evomerge.strategies.variation.coordinates import Spread


class GeneticAlgorithm(SteadyState):
    """A genetic algorithm without generations; implements `protocols.Strategy`.

    The first `popsize` proposals are the spec's start (and its seeds, if it has any) and random genomes; failures
    among them are replaced by more of these. From then on every proposal is a child of two parents, each the best of
    a tournament: numbers are crossed by simulated binary crossover (SBX) and mutated polynomially (Deb and Agrawal
    1995; Deb and Goyal 1996), categorical and boolean genes are taken from either parent and drawn anew, whole numbers
    and grids are rounded. A child that equals a member of the population is mutated once more, in one gene.

    Every child that is told joins the population, and one member leaves: the worst (GENITOR, Whitley 1989: the best
    so far always stays), or the oldest but for the `elites` best (Real et al. 2019, arXiv 1802.01548).
    Evaluations that are not ``ok`` and scores that are not finite never join. A candidate from elsewhere joins as if
    it had been a child.

    Args:
        spec: the genes, of any kind.
        objectives: one.
        seed: of all that is random here.
        popsize: members of the population.
        tournament: how many compete to be a parent; 2 is the usual choice.
        crossover: the probability that a child has two parents; 0.9 as in NSGA-II (Deb et al. 2002), of which the
            two indices below are too.
        crossover_eta: distribution index of SBX.
        mutation: the probability that a gene is mutated; one over the number of free genes for ``None``.
        mutation_eta: distribution index of polynomial mutation.
        replace: which member leaves: ``worst`` or ``oldest``.
        elites: how many of the best never leave by age.
        spread: standard deviation of the first population's random numbers around the start, in units of a gene's
            range; uniform within bounds for ``None``; ``auto`` as in `SteadyState`.
        batch: how many ``ask(None)`` proposes; `popsize` for ``None``.

    Raises:
        ConfigError: no free gene, several objectives, or arguments out of range.
    """

    title: ClassVar[str] = "GA"

    def __init__(
        self,
        spec: GenomeSpec,
        objectives: Sequence[Objective],
        *,
        seed: int,
        popsize: int = 20,
        tournament: int = 2,
        crossover: float = 0.9,
        crossover_eta: float = 15.0,
        mutation: float | None = None,
        mutation_eta: float = 20.0,
        replace: Literal["worst", "oldest"] = "worst",
        elites: int = 1,
        spread: Spread = None,
        batch: int | None = None,
    ) -> None:
        check_range("popsize", popsize, 1, math.inf)
        check_range("tournament", tournament, 1, math.inf)
        check_range("crossover", crossover, 0, 1)
        check_range("crossover_eta", crossover_eta, 0, 1000)
        check_range("mutation", 0 if mutation is None else mutation, 0, 1)
        check_range("mutation_eta", mutation_eta, 0, 1000)
        check_range("elites", elites, 0, popsize - 1 if replace == "oldest" else math.inf)
        if replace not in ("worst", "oldest"):
            raise ConfigError(f"strategy.replace is {replace!r}", "worst or oldest")
        super().__init__(spec, objectives, seed=seed, spread=spread, batch=popsize if batch is None else batch)
        self._popsize, self._tournament = popsize, tournament
        self._crossover, self._crossover_eta = crossover, crossover_eta
        self._mutation = 1 / len(self._coordinates.names) if mutation is None else mutation
        self._mutation_eta = mutation_eta
        self._replace, self._elites = replace, elites
        self._members: list[Member] = []  # oldest first

    def to_beat(self, candidate: Candidate) -> int | None:
        """The worst member of a full population: who is worse would leave at once, or be chosen last."""
        if len(self._members) < self._popsize:
            return None
        return min(self._members, key=lambda member: member.gain).id

    def _settings(self) -> dict[str, Any]:
        return {
            "popsize": self._popsize,
            "tournament": self._tournament,
            "crossover": self._crossover,
            "crossover_eta": self._crossover_eta,
            "mutation": self._mutation,
            "mutation_eta": self._mutation_eta,
            "replace": self._replace,
            "elites": self._elites,
        }

    def _begun(self) -> bool:
        count = len(self._members)
        return count > 0 and (count >= self._popsize or count + self._flight.tags().count(FIRST) >= self._popsize)

    def _held(self) -> dict[str, Any]:
        return {"members": members_state(self._members, self._coordinates)}

    def _hold(self, state: Mapping[str, Any]) -> None:
        self._members = members_of(state["members"])

    def _varied(self) -> tuple[Array, Choices, int, tuple[int, ...]]:
        """Select, cross, mutate."""
        rng, gains = self._rng, np.array([member.gain for member in self._members])
        a = self._members[operators.tournament(gains, self._tournament, rng)]
        b = self._members[operators.tournament(gains, self._tournament, rng)]
        point, choices, parents = operators.crossed(a, b, self._crossover, self._crossover_eta, rng)
        point, choices = self._mutated(point, choices, self._mutation)
        if any(member.same_genes(point, choices) for member in self._members):
            point, choices = self._mutated(point, choices, None)
        return point, choices, VARIED, parents

    def _mutated(self, point: Array, choices: Choices, rate: float | None) -> tuple[Array, Choices]:
        """With every gene mutated by chance; exactly one gene for ``None``."""
        coordinates = self._coordinates
        return operators.mutated(point, choices, rate, self._mutation_eta, coordinates.steps, self._counts, self._rng)

    def _learn(self, point: Array, choices: Choices, tag: int | None, candidate: Candidate, told: Evaluation) -> None:
        """Add a member and take one out when there are too many."""
        gain = gain_of(told, self._objective)
        if math.isnan(gain):
            return
        self._members.append(Member(point, choices, gain, candidate.id))
        if len(self._members) > self._popsize:
            gains = np.array([member.gain for member in self._members])
            if self._replace == "worst":
                leaves = int(np.argmin(gains))  # of equals the oldest, so that a plateau is wandered over
            else:
                elite = set(np.argsort(-gains, kind="stable")[: self._elites].tolist())
                leaves = next(index for index in range(len(gains)) if index not in elite)
            del self._members[leaves]
