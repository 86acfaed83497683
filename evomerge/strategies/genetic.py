"""A steady-state genetic algorithm with the standard operators."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from evomerge.candidate import Candidate, Evaluation
from evomerge.errors import ConfigError
from evomerge.genome import GenomeSpec
from evomerge.protocols import Objective, Proposal
from evomerge.strategies import operators
from evomerge.strategies.capabilities import KINDS, check_range, require
from evomerge.strategies.coordinates import Coordinates
from evomerge.strategies.generations import gain_of
from evomerge.strategies.members import Member, members_of, members_state
from evomerge.strategies.saving import InFlight, check_settings, rng_state, settings_of, starts_of

BORN, FIRST = 0, 1
"""What is in flight: children, and random genomes of the first population."""


class GeneticAlgorithm:
    """A genetic algorithm without generations; implements `protocols.Strategy`.

    The first `popsize` proposals are the spec's start (and its seeds, if it has any) and random genomes; failures
    among them are replaced by more of these. From then on every proposal is a child of two parents, each the best of
    a tournament: numbers are
    crossed by simulated binary crossover (SBX) and mutated polynomially (Deb and Agrawal 1995; Deb and Goyal 1996),
    categorical and boolean genes are taken from either parent and drawn anew, whole numbers and grids are rounded. A
    child that equals a member of the population is mutated until it does not.

    Every child that is told joins the population, and one member leaves: the worst (GENITOR, Whitley 1989: the best
    so far always stays), or the oldest but for the `elites` best (Real et al. 2019, arXiv 1802.01548).
    Evaluations that are not ``ok`` and scores that are not finite never join. Candidates that were not proposed and
    candidates told a second time are ignored; `inject` takes the former in.

    `ask` never waits: how many are in flight, and in which order they are told, is free.

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
            range; uniform within bounds for ``None``.
        batch: how many ``ask(None)`` proposes; `popsize` for ``None``.

    Raises:
        ConfigError: no free gene, several objectives, or arguments out of range.
    """

    asynchronous: ClassVar[bool] = True
    multi_objective: ClassVar[bool] = False
    kinds: ClassVar[frozenset[str]] = KINDS

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
        spread: float | None = None,
        batch: int | None = None,
    ) -> None:
        require(type(self), "GA", spec, objectives, seed)
        check_range("popsize", popsize, 1, math.inf)
        check_range("tournament", tournament, 1, math.inf)
        check_range("crossover", crossover, 0, 1)
        check_range("crossover_eta", crossover_eta, 0, 1000)
        check_range("mutation", 0 if mutation is None else mutation, 0, 1)
        check_range("mutation_eta", mutation_eta, 0, 1000)
        check_range("elites", elites, 0, popsize - 1 if replace == "oldest" else math.inf)
        check_range("spread", 0 if spread is None else spread, 0, 1)
        check_range("batch", 1 if batch is None else batch, 1, math.inf)
        if replace not in ("worst", "oldest"):
            raise ConfigError(f"strategy.replace is {replace!r}", "worst or oldest")
        self._spec, self._objective = spec, objectives[0]
        self._coordinates = Coordinates(spec)
        self._counts = np.array(self._coordinates.counts, dtype=np.int64)
        self._popsize, self._tournament, self._batch = popsize, tournament, batch or popsize
        self._crossover, self._crossover_eta = crossover, crossover_eta
        self._mutation = 1 / len(self._coordinates.names) if mutation is None else mutation
        self._mutation_eta = mutation_eta
        self._replace, self._elites, self._spread = replace, elites, spread
        self._settings = settings_of(
            spec,
            objectives[:1],
            popsize=popsize,
            tournament=tournament,
            crossover=crossover,
            crossover_eta=crossover_eta,
            mutation=self._mutation,
            mutation_eta=mutation_eta,
            replace=replace,
            elites=elites,
            spread=spread,
        )
        self._rng = np.random.default_rng(seed)
        self._members: list[Member] = []  # oldest first
        self._flight = InFlight(self._coordinates)
        self._starts = starts_of(spec, self._coordinates)
        self._started = 0  # how many of these were proposed

    def ask(self, n: int | None = None) -> list[Proposal]:
        """`n` proposals, or a batch."""
        return [self._propose() for _ in range(self._batch if n is None else max(n, 0))]

    def tell(self, candidate: Candidate, evaluation: Evaluation) -> None:
        """Let a child that was scored into the population.

        Raises:
            FitnessError: the evaluation is ok and lacks the objective.
        """
        row = self._flight.take(candidate.genome)
        if row is not None:
            self._join(row[0], row[1], gain_of(evaluation, self._objective), candidate.id)

    def inject(self, candidate: Candidate, evaluation: Evaluation) -> None:
        """Let a candidate from elsewhere into the population, as if it had been a child."""
        if candidate.genome is not None:
            point, choices = self._coordinates.point(candidate.genome)
            self._join(point, choices, gain_of(evaluation, self._objective), candidate.id)

    def state_dict(self) -> dict[str, Any]:
        """The population, what is in flight, and the random generator's state."""
        return {
            "settings": dict(self._settings),
            "rng": rng_state(self._rng),
            "members": members_state(self._members, self._coordinates),
            "flight": self._flight.state(),
            "started": self._started,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue exactly where `state` was taken.

        Raises:
            ConfigError: the state is of a GA with other settings or genes.
        """
        check_settings("GA", self._settings, state["settings"])
        self._rng.bit_generator.state = state["rng"]
        self._members = members_of(state["members"])
        self._flight.load(state["flight"])
        self._started = int(state["started"])

    def _propose(self) -> Proposal:
        """A genome to start from, a random one, or a child."""
        if self._started < len(self._starts):
            self._started += 1
            return Proposal(self._flight.add(*self._starts[self._started - 1], FIRST))
        filled = len(self._members) >= self._popsize
        if not filled:
            filled = len(self._members) + self._flight.tags().count(FIRST) >= self._popsize
        if filled and self._members:
            return self._child()
        return Proposal(self._flight.add(*self._coordinates.sample(self._rng, self._spread), FIRST))

    def _child(self) -> Proposal:
        """Select, cross, mutate."""
        rng, gains = self._rng, np.array([member.gain for member in self._members])
        a = self._members[operators.tournament(gains, self._tournament, rng)]
        b = self._members[operators.tournament(gains, self._tournament, rng)]
        point, choices = a.point, a.choices
        parents: tuple[int, ...] = (a.id,)
        if b is not a and rng.random() < self._crossover:
            point = operators.sbx(a.point, b.point, self._crossover_eta, rng)
            choices = operators.uniform(a.choices, b.choices, rng)
            parents = (a.id, b.id)
        point, choices = self._mutated(point, choices, self._mutation)
        if any(member.same_genes(point, choices) for member in self._members):
            point, choices = self._mutated(point, choices, None)
        return Proposal(self._flight.add(point, choices, BORN), parents)

    def _mutated(
        self, point: NDArray[np.float64], choices: NDArray[np.int64], rate: float | None
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """With every gene mutated by chance; exactly one gene for ``None``."""
        rng, numbers = self._rng, len(point)
        chosen = rng.random(numbers + len(choices)) < (0.0 if rate is None else rate)
        if rate is None:
            chosen[int(rng.integers(len(chosen)))] = True
        point = operators.polynomial(point, chosen[:numbers], self._mutation_eta, self._coordinates.steps, rng)
        return point, operators.reset(choices, chosen[numbers:], self._counts, rng)

    def _join(self, point: NDArray[np.float64], choices: NDArray[np.int64], gain: float, identity: int) -> None:
        """Add a member and take one out when there are too many."""
        if math.isnan(gain):
            return
        self._members.append(Member(point, choices, gain, identity))
        if len(self._members) > self._popsize:
            gains = np.array([member.gain for member in self._members])
            if self._replace == "worst":
                leaves = int(np.argmin(gains))  # of equals the oldest, so that a plateau is wandered over
            else:
                elite = set(np.argsort(-gains, kind="stable")[: self._elites].tolist())
                leaves = next(index for index in range(len(gains)) if index not in elite)
            del self._members[leaves]
