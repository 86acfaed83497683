"""M2N2: a population whose members compete for the points of every item and mate with those that complement them.

Abrantes, Lange, Tang, "Competition and Attraction Improve Model Fusion" (arXiv 2508.16204).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from evomerge.candidate import Candidate, Evaluation
from evomerge.errors import ConfigError
from evomerge.genomes.genome import Genome, GenomeSpec
from evomerge.objectives import Objective
from evomerge.protocols import Proposal
from evomerge.strategies.archives.item_scores import ItemScores
from evomerge.strategies.archives.population import Attraction, Capacity, Population, Shift, check_options
from evomerge.strategies.bases.capabilities import KINDS, require
from evomerge.strategies.bases.saving import check_settings
from evomerge.strategies.variation.base import Settings
from evomerge.strategies.variation.choose import variation_of
from evomerge.strategies.variation.coordinates import Spread
from evomerge.strategies.variation.crossover import Angle, Interpolation


@dataclass(frozen=True)
class Member:
    """One of the population.

    Attributes:
        candidate: its id.
        genome: what it is made of.
        fitness: its share of the points (section 3.2).
    """

    candidate: int
    genome: Genome
    fitness: float


class M2N2:
    """Model Merging of Natural Niches, on genomes of every kind; implements `protocols.Strategy`.

    The population begins with the seeds of a lineage or of raw weights, else with the spec's start and random genomes;
    what was injected before is not asked for again and makes for fewer random ones. Every child is compared with its
    elders, itself counted in the competition, and the worst is removed: there are no generations, so `ask` never
    waits. Asked before anything was told, it proposes more random genomes, or children of two seeds.

    Evaluations that are not ``ok``, and scores that are not finite, are never members. Candidates that it did not
    propose (baselines) and candidates told a second time are ignored; `inject` takes in others.

    Args:
        spec: the genes, or the lineage.
        objectives: their items are what counts; the objectives themselves where a fitness has no items.
        seed: of all that is random here.
        size: of the population (the paper: 20 for digits, 15 for language models).
        alpha, epsilon, capacity, attraction, shift, distinct: of the competition; see `Population`. ``alpha: 0`` and
            ``attraction: off`` make a genetic algorithm of it.
        crossover, split, path, angle, mutation, spread: how children are made; see `Settings`.
        chromosomes: patterns of gene names by chromosome; see `Settings`. A lineage has them in its search space.
        warmup: how many children have parents drawn at random (the paper: up to 50 where there are few seeds).
        items: patterns of the scores by item that count; see `ItemScores`.
        lower_is_better: patterns of metrics whose smaller values are better; see `ItemScores`.
        batch: how many children ``ask(None)`` proposes. One is the paper's; more let workers share them when
            evaluations are told in order.

    Raises:
        ConfigError: arguments that cannot be, or do not fit the kind of genome.
    """

    asynchronous: ClassVar[bool] = True
    multi_objective: ClassVar[bool] = True
    estimates: ClassVar[bool] = False  # niches are of the items that each member solves
    kinds: ClassVar[frozenset[str]] = KINDS | {"lineage"}

    def __init__(
        self,
        spec: GenomeSpec,
        objectives: Sequence[Objective],
        *,
        seed: int,
        size: int = 20,
        alpha: float = 1.0,
        epsilon: float = 1e-6,
        capacity: Capacity = "auto",
        attraction: Attraction = "linear",
        shift: Shift = "auto",
        distinct: bool = True,
        crossover: bool = True,
        split: bool = True,
        path: Interpolation = "slerp",
        angle: Angle = "segment",
        mutation: float | None = None,
        spread: Spread = None,
        chromosomes: list[list[str]] | None = None,
        warmup: int = 0,
        items: list[str] | None = None,
        lower_is_better: list[str] | None = None,
        batch: int = 1,
    ) -> None:
        require(type(self), "M2N2", spec, objectives, seed)
        check_options(size, alpha, epsilon, capacity=capacity, attraction=attraction, shift=shift)
        for name, value, least in (("warmup", warmup, 0), ("batch", batch, 1)):
            if value < least:
                raise ConfigError(f"strategy.{name} is {value}", f"{least} or more")
        groups = tuple(tuple(words) for words in chromosomes or ())
        self._settings = Settings(crossover, split, path, angle, mutation, spread, groups)
        self._vary = variation_of(spec, self._settings)
        self._starts = self._vary.starts or size
        self._fixed = [self._vary.start(number, np.random.default_rng(0)) for number in range(self._vary.fixed)]
        self._next = list(range(len(self._fixed)))  # of these, the ones to propose
        self._size, self._warmup, self._batch = size, warmup, batch
        self._competition: dict[str, Any] = {
            "alpha": float(alpha),
            "epsilon": float(epsilon),
            "capacity": capacity,
            "attraction": attraction,
            "shift": shift,
            "distinct": distinct,
        }
        self._scores = ItemScores(objectives, items, lower_is_better)
        self._rng = np.random.default_rng(seed)
        self._population: Population | None = None
        self._members: list[tuple[int, Genome]] = []  # by the population's rows
        self._started = self._born = 0
        self._waiting: Counter[Genome] = Counter()

    @property
    def population(self) -> tuple[Member, ...]:
        """The members, the fittest first."""
        if self._population is None:
            return ()
        fitness = self._population.fitness()
        order = np.argsort(-fitness, kind="stable")
        return tuple(Member(self._members[row][0], self._members[row][1], float(fitness[row])) for row in order)

    def ask(self, n: int | None = None) -> list[Proposal]:
        """`n` proposals of the present population; what begins it, or a batch, for ``None``."""
        if n is None:
            n = max(self._starts - self._started, len(self._next)) or self._batch
        proposals = [self._propose() for _ in range(n)]
        for proposal in proposals:
            self._waiting[proposal.genome] += 1
        return proposals

    def tell(self, candidate: Candidate, evaluation: Evaluation) -> None:
        """Take a child into the population; the worst of all is removed where there is no room.

        Raises:
            FitnessError: the evaluation lacks an objective or has other items than those before; the candidate stays
                in flight.
        """
        genome = candidate.genome
        if genome is None or not self._waiting[genome]:
            return
        self._take(candidate.id, genome, self._scores.vector(evaluation))
        self._waiting[genome] -= 1
        if not self._waiting[genome]:
            del self._waiting[genome]

    def inject(self, candidate: Candidate, evaluation: Evaluation) -> None:
        """Take in a candidate that was not proposed; one without a genome or a score is ignored."""
        if candidate.genome is None:
            return
        scores = self._scores.vector(evaluation)
        self._take(candidate.id, candidate.genome, scores)
        known = [number for number in self._next if self._fixed[number] == candidate.genome]
        self._next = [number for number in self._next if number not in known]
        self._started += len(known) or scores is not None

    def state_dict(self) -> dict[str, Any]:
        """Members with their scores, what is in flight, and the random generator, as JSON values and arrays."""
        waiting = [genome for genome, count in self._waiting.items() for _ in range(count)]
        return {
            "settings": self._all_settings(),
            "rng": self._rng.bit_generator.state,
            "started": self._started,
            "next": list(self._next),
            "born": self._born,
            "scores": self._scores.state_dict(),
            "population": None if self._population is None else self._population.state_dict(),
            "candidates": [candidate for candidate, _ in self._members],
            # Together, so that lineages share their ancestors.
            "genomes": self._vary.pack([*(genome for _, genome in self._members), *waiting]),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue exactly where `state_dict` was taken.

        Raises:
            ConfigError: the state is of a strategy with other settings.
        """
        check_settings("M2N2", self._all_settings(), state["settings"])
        self._rng.bit_generator.state = state["rng"]
        self._started, self._born = int(state["started"]), int(state["born"])
        self._next = [int(number) for number in state["next"]]
        self._scores.load_state_dict(state["scores"])
        self._population = None
        if state["population"] is not None:
            self._population = self._new_population(np.shape(state["population"]["scores"])[1])
            self._population.load_state_dict(state["population"])
        genomes = self._vary.unpack(state["genomes"])
        candidates = [int(candidate) for candidate in state["candidates"]]
        self._members = list(zip(candidates, genomes[: len(candidates)], strict=True))
        self._waiting = Counter(genomes[len(candidates) :])

    def _propose(self) -> Proposal:
        if self._next or self._started < self._starts or self._population is None:
            self._started += 1
            if self._next:
                return Proposal(self._fixed[self._next.pop(0)])
            return Proposal(self._vary.start(len(self._fixed), self._rng))
        choose = self._population.mates if self._born < self._warmup else self._population.parents
        first, second = choose(self._rng)
        self._born += 1
        rows = [first] if second is None or not self._settings.crossover else [first, second]
        mate = self._members[rows[1]][1] if len(rows) > 1 else None
        genome = self._vary.child(self._members[first][1], mate, self._rng)
        return Proposal(genome, tuple(self._members[row][0] for row in rows))

    def _take(self, candidate: int, genome: Genome, scores: NDArray[np.float64] | None) -> None:
        if scores is None:
            return
        if self._population is None:
            self._population = self._new_population(len(scores))
        row = self._population.add(scores)
        if row == len(self._members):
            self._members.append((candidate, genome))
        elif row is not None:
            self._members[row] = candidate, genome

    def _new_population(self, items: int) -> Population:
        return Population(self._size, items, **self._competition)

    def _all_settings(self) -> dict[str, Any]:
        """What a saved state must agree on, as JSON gives it back."""
        own = asdict(self._settings) | {"chromosomes": [list(words) for words in self._settings.chromosomes]}
        return {"size": self._size, "warmup": self._warmup, **self._competition, **own}
