"""Differential evolution, without generations."""

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
from evomerge.strategies.bases.steady_state import FIRST, Array, Choices, SteadyState
from evomerge.strategies.variation.coordinates import Spread

NOBODY = -1
"""The member that a candidate competes with which is not a trial."""

RENEWAL, LEAST_FACTOR, FACTOR_SPAN = 0.1, 0.1, 0.9
"""jDE: the probability that a trial draws its own factor, and the range that it draws from (Brest et al. 2006)."""


class DifferentialEvolution(SteadyState):
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

    Evaluations that are not ``ok`` and scores that are not finite win nothing. A candidate from elsewhere takes the
    worst member's place if it is better. A member may have several trials in flight, told in any order.

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
            range; uniform within bounds for ``None``; ``auto`` as in `SteadyState`.
        batch: how many ``ask(None)`` proposes; `popsize` for ``None``.

    Raises:
        ConfigError: no free gene, several objectives, or arguments out of range.
    """

    title: ClassVar[str] = "DE"

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
        spread: Spread = None,
        batch: int | None = None,
    ) -> None:
        check_range("popsize", popsize, 1, math.inf)
        check_range("factor", factor, 0, 2)
        check_range("crossover", crossover, 0, 1)
        if variant not in ("rand/1/bin", "best/1/bin"):
            raise ConfigError(f"strategy.variant is {variant!r}", "rand/1/bin or best/1/bin")
        super().__init__(spec, objectives, seed=seed, spread=spread, batch=popsize if batch is None else batch)
        self._popsize, self._variant, self._adaptive = popsize, variant, adaptive
        self._first_settings = (factor, crossover)
        self._members: list[Member] = []
        self._own: list[tuple[float, float]] = []  # factor and crossover of every member
        self._trials: dict[int | None, tuple[int, float, float]] = {}  # in flight: member, factor, crossover
        self._number = FIRST  # of the last trial
        self._turn = 0

    def to_beat(self, candidate: Candidate) -> int | None:
        """The member whose place a trial would take, which is the first of its parents."""
        return candidate.parents[0] if candidate.parents else None

    def _settings(self) -> dict[str, Any]:
        factor, crossover = self._first_settings
        return {
            "popsize": self._popsize,
            "variant": self._variant,
            "factor": factor,
            "crossover": crossover,
            "adaptive": self._adaptive,
        }

    def _begun(self) -> bool:
        count = len(self._members)
        return count > 3 and (count >= self._popsize or count + self._flight.tags().count(FIRST) >= self._popsize)

    def _held(self) -> dict[str, Any]:
        trials = [self._trials.get(tag, (NOBODY, *self._first_settings)) for tag in self._flight.tags()]
        return {
            "members": members_state(self._members, self._coordinates),
            "own": np.array(self._own, dtype=np.float64).reshape(-1, 2),
            "targets": np.array([trial[0] for trial in trials], dtype=np.int64),
            "factors": np.array([trial[1:] for trial in trials], dtype=np.float64).reshape(-1, 2),
            "number": self._number,
            "turn": self._turn,
        }

    def _hold(self, state: Mapping[str, Any]) -> None:
        self._members = members_of(state["members"])
        self._own = [(float(factor), float(crossover)) for factor, crossover in state["own"]]
        rows = zip(self._flight.tags(), state["targets"], state["factors"], strict=True)
        self._trials = {tag: (int(target), float(f), float(cr)) for tag, target, (f, cr) in rows if tag != FIRST}
        self._number, self._turn = int(state["number"]), int(state["turn"])

    def _varied(self) -> tuple[Array, Choices, int, tuple[int, ...]]:
        """Mutate and cross one member."""
        rng = self._rng
        index = self._turn % len(self._members)
        self._turn = index + 1
        target = self._members[index]
        others = [i for i in range(len(self._members)) if i != index]
        drawn = [self._members[others[i]] for i in rng.choice(len(others), size=3, replace=False)]
        if self._variant == "best/1/bin":
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
        self._number += 1
        self._trials[self._number] = (index, float(factor), crossover)
        return point, choices, self._number, tuple(dict.fromkeys(member.id for member in (target, a, b, c)))

    def _learn(self, point: Array, choices: Choices, tag: int | None, candidate: Candidate, told: Evaluation) -> None:
        """Put a member into the population, or in the place of the one that it competes with if it is good enough."""
        gain = gain_of(told, self._objective)
        index, *own = self._trials.pop(tag, (NOBODY, *self._first_settings))
        if not math.isnan(gain):
            self._compete(Member(point, choices, gain, candidate.id), (own[0], own[1]), index)

    def _compete(self, member: Member, own: tuple[float, float], index: int) -> None:
        if index == NOBODY and len(self._members) < self._popsize:
            self._members.append(member)
            self._own.append(own)
            return
        if index == NOBODY:  # more than were needed, as many were in flight at once: the worst competes
            index = min(range(len(self._members)), key=lambda i: self._members[i].gain)
            if member.gain == self._members[index].gain:
                return
        if member.gain >= self._members[index].gain:
            self._members[index], self._own[index] = member, own
