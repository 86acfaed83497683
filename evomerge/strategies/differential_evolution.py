"""Differential evolution, without generations."""

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
from evomerge.strategies.capabilities import KINDS, check_range, require
from evomerge.strategies.coordinates import Coordinates
from evomerge.strategies.generations import gain_of
from evomerge.strategies.members import Member, members_of, members_state
from evomerge.strategies.saving import InFlight, check_settings, rng_state, settings_of, starts_of

Array = NDArray[np.float64]
Choices = NDArray[np.int64]

FRESH = -1
"""The number of a proposal that competes with no member: those of the first population."""

RENEWAL, LEAST_FACTOR, FACTOR_SPAN = 0.1, 0.1, 0.9
"""jDE: the probability that a trial draws its own factor, and the range that it draws from (Brest et al. 2006)."""


class DifferentialEvolution:
    """Differential evolution (Storn and Price 1997); implements `protocols.Strategy`.

    The first `popsize` proposals are the spec's start (and its seeds, if it has any) and random genomes; failures
    among them are replaced by more of these. From then on members take turns: a trial is the member's crossover
    (binomial) with ``a + factor (b - c)``, where `b` and `c` are other members drawn at random, and `a` is another
    one (``rand/1/bin``) or the best (``best/1/bin``). A trial that is told and is at least as good takes its member's
    place. With `adaptive`, every member carries a factor and a crossover probability of its own, which a trial
    inherits or, one time in ten, draws anew (jDE, Brest et al. 2006).

    Coordinates that leave the bounds are put half way between the member and the bound (as in JADE, Zhang and
    Sanderson 2009); whole numbers and grids are rounded. A categorical or boolean gene is `a`'s where `b` and `c`
    agree, and drawn anew with probability `factor` where they do not: the step of geometric differential evolution
    (Moraglio and Togelius 2009) in Hamming space.

    A trial that is no different from its member has one free gene drawn anew. While there are fewer than four members
    (a population of one, nothing but failures), random genomes are proposed.

    Evaluations that are not ``ok`` and scores that are not finite win nothing. Candidates that were not proposed and
    candidates told a second time are ignored; `inject` lets the former take the worst member's place if they are
    better. `ask` never waits: a member may have several trials in flight, told in any order.

    Args:
        spec: the genes, of any kind.
        objectives: one.
        seed: of all that is random here.
        popsize: members; Storn and Price advise 5 to 10 per gene, which few hundred evaluations do not allow.
        variant: ``rand/1/bin`` or ``best/1/bin``.
        factor: on differences; 0.5 is Storn and Price's first choice. With `adaptive`, that of the first members.
        crossover: the probability that a gene is the mutant's; 0.9 is their choice for quick convergence.
        adaptive: jDE.
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
        variant: Literal["rand/1/bin", "best/1/bin"] = "rand/1/bin",
        factor: float = 0.5,
        crossover: float = 0.9,
        adaptive: bool = False,
        spread: float | None = None,
        batch: int | None = None,
    ) -> None:
        require(type(self), "DE", spec, objectives, seed)
        check_range("popsize", popsize, 1, math.inf)
        check_range("factor", factor, 0, 2)
        check_range("crossover", crossover, 0, 1)
        check_range("spread", 0 if spread is None else spread, 0, 1)
        check_range("batch", 1 if batch is None else batch, 1, math.inf)
        if variant not in ("rand/1/bin", "best/1/bin"):
            raise ConfigError(f"strategy.variant is {variant!r}", "rand/1/bin or best/1/bin")
        self._spec, self._objective = spec, objectives[0]
        self._coordinates = Coordinates(spec)
        self._popsize, self._batch, self._spread = popsize, batch or popsize, spread
        self._best_first, self._adaptive = variant == "best/1/bin", adaptive
        self._first_settings = (factor, crossover)
        self._settings = settings_of(
            spec,
            objectives[:1],
            popsize=popsize,
            variant=variant,
            factor=factor,
            crossover=crossover,
            adaptive=adaptive,
            spread=spread,
        )
        self._rng = np.random.default_rng(seed)
        self._members: list[Member] = []
        self._own: list[tuple[float, float]] = []  # factor and crossover of every member
        self._trials: dict[int, tuple[int, float, float]] = {}  # of those in flight: member, factor, crossover
        self._flight = InFlight(self._coordinates)
        self._number = 0  # of the next trial
        self._turn = 0
        self._starts = starts_of(spec, self._coordinates)
        self._started = 0

    def ask(self, n: int | None = None) -> list[Proposal]:
        """`n` proposals, or a batch."""
        return [self._propose() for _ in range(self._batch if n is None else max(n, 0))]

    def tell(self, candidate: Candidate, evaluation: Evaluation) -> None:
        """Let a trial that is at least as good take its member's place.

        Raises:
            FitnessError: the evaluation is ok and lacks the objective.
        """
        row = self._flight.take(candidate.genome)
        if row is None:
            return
        point, choices, number = row
        index, *own = self._trials.pop(number, (FRESH, *self._first_settings))
        gain = gain_of(evaluation, self._objective)
        if not math.isnan(gain):
            self._compete(Member(point, choices, gain, candidate.id), (own[0], own[1]), index)

    def inject(self, candidate: Candidate, evaluation: Evaluation) -> None:
        """Let a candidate from elsewhere take the worst member's place if it is better."""
        gain = gain_of(evaluation, self._objective)
        if candidate.genome is not None and not math.isnan(gain):
            member = Member(*self._coordinates.point(candidate.genome), gain, candidate.id)
            self._compete(member, self._first_settings, FRESH)

    def state_dict(self) -> dict[str, Any]:
        """The members, what is in flight, whose turn it is, and the random generator's state."""
        trials = [self._trials.get(tag, (FRESH, *self._first_settings)) for tag in self._flight.tags()]
        return {
            "settings": dict(self._settings),
            "rng": rng_state(self._rng),
            "members": members_state(self._members, self._coordinates),
            "own": np.array(self._own, dtype=np.float64).reshape(-1, 2),
            "flight": self._flight.state(),
            "targets": np.array([trial[0] for trial in trials], dtype=np.int64),
            "factors": np.array([trial[1:] for trial in trials], dtype=np.float64).reshape(-1, 2),
            "number": self._number,
            "turn": self._turn,
            "started": self._started,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue exactly where `state` was taken.

        Raises:
            ConfigError: the state is of a DE with other settings or genes.
        """
        check_settings("DE", self._settings, state["settings"])
        self._rng.bit_generator.state = state["rng"]
        self._members = members_of(state["members"])
        self._own = [(float(factor), float(crossover)) for factor, crossover in state["own"]]
        self._flight.load(state["flight"])
        rows = zip(self._flight.tags(), state["targets"], state["factors"], strict=True)
        self._trials = {tag: (int(target), float(f), float(cr)) for tag, target, (f, cr) in rows if target != FRESH}
        self._number, self._turn, self._started = (int(state[key]) for key in ("number", "turn", "started"))

    def _propose(self) -> Proposal:
        """A genome to start from, a random one, or a trial."""
        self._number += 1
        if self._started < len(self._starts):
            self._started += 1
            return Proposal(self._flight.add(*self._starts[self._started - 1], self._number))
        filled = len(self._members) >= self._popsize
        if not filled:
            filled = len(self._members) + len(self._flight) - len(self._trials) >= self._popsize
        if filled and len(self._members) > 3:
            return self._trial()
        return Proposal(self._flight.add(*self._coordinates.sample(self._rng, self._spread), self._number))

    def _trial(self) -> Proposal:
        """Mutate and cross one member."""
        rng = self._rng
        index = self._turn % len(self._members)
        self._turn = index + 1
        target = self._members[index]
        others = [i for i in range(len(self._members)) if i != index]
        drawn = [self._members[others[i]] for i in rng.choice(len(others), size=3, replace=False)]
        if self._best_first:
            drawn[0] = max(self._members, key=lambda member: member.gain)
        a, b, c = drawn
        factor, crossover = self._own[index]
        if self._adaptive:
            u = rng.random(4)
            factor = LEAST_FACTOR + FACTOR_SPAN * u[1] if u[0] < RENEWAL else factor
            crossover = float(u[3]) if u[2] < RENEWAL else crossover
        point = a.point + factor * (b.point - c.point)
        point = np.where(point < 0, target.point / 2, np.where(point > 1, (target.point + 1) / 2, point))
        random_point, random_choices = self._coordinates.sample(rng)
        differ = (b.choices != c.choices) & (rng.random(len(a.choices)) < factor)
        choices = np.where(differ, random_choices, a.choices)
        free = len(point) + len(choices)
        crossed = rng.random(free) < crossover
        crossed[int(rng.integers(free))] = True  # one gene at least is the mutant's
        point = np.where(crossed[: len(point)], point, target.point)
        choices = np.where(crossed[len(point) :], choices, target.choices)
        if target.same_genes(point, choices):
            forced = np.arange(free) == rng.integers(free)
            point = np.where(forced[: len(point)], random_point, point)
            choices = np.where(forced[len(point) :], random_choices, choices)
        self._trials[self._number] = (index, float(factor), crossover)
        genome = self._flight.add(point, choices, self._number)
        return Proposal(genome, tuple(dict.fromkeys(member.id for member in (target, a, b, c))))

    def _compete(self, member: Member, own: tuple[float, float], index: int) -> None:
        """Put a scored member into the population, or in the place of the member at `index` if it is good enough."""
        if index == FRESH and len(self._members) < self._popsize:
            self._members.append(member)
            self._own.append(own)
            return
        if index == FRESH:  # more than were needed, as many were in flight at once: the worst competes
            index = min(range(len(self._members)), key=lambda i: self._members[i].gain)
            if member.gain == self._members[index].gain:
                return
        if member.gain >= self._members[index].gain:
            self._members[index], self._own[index] = member, own
