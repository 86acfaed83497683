"""SMAC: Bayesian optimisation with a random forest, for choices, what depends on them, and numbers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.stats.qmc import Sobol

from evomerge.candidate import Candidate, Evaluation
from evomerge.errors import ConfigError
from evomerge.genomes.genome import Genome, GenomeSpec, Value
from evomerge.objectives import Objective
from evomerge.protocols import Proposal
from evomerge.strategies.bases.capabilities import KINDS, check_range, require
from evomerge.strategies.bases.conditional import Active
from evomerge.strategies.bases.generations import gain_of
from evomerge.strategies.bases.saving import check_settings, settings_of
from evomerge.strategies.quasi_random import value_at

if TYPE_CHECKING:
    from evomerge.strategies.bases.forest_search import ForestSearch

Array = NDArray[np.float64]

LARGEST = 1e100
"""Objectives are clipped here: differences of a few of them stay finite."""

RHO = 0.05
"""ParEGO's share of the sum of all objectives (Knowles 2006, equation 2)."""

_TRIES = 64


class Smac:
    """Sequential model-based optimisation with a random forest; implements `protocols.Strategy`.

    Hutter, Hoos and Leyton-Brown (LION 2011) and SMAC3 (Lindauer et al., arXiv 2109.09831), with the forest of the
    `smac` package; what MedSAMix searches layer-wise recipes with. First the space's start and points of a scrambled
    Sobol sequence, then `batch` proposals at a time from a forest of all that was told: those of which it expects the
    most improvement (`ForestSearch`), and between them, with probability `random`, any genome. Several objectives are
    ParEGO's (Knowles 2006): for every forest weights are drawn uniformly, and costs in units of the range that was
    told are ``max_k w_k c_k + 0.05 sum_k w_k c_k``.

    Genes of every kind. Genes that do not act are told to the forest as missing and are proposed at their start, so
    that equal recipes are equal genomes. Never waits: candidates in flight count in the forest with what it expects of
    them, and nothing is proposed twice while there is something else. What failed counts as the worst that was told.

    Args:
        spec: the genes.
        objectives: one or more.
        seed: of all that is random here.
        startup: evaluations before the first forest, those of a warm start included.
        batch: proposals of one forest, and how many ``ask(None)`` proposes after the first design.
        trees: of a forest.
        candidates: random genomes among which it looks for improvement, before it climbs.
        random: the probability of a proposal that is drawn at random.
        conditional: whether genes that do not act are told as missing; otherwise as what they happen to be.

    Raises:
        ConfigError: `smac` is not installed, no free gene, too many, or arguments out of range.
    """

    asynchronous: ClassVar[bool] = True
    multi_objective: ClassVar[bool] = True
    kinds: ClassVar[frozenset[str]] = KINDS

    def __init__(
        self,
        spec: GenomeSpec,
        objectives: Sequence[Objective],
        *,
        seed: int,
        startup: int = 25,
        batch: int = 1,
        trees: int = 10,
        candidates: int = 5000,
        random: float = 0.2,
        conditional: bool = True,
    ) -> None:
        if find_spec("smac") is None:
            raise ConfigError(
                "strategy is smac, and the package smac is not installed",
                "a package that is",
                "pip install 'evomerge[smac]', or set strategy=tpe, which needs none",
            )
        require(type(self), "SMAC", spec, objectives, seed)
        for key, value in (("startup", startup), ("batch", batch), ("trees", trees), ("candidates", candidates)):
            check_range(key, value, 1, math.inf)
        check_range("random", random, 0, 1)
        low, high = spec.bounds
        self._free = [int(i) for i in np.flatnonzero(low < high)]
        if len(self._free) > Sobol.MAXDIM:
            raise ConfigError(
                f"strategy SMAC was given {len(self._free)} free genes",
                f"at most {Sobol.MAXDIM}, as many as its first design has",
                "give layers genes in common (search_space.layer_group), or choose strategy=cma_es",
            )
        self._spec, self._objectives = spec, tuple(objectives)
        self._startup, self._batch, self._trees = startup, batch, trees
        self._candidates, self._random, self._conditional = candidates, random, conditional
        self._settings = settings_of(
            spec,
            objectives,
            startup=startup,
            batch=batch,
            trees=trees,
            candidates=candidates,
            random=random,
            conditional=conditional,
        )
        self._active: Active | None = None
        self._search: ForestSearch | None = None
        self._begin(seed)

    def know_active(self, active: Active) -> None:
        """Be told which genes act; implements `conditional.Conditional`."""
        self._active = active if self._conditional else None
        self._search = None

    def ask(self, n: int | None = None) -> list[Proposal]:
        """`n` proposals; for ``None`` what is left of the first design, then a batch."""
        if n is None:
            n = max(self._batch, self._startup - len(self._told) - self._flight.total())
        return [Proposal(self._propose()) for _ in range(max(n, 0))]

    def tell(self, candidate: Candidate, evaluation: Evaluation) -> None:
        """Learn from a proposal.

        Raises:
            FitnessError: the evaluation is ok and lacks an objective; the candidate stays in flight.
        """
        genome = candidate.genome
        if genome is None or genome not in self._flight:
            return
        gains = self._gains_of(evaluation)
        self._flight[genome] -= 1
        if not self._flight[genome]:
            del self._flight[genome]
        self._learn(genome, gains)

    def inject(self, candidate: Candidate, evaluation: Evaluation) -> None:
        """Learn from a candidate that was not proposed; one without a genome is ignored."""
        if candidate.genome is not None:
            self._learn(candidate.genome, self._gains_of(evaluation))

    def state_dict(self) -> dict[str, Any]:
        """All that was told (gains: larger is better, NaN for failures), what is in flight, and what is left of the
        proposals of the latest forest."""
        return {
            "settings": self._settings,
            "seed": self._seed,
            "told": self._table(self._told),
            "gains": np.array(self._gains, dtype=np.float64).reshape(-1, len(self._objectives)),
            "flight": self._table(list(self._flight.elements())),
            "queue": self._table(self._queue),
            "counts": [self._asked, self._drawn, self._given],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where the state was taken."""
        check_settings("SMAC", self._settings, state["settings"])
        self._begin(int(state["seed"]))
        for genome, gains in zip(self._genomes(state["told"]), np.array(state["gains"]).tolist(), strict=True):
            self._learn(genome, gains)
        self._flight.update(self._genomes(state["flight"]))
        self._seen.update(self._flight)
        self._queue.extend(self._genomes(state["queue"]))
        self._asked, self._drawn, self._given = (int(count) for count in state["counts"])
        if self._drawn:
            self._sobol.fast_forward(self._drawn)

    def _begin(self, seed: int) -> None:
        self._seed = seed
        self._told: list[Genome] = []
        self._gains: list[list[float]] = []
        self._flight: Counter[Genome] = Counter()
        self._queue: list[Genome] = []
        self._seen: set[Genome] = set()
        self._asked = self._drawn = self._given = 0
        self._scored = 0  # how many of those told have scores
        self._sobol = Sobol(len(self._free), rng=np.random.default_rng(seed))

    def _gains_of(self, evaluation: Evaluation) -> list[float]:
        return [gain_of(evaluation, objective) for objective in self._objectives]

    def _learn(self, genome: Genome, gains: list[float]) -> None:
        self._told.append(genome)
        self._gains.append(np.clip(gains, -LARGEST, LARGEST).tolist())
        self._scored += not any(math.isnan(gain) for gain in gains)
        self._seen.add(genome)

    def _propose(self) -> Genome:
        rng = np.random.default_rng([self._seed, self._asked])
        genome = self._acting(self._spec.initial) if self._asked == 0 else None
        self._asked += 1
        if genome is None or genome in self._seen:
            genome = self._next(rng)
        self._flight[genome] += 1
        self._seen.add(genome)
        return genome

    def _next(self, rng: np.random.Generator) -> Genome:
        """A genome of the first design, of a forest, or any."""
        if len(self._told) + self._flight.total() < self._startup or not self._scored:
            return self._sample()
        if rng.random() >= self._random:
            if self._given >= self._batch or not self._queue:
                self._queue = self._modelled(rng)
                self._given = 0
            while self._queue:
                genome = self._queue.pop(0)
                if genome not in self._seen:
                    self._given += 1
                    return genome
        for _ in range(_TRIES):
            genome = self._acting(self._spec.sample(rng))
            if genome not in self._seen:
                break
        return genome

    def _sample(self) -> Genome:
        """The next point of the sequence that is a new genome; on a small grid, in the end, any."""
        values: list[Value] = list(self._spec.initial.values)
        for _ in range(_TRIES):
            self._drawn += 1
            for i, share in zip(self._free, self._sobol.random(1)[0], strict=True):
                values[i] = value_at(self._spec.genes[i], float(share))
            genome = self._acting(self._spec.genome(values))
            if genome not in self._seen:
                break
        return genome

    def _modelled(self, rng: np.random.Generator) -> list[Genome]:
        """What a forest of all that was told expects most of, as many new genomes as it may propose."""
        if self._search is None:
            # smac takes seconds to import, and strategies are built where nothing is proposed
            from evomerge.strategies.bases.forest_search import ForestSearch

            self._search = ForestSearch(self._spec, self._active, trees=self._trees, candidates=self._candidates)
        costs = self._costs(rng)
        pending = list(self._flight.elements())
        found = self._search.best(self._told, costs, pending, int(rng.integers(2**31)))
        new: dict[Genome, None] = {}
        for genome in found:
            canonical = self._acting(genome)
            if canonical not in self._seen:
                new[canonical] = None
            if len(new) == self._batch:
                break
        return list(new)

    def _costs(self, rng: np.random.Generator) -> Array:
        """One number for each that was told, from 0 to 1 for one objective; what failed has the worst."""
        costs = -np.array(self._gains, dtype=np.float64)
        finite = costs[~np.isnan(costs).any(axis=1)]
        low, high = finite.min(axis=0), finite.max(axis=0)
        costs = (costs - low) / np.where(high > low, high - low, 1.0)
        costs[np.isnan(costs).any(axis=1)] = 1.0
        if len(self._objectives) == 1:
            return np.asarray(costs[:, 0])
        weighted = costs * rng.dirichlet(np.ones(len(self._objectives)))
        return np.asarray(weighted.max(axis=1) + RHO * weighted.sum(axis=1))

    def _acting(self, genome: Genome) -> Genome:
        """The genome, genes that do not act at their start."""
        if self._active is None:
            return genome
        names = self._active(genome)
        pairs = zip(self._spec, genome.values, strict=True)
        return Genome(tuple(value if gene.name in names else gene.start for gene, value in pairs))

    def _table(self, genomes: Sequence[Genome]) -> Array:
        """Their values as numbers, choices by their number, shape ``(genomes, genes)``."""
        rows = [
            [
                gene.choices.index(str(v)) if gene.choices else float(v)
                for gene, v in zip(self._spec, g.values, strict=True)
            ]
            for g in genomes
        ]
        return np.array(rows, dtype=np.float64).reshape(-1, len(self._spec))

    def _genomes(self, table: Array) -> list[Genome]:
        def value(kind: str, choices: tuple[str, ...], number: float) -> Value:
            if choices:
                return choices[int(number)]
            return bool(number) if kind == "boolean" else int(number) if kind == "integer" else number

        return [
            Genome(tuple(value(gene.kind, gene.choices, x) for gene, x in zip(self._spec, row, strict=True)))
            for row in np.asarray(table, dtype=np.float64).tolist()
        ]
