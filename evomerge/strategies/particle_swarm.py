"""Particle swarms: candidates that move towards the best places known, and away from the worst."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from evomerge.candidate import Candidate, Evaluation
from evomerge.errors import ConfigError, nearest
from evomerge.genomes.genome import GenomeSpec
from evomerge.objectives import Objective
from evomerge.protocols import Proposal
from evomerge.strategies.bases.capabilities import check_range
from evomerge.strategies.bases.generations import gain_of
from evomerge.strategies.bases.steady_state import FIRST, Array, Choices, SteadyState
from evomerge.strategies.variation.coordinates import Spread
from evomerge.strategies.variation.swarm import Draws, Forces, moved, velocity

NONE: Choices = np.empty(0, dtype=np.int64)


@dataclass(eq=False)
class Particle:
    """One particle.

    Attributes:
        at: where it is, coordinates within the unit cube; never changed in place, as all arrays here.
        own, gain, id: the best place where it was told, its score (larger is better) and its candidate.
        velocity: ``None`` until its first move.
        moves: how often it has moved.
        idle: how many of its scores in a row were no better than its best, since it last began anew.
    """

    at: Array
    own: Array
    gain: float
    id: int
    velocity: Array | None = None
    moves: int = 0
    idle: int = 0


class ParticleSwarm(SteadyState):
    """Particle swarm optimisation as Model Swarms has it (Feng et al., arXiv 2410.11163); `protocols.Strategy`.

    The first `popsize` proposals are the spec's start (and its seeds, if it has any) and random genomes; failures
    among them are replaced by more of these. A particle's first velocity is the way to where another one, drawn at
    random, begins. From then on particles take turns: ::

        v <- (r0 inertia v + r1 cognitive (p - x) + r2 social (g - x) - r3 repel (w - x)) / C
        x <- x + step v

    with p the best place where the particle was, g and w the best and the worst where any was, r drawn from 0 to 1 for
    every particle and step, and C the sum of the four products. The published swarm so mixes what its particles were at
    first, models all, and leaves their plane by rounding only; ``draws=gene`` leaves it. The step shrinks by `decay`
    with every iteration, to `least_step`. A particle that has not bettered its p for `restart` iterations goes back
    there, with no velocity, and is given as long again. With ``normalised=false repel=0`` it is the plain swarm of
    PSO-Merging (arXiv 2508.19839).

    Asked for a batch at a time, all particles move by the same g and w, as published; asked for one at a time, each
    moves by what is known by then. A particle that runs into a bound stops there, and loses its velocity in that gene.
    A move that rounding undoes has one gene drawn anew. Public code has one set of r for all particles and iterations,
    or shrinks the step once for each particle: here each is as the paper says.

    Evaluations that are not ``ok`` and scores that are not finite teach nothing, beyond that the particle found nothing
    better. A candidate from elsewhere is one more particle while the swarm begins, and later takes the place of the
    particle with the worst p, if it is better.

    Args:
        spec: the genes, numbers all.
        objectives: one.
        seed: of all that is random here.
        popsize: particles.
        inertia, cognitive, social, repel: see above; of the four only ratios count when normalised.
        normalised: whether the four are divided by C.
        draws: r is drawn for every ``step`` of a particle, as published, for every ``gene`` of it, or is 1 (``none``).
        step: the first step, in velocities.
        decay: factor on it with every iteration.
        least_step: what it shrinks to.
        restart: iterations after which a particle goes back; never for ``None``.
        patience: iterations (of all particles) without a new best of all after which nothing more is proposed, which
            ends the search; the budget alone ends it for ``None``.
        spread: standard deviation of the first particles around the start, in units of a gene's range; uniform within
            bounds for ``None``; ``auto`` as in `SteadyState`.
        batch: how many ``ask(None)`` proposes; `popsize` for ``None``.

    Raises:
        ConfigError: no free gene, one that is no number, several objectives, or arguments out of range.
    """

    title: ClassVar[str] = "PSO"
    kinds: ClassVar[frozenset[str]] = frozenset({"continuous", "integer"})

    def __init__(
        self,
        spec: GenomeSpec,
        objectives: Sequence[Objective],
        *,
        seed: int,
        popsize: int = 20,
        inertia: float = 0.2,
        cognitive: float = 0.3,
        social: float = 0.4,
        repel: float = 0.05,
        normalised: bool = True,
        draws: Draws = "step",
        step: float = 1.0,
        decay: float = 0.95,
        least_step: float = 0.1,
        restart: int | None = 5,
        patience: int | None = None,
        spread: Spread = None,
        batch: int | None = None,
    ) -> None:
        check_range("popsize", popsize, 2, math.inf)
        for name, value in (("inertia", inertia), ("cognitive", cognitive), ("social", social), ("repel", repel)):
            check_range(name, value, 0, 10)
        if not cognitive + social > 0:
            raise ConfigError("strategy.cognitive and strategy.social are 0", "one of them above 0")
        check_range("step", step, 0, 10)
        check_range("decay", decay, 0, 1)
        check_range("least_step", least_step, 0, step)
        if draws not in ("step", "gene", "none"):
            raise ConfigError(f"strategy.draws is {draws!r}", nearest(draws, ("step", "gene", "none")))
        if not step > 0:
            raise ConfigError("strategy.step is 0", "above 0")
        check_range("restart", 1 if restart is None else restart, 1, math.inf)
        check_range("patience", 1 if patience is None else patience, 1, math.inf)
        super().__init__(spec, objectives, seed=seed, spread=spread, batch=popsize if batch is None else batch)
        self._popsize, self._forces = popsize, Forces(inertia, cognitive, social, repel, normalised, draws)
        self._step, self._decay, self._least_step = step, decay, least_step
        self._restart, self._patience = restart, patience
        self._particles: list[Particle] = []
        self._best = self._worst = (math.nan, NONE.astype(np.float64), -1)  # gain, place, candidate
        self._turn = 0
        self._since_best = 0  # evaluations told since there was a new best of all

    def ask(self, n: int | None = None) -> list[Proposal]:
        """`n` proposals, or a batch; none once patience has run out."""
        if self._patience is not None and self._begun() and self._since_best >= self._patience * self._popsize:
            return []
        return super().ask(n)

    def to_beat(self, candidate: Candidate) -> int | None:
        """Whose place is the best of its particle's, which is the first of its parents."""
        return candidate.parents[0] if candidate.parents else None

    def _settings(self) -> dict[str, Any]:
        forces = self._forces
        return {
            "popsize": self._popsize,
            "forces": [forces.inertia, forces.cognitive, forces.social, forces.repel],
            "normalised": forces.normalised,
            "draws": forces.draws,
            "step": [self._step, self._decay, self._least_step],
            "restart": self._restart,
            "patience": self._patience,
        }

    def _begun(self) -> bool:
        count = len(self._particles)
        return count > 1 and (count >= self._popsize or count + self._flight.tags().count(FIRST) >= self._popsize)

    def _held(self) -> dict[str, Any]:
        particles, dimension = self._particles, len(self._coordinates.start)
        places = [[p.at, p.own, np.full(dimension, np.nan) if p.velocity is None else p.velocity] for p in particles]
        return {
            "places": np.array(places, dtype=np.float64).reshape(len(particles), 3, dimension),
            "gains": np.array([p.gain for p in particles], dtype=np.float64),
            "counts": np.array([(p.id, p.moves, p.idle) for p in particles], dtype=np.int64).reshape(-1, 3),
            "ends": [[gain, place.copy(), identity] for gain, place, identity in (self._best, self._worst)]
            if particles
            else [],
            "turn": self._turn,
            "since_best": self._since_best,
        }

    def _hold(self, state: Mapping[str, Any]) -> None:
        self._particles = []
        for (at, own, speed), gain, (identity, moves, idle) in zip(
            np.array(state["places"], dtype=np.float64), state["gains"], state["counts"], strict=True
        ):
            known = None if np.isnan(speed).any() else speed
            self._particles.append(Particle(at, own, float(gain), int(identity), known, int(moves), int(idle)))
        if state["ends"]:
            self._best, self._worst = ((float(g), np.array(x), int(i)) for g, x, i in state["ends"])
        self._turn, self._since_best = int(state["turn"]), int(state["since_best"])

    def _varied(self) -> tuple[Array, Choices, int, tuple[int, ...]]:
        """Move the particle whose turn it is."""
        self._set_off()
        index = self._turn % len(self._particles)
        self._turn = index + 1
        particle = self._particles[index]
        if self._restart is not None and particle.idle >= self._restart:
            particle.at, particle.velocity, particle.idle = particle.own, np.zeros_like(particle.at), 0
        assert particle.velocity is not None, "it has set off"
        places = particle.own, self._best[1], self._worst[1]
        wanted = velocity(particle.velocity, particle.at, *places, self._forces.drawn(self._rng, len(particle.at)))
        length = max(self._step * self._decay**particle.moves, self._least_step)
        at = moved(particle.at, length * wanted)
        if self._coordinates.genome(at, NONE) == self._coordinates.genome(particle.at, NONE):
            gene = int(self._rng.integers(len(at)))
            at = at.copy()
            at[gene] = self._rng.random()
        aim = particle.at + length * wanted
        particle.velocity = np.where((aim < 0) | (aim > 1), 0.0, wanted)
        particle.at, particle.moves = at, particle.moves + 1
        return at, NONE, FIRST + 1 + index, tuple(dict.fromkeys((particle.id, self._best[2])))

    def _set_off(self) -> None:
        """Give every particle that has not moved its first velocity: the way to another one."""
        particles = self._particles
        first = [p.at for p in particles]
        for index, particle in enumerate(particles):
            if particle.velocity is None:
                other = (index + int(self._rng.integers(1, len(particles)))) % len(particles)
                particle.velocity = first[other] - first[index]

    def _learn(self, point: Array, choices: Choices, tag: int | None, candidate: Candidate, told: Evaluation) -> None:
        """Keep what a particle found, and the best and worst of all."""
        gain = gain_of(told, self._objective)
        self._since_best += int(tag is not None and tag != FIRST)
        if not math.isnan(gain):
            if not gain <= self._best[0]:
                self._best, self._since_best = (gain, point, candidate.id), 0
            if not gain >= self._worst[0]:
                self._worst = (gain, point, candidate.id)
        if tag is None or tag == FIRST:
            if not math.isnan(gain):
                self._join(Particle(point, point, gain, candidate.id))
            return
        particle = self._particles[tag - FIRST - 1]
        if gain > particle.gain:
            particle.own, particle.gain, particle.id, particle.idle = point, gain, candidate.id, 0
        else:
            particle.idle += 1

    def _join(self, particle: Particle) -> None:
        """Take a particle in, or let it take the place of the one with the worst best place."""
        if len(self._particles) < self._popsize:
            self._particles.append(particle)
            return
        index = min(range(len(self._particles)), key=lambda i: self._particles[i].gain)
        if particle.gain > self._particles[index].gain:
            self._particles[index] = particle
