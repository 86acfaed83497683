"""GENOME: a population that crosses, mutates, selects and succeeds by generations."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from evomerge.candidate import Candidate, Evaluation
from evomerge.errors import ConfigError, nearest
from evomerge.genomes.genome import GenomeSpec
from evomerge.objectives import Objective
from evomerge.protocols import Proposal
from evomerge.strategies.bases.capabilities import check_range
from evomerge.strategies.bases.generations import gain_of
from evomerge.strategies.bases.members import Member, members_of, members_state
from evomerge.strategies.bases.saving import stacked, unstacked
from evomerge.strategies.bases.steady_state import FIRST, VARIED, Array, Choices, SteadyState
from evomerge.strategies.variation import operators
from evomerge.strategies.variation.coordinates import Spread
from evomerge.strategies.variation.roulette import chances, survivors
from evomerge.strategies.variation.swarm import Draws, Forces, moved, velocity

MOVED = VARIED + 1
"""What the number of a member that moves begins with: the rest is its place among the members."""

Planned = tuple[Array, Choices, int, tuple[int, ...]]


@dataclass(eq=False)
class Individual:
    """A member of the population.

    Attributes:
        now: what it is.
        own: the best that it was.
        velocity: of its last move; ``None`` before its first.
    """

    now: Member
    own: Member
    velocity: Array | None = None


class GenomeEvolution(SteadyState):
    """GENOME and GENOME+ (Zhang et al., "Nature-Inspired Population-Based Evolution of Large Language Models", arXiv
    2503.01155); implements `protocols.Strategy`.

    The first `popsize` proposals are the spec's start (and its seeds, if it has any) and random genomes; failures
    among them are replaced by more of these. A generation then is

    - succession, for GENOME+: every member moves towards the best place where it was and the best where any was, and
      away from the worst, as a particle of a swarm (`particle_swarm.ParticleSwarm`); it is what it has moved to,
      better or worse; its choices become the best's with the chance of that force;
    - crossover: as many times as there are pairs of members, with probability `crossover`, two parents are drawn by
      their scores, and their child is their mean, weighted by their scores; choices are drawn by the same weights;
    - mutation: of every member and every child, with probability `individuals`, a mutated copy joins them, in which
      each gene has noise of `sigma` with probability `genes` (one gene at least);
    - selection: the `elites` best stay, and others by tournaments, or drawn by their scores, until there are `largest`.

    Weights and chances are the scores themselves where all are above 0, as published. Where they are not (which
    public code divides by all the same), they are the distances from the worst, plus the mean distance of neighbours.
    The public code has two per cent of ten members as elites, which is none of them; here their number is a number.
    What the paper does with the last population, to ask all of its models, makes no model and is left to others.

    Evaluations that are not ``ok`` and scores that are not finite never join, and a member that fails where it moved to
    stays. A candidate from elsewhere takes part in the next selection. While a generation is told nothing more of it is
    proposed than there is.

    Args:
        spec: the genes, of any kind.
        objectives: one.
        seed: of all that is random here.
        popsize: members at first.
        largest: members that a selection leaves; `popsize` for ``None``. GENOME+ begins with 10 and keeps 20.
        parents: drawn by ``score``, or all alike (``random``).
        crossover: probability of a child, for every pair.
        individuals, genes: probabilities of mutation.
        sigma: of mutations, in units of a gene's range; choices that mutate are drawn anew.
        survivors: by ``tournament``, or drawn by ``score``.
        tournament: how many compete.
        elites: how many of the best stay in any case.
        succession: whether members move (GENOME+).
        inertia, cognitive, social, repel, draws: of the swarm; see `particle_swarm.ParticleSwarm`.
        step, decay: the length of a move, in velocities, and the factor on it with every generation.
        spread: standard deviation of the first members around the start, in units of a gene's range; uniform within
            bounds for ``None``; ``auto`` as in `SteadyState`.

    Raises:
        ConfigError: no free gene, several objectives, or arguments out of range.
    """

    title: ClassVar[str] = "GENOME"
    asynchronous: ClassVar[bool] = False

    def __init__(
        self,
        spec: GenomeSpec,
        objectives: Sequence[Objective],
        *,
        seed: int,
        popsize: int = 10,
        largest: int | None = None,
        parents: Literal["score", "random"] = "score",
        crossover: float = 0.8,
        individuals: float = 0.3,
        genes: float = 0.1,
        sigma: float = 0.05,
        survivors: Literal["tournament", "score"] = "tournament",
        tournament: int = 3,
        elites: int = 1,
        succession: bool = True,
        inertia: float = 0.2,
        cognitive: float = 0.2,
        social: float = 0.2,
        repel: float = 0.1,
        draws: Draws = "step",
        step: float = 0.5,
        decay: float = 0.95,
        spread: Spread = None,
    ) -> None:
        check_range("popsize", popsize, 2, math.inf)
        largest = popsize if largest is None else largest
        check_range("largest", largest, popsize, math.inf)
        for name, value in (("crossover", crossover), ("individuals", individuals), ("genes", genes), ("sigma", sigma)):
            check_range(name, value, 0, 1)
        check_range("tournament", tournament, 1, math.inf)
        check_range("elites", elites, 0, largest - 1)
        for name, value in (("inertia", inertia), ("cognitive", cognitive), ("social", social), ("repel", repel)):
            check_range(name, value, 0, 10)
        check_range("step", step, 0, 10)
        check_range("decay", decay, 0, 1)
        words = (("parents", parents, ("score", "random")), ("survivors", survivors, ("tournament", "score")))
        for name, word, known in (*words, ("draws", draws, ("step", "gene", "none"))):
            if word not in known:
                raise ConfigError(f"strategy.{name} is {word!r}", nearest(word, known))
        super().__init__(spec, objectives, seed=seed, spread=spread, batch=popsize)
        self._popsize, self._largest, self._elites = popsize, largest, elites
        self._parents, self._crossover = parents, crossover
        self._individuals, self._genes, self._sigma = individuals, genes, sigma
        self._survivors, self._tournament = survivors, tournament
        self._succession, self._forces = succession, Forces(inertia, cognitive, social, repel, draws=draws)
        self._step, self._decay = step, decay
        self._members: list[Individual] = []
        self._offspring: list[Individual] = []  # told in this generation, before selection
        self._plan: deque[Planned] = deque()  # of this generation, not asked yet
        self._ends: list[Member] = []  # the best and the worst of all
        self._moved = True  # whether the next that is planned are children
        self._generation = 0

    def ask(self, n: int | None = None) -> list[Proposal]:
        """Up to `n` proposals of what is planned, all of it for ``None``; none while a generation is being told."""
        found: list[Proposal] = []
        while (n is None or len(found) < n) and self._ready():
            found.append(self._propose())
        return found

    def _ready(self) -> bool:
        """Whether there is something to propose; plans the next when all is told."""
        if not self._complete():
            return len(self._members) + self._flight.tags().count(FIRST) < self._popsize
        if not self._plan and not self._flight.tags():
            self._next()
        return bool(self._plan)

    def _complete(self) -> bool:
        return self._generation > 0 or len(self._members) >= self._popsize

    def _begun(self) -> bool:
        return bool(self._plan)

    def _varied(self) -> Planned:
        return self._plan.popleft()

    def _next(self) -> None:
        """Select among those told, and plan moves or children."""
        if self._moved:
            self._select()
            self._generation += 1
        self._moved = not (self._succession and self._moved)
        self._plan.extend(self._children() if self._moved else self._moves())

    def _select(self) -> None:
        everyone = [*self._members, *self._offspring]
        gains = np.array([individual.now.gain for individual in everyone])
        stay = survivors(gains, self._largest, self._elites, self._tournament, self._survivors == "score", self._rng)
        self._members, self._offspring = [everyone[index] for index in stay], []

    def _moves(self) -> list[Planned]:
        """Succession: where every member goes."""
        members, count = self._members, len(self._members)
        for index, individual in enumerate(members):
            if individual.velocity is None:
                other = (index + int(self._rng.integers(1, count))) % count if count > 1 else index
                individual.velocity = members[other].now.point - individual.now.point
        best, worst = self._ends
        planned = []
        for index, individual in enumerate(members):
            now, own, factors = individual.now, individual.own, self._forces.drawn(self._rng, len(best.point))
            assert individual.velocity is not None, "all have one"
            v = velocity(individual.velocity, now.point, own.point, best.point, worst.point, factors)
            individual.velocity = v
            point = moved(now.point, self._step * self._decay ** (self._generation - 1) * v)
            follow = self._rng.random(len(now.choices)) < float(factors[2].mean())
            point, choices = self._new(point, np.where(follow, best.choices, now.choices))
            planned.append((point, choices, MOVED + index, tuple(dict.fromkeys((now.id, own.id, best.id)))))
        return planned

    def _children(self) -> list[Planned]:
        """Crossover and mutation."""
        rng, members, made = self._rng, [individual.now for individual in self._members], list[Planned]()
        gains = np.array([member.gain for member in members])
        weights = chances(gains)
        drawn = weights if self._parents == "score" else np.full(len(members), 1 / len(members))
        for _ in range(len(members) // 2):
            if rng.random() < self._crossover:
                made.append(self._crossed(drawn, weights))
        for point, choices, parents in [
            *((member.point, member.choices, (member.id,)) for member in members),
            *((point, choices, parents) for point, choices, _, parents in made),
        ]:
            if rng.random() < self._individuals:
                made.append((*self._new(*self._mutated(point, choices)), VARIED, parents))
        return made or [self._crossed(drawn, weights)]

    def _crossed(self, drawn: Array, weights: Array) -> Planned:
        """The child of two members."""
        i, j = (int(index) for index in self._rng.choice(len(drawn), size=2, replace=False, p=drawn))
        a, b = self._members[i].now, self._members[j].now
        share = float(weights[i] / (weights[i] + weights[j]))
        point = share * a.point + (1 - share) * b.point
        choices = np.where(self._rng.random(len(a.choices)) < share, a.choices, b.choices)
        return (*self._new(point, choices), VARIED, (a.id, b.id))

    def _new(self, point: Array, choices: Choices) -> tuple[Array, Choices]:
        """These, mutated where they make the genome of a member."""
        made = self._coordinates.genome
        genome = made(point, choices)
        known = any(made(each.now.point, each.now.choices) == genome for each in self._members)
        return self._mutated(point, choices) if known else (point, choices)

    def _mutated(self, point: Array, choices: Choices) -> tuple[Array, Choices]:
        rng, numbers = self._rng, len(point)
        chosen = rng.random(numbers + len(choices)) < self._genes
        if not chosen.any():
            chosen[int(rng.integers(len(chosen)))] = True
        noise, steps = rng.standard_normal(numbers) * self._sigma, self._coordinates.steps
        noise = np.where(np.abs(noise) < steps, np.copysign(steps, noise), noise)  # or rounding would undo it
        noise = np.where((point + noise < 0) | (point + noise > 1), -noise, noise)
        point = np.clip(point + np.where(chosen[:numbers], noise, 0.0), 0.0, 1.0)
        return point, operators.reset(choices, chosen[numbers:], self._counts, rng)

    def _learn(self, point: Array, choices: Choices, tag: int | None, candidate: Candidate, told: Evaluation) -> None:
        """Keep a member, a child, or where a member has moved to."""
        gain = gain_of(told, self._objective)
        if math.isnan(gain):
            return
        new = Member(point, choices, gain, candidate.id)
        best, worst = self._ends or (new, new)
        self._ends = [new if gain > best.gain else best, new if gain < worst.gain else worst]
        if tag is not None and tag >= MOVED:
            individual = self._members[tag - MOVED]
            individual.now, individual.own = new, new if gain > individual.own.gain else individual.own
        elif self._complete() or tag == VARIED:
            self._offspring.append(Individual(new, new))
        else:
            self._members.append(Individual(new, new))

    def _settings(self) -> dict[str, Any]:
        forces = self._forces
        return {
            "popsize": [self._popsize, self._largest, self._elites],
            "crossover": [self._parents, self._crossover],
            "mutation": [self._individuals, self._genes, self._sigma],
            "survivors": [self._survivors, self._tournament],
            "succession": [self._succession, self._step, self._decay],
            "forces": [forces.inertia, forces.cognitive, forces.social, forces.repel, forces.draws],
        }

    def _held(self) -> dict[str, Any]:
        everyone, dimension = [*self._members, *self._offspring], len(self._coordinates.start)
        still = np.full(dimension, np.nan)
        velocities = [still if each.velocity is None else each.velocity for each in everyone]
        return {
            "members": members_state([each.now for each in everyone], self._coordinates),
            "own": members_state([each.own for each in everyone], self._coordinates),
            "velocities": np.array(velocities, dtype=np.float64).reshape(len(everyone), dimension),
            "offspring": len(self._offspring),
            "ends": members_state(self._ends, self._coordinates),
            "plan": stacked([planned[:3] for planned in self._plan], self._coordinates),
            "tags": [tag for _, _, tag, _ in self._plan],
            "parents": [list(parents) for *_, parents in self._plan],
            "moved": self._moved,
            "generation": self._generation,
        }

    def _hold(self, state: Mapping[str, Any]) -> None:
        velocities = np.array(state["velocities"], dtype=np.float64)
        rows = zip(members_of(state["members"]), members_of(state["own"]), velocities, strict=True)
        everyone = [Individual(now, own, None if np.isnan(v).any() else v) for now, own, v in rows]
        count = len(everyone) - int(state["offspring"])
        self._members, self._offspring, self._ends = everyone[:count], everyone[count:], members_of(state["ends"])
        plan = zip(*unstacked(state["plan"]), state["tags"], state["parents"], strict=True)
        self._plan = deque((point, choices, int(tag), tuple(parents)) for point, choices, tag, parents in plan)
        self._moved, self._generation = bool(state["moved"]), int(state["generation"])
