"""CatCMA with margin through the package `cmaes`: one distribution over numbers, whole numbers and choices.

Hamano et al., "CatCMA with Margin for Single- and Multi-Objective Mixed-Variable Black-Box Optimization"
(arXiv 2504.07884).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from cmaes import CatCMAwM
from numpy.typing import NDArray

from evomerge.errors import ConfigError
from evomerge.genomes.genome import Genome, GenomeSpec, Value
from evomerge.objectives import Objective
from evomerge.strategies.bases.acting_catcma import ActingCatCMA
from evomerge.strategies.bases.arrivals import Arrivals, Sample, longest
from evomerge.strategies.bases.conditional import acting
from evomerge.strategies.bases.generations import Array, ranks_of
from evomerge.strategies.bases.promising import Given, Promising, promising
from evomerge.strategies.bases.restarts import LARGEST
from evomerge.strategies.variation.categorical import at_least
from evomerge.strategies.variation.values import choices_of, values_of

PATIENCE = 10
"""Generations without anything better, after which a settled distribution begins anew."""

SETTLED = 0.5
"""The mean share of a generation that makes the same choices, above which these are settled; the margin of the paper
keeps it below 0.73."""

CLOSE = 1e-5
"""Numbers are settled when none of them varies by more, as a standard deviation in units of a gene's range."""

CHANGES, LEAST_SHARE = 1.5, 0.7
"""How many choices a first candidate changes with ``start: auto``, and the least probability of one's start."""


class CatCma(Arrivals):
    """CatCMA with margin over genes of every kind; implements `protocols.Strategy`.

    Numbers have a Gaussian, whole numbers and numbers on a coarse grid (`GRID` values or fewer) the same Gaussian,
    whose margin keeps every value within reach; categorical and boolean genes have probabilities with a margin. All
    learn from the ranks of one generation: scores that are not finite and evaluations that are not ``ok`` rank
    behind all others, equal scores keep the order in which they were asked.

    A distribution that has settled (`SETTLED`) and found nothing better for `PATIENCE` generations proposes the same
    genomes over and over; then it begins anew from the start. On paths through layers, where good ones differ by many
    slots, several short searches find more than a long one.

    Memory and time grow with the square and the cube of the genes that are numbers (not of the choices): for many
    hundreds of them `CmaEs` with ``separable`` is the strategy to take.

    Args:
        spec: the genes; those of one value keep it.
        objectives: one.
        seed: of all that is random here. The state of `numpy.random` is neither read nor changed.
        sigma0: initial standard deviation, in units of a gene's range; of genes with a `spread` that is it.
        popsize: candidates per generation; 4 + 3 ln(free genes), rounded down, for ``None``.
        start: the probability of a choice that the space starts from (the `initial` of a categorical or boolean
            gene), at first; ``auto``: such that a candidate changes one or two of them, however many there are, 0.7 at
            least; ``None`` ignores it. Genes without `initial` begin with equal probabilities.
        restart: begin anew when settled; ``ipop`` with twice the population each time.
        conditional: learn nothing from genes that do not act, where the space says which (`bases.conditional`).
        warm_start: begin with the distribution of an earlier run's best tenth (`bases.promising`): ``auto`` where that
            is four evaluations at least.
        asynchronous: move as evaluations arrive, and forget what was drawn before a new beginning; with
            search.ordered=false it is true unless it is given.

    Raises:
        ConfigError: no free gene, several objectives, or arguments out of range.
    """

    title = "CatCMA"

    def __init__(
        self,
        spec: GenomeSpec,
        objectives: Sequence[Objective],
        *,
        seed: int,
        sigma0: float = 0.25,
        popsize: int | None = None,
        start: float | Literal["auto"] | None = 0.7,
        restart: bool | Literal["ipop"] = True,
        conditional: bool = False,
        warm_start: Given = False,
        asynchronous: bool = False,
    ) -> None:
        if not (math.isfinite(sigma0) and 0 < sigma0 <= 1):
            raise ConfigError(f"strategy.sigma0 is {sigma0}", "above 0 and at most 1, in units of a gene's range")
        if popsize is not None and popsize < 4:
            raise ConfigError(f"strategy.popsize is {popsize}", "at least 4, or null for 4 + 3 ln(genes)")
        if isinstance(start, float | int) and not 0 < start < 1:
            raise ConfigError(f"strategy.start is {start}", "a probability between 0 and 1, auto, or null")
        self._sigma0, self._start_given, self._restart = float(sigma0), start, restart
        values = [values_of(gene) for gene in spec]
        self._real = [i for i, found in enumerate(values) if found is None]
        self._whole = {i: found for i, found in enumerate(values) if found is not None and len(found) > 1}
        choices = [choices_of(gene) for gene in spec]
        self._chosen = {i: found for i, found in enumerate(choices) if len(found) > 1}
        started = sum(spec.genes[i].initial is not None for i in self._chosen)
        self._initial_share = max(LEAST_SHARE, 1 - CHANGES / max(started, 1)) if start == "auto" else start
        free = max(len(self._real) + len(self._whole) + len(self._chosen), 1)
        popsize = popsize or 4 + int(3 * math.log(free))
        super().__init__(
            spec,
            objectives,
            seed=seed,
            popsize=popsize,
            asynchronous=asynchronous,
            conditional=conditional,
            warm_start=warm_start,
        )

    def _settings(self) -> dict[str, Any]:
        given = {"asynchronous": self.asynchronous, "conditional": self._conditional}
        more = {name: True for name, value in given.items() if value}
        return {"sigma0": self._sigma0, "start": self._start_given, "restart": self._restart, **more}

    def _start(self, seed: int) -> None:
        self._starts, self._moves = 0, 0
        self._fresh()

    def _fresh(self) -> None:
        """Begin from the space's start, with draws of its own for every time that this happens."""
        genes, initial = self._spec.genes, self._spec.initial.values
        # The Gaussian lives on the unit cube.
        units = [found / found[-1] for found in map(np.arange, map(len, self._whole.values()))]
        mean = [(float(initial[i]) - genes[i].low) / (genes[i].high - genes[i].low) for i in self._real]
        mean += [float(unit[np.abs(found - float(initial[i])).argmin()]) for unit, (i, found) in self._pairs(units)]
        numbers = [genes[i].spread or self._sigma0 for i in (*self._real, *self._whole)]
        deviation = np.array(numbers, dtype=np.float64)
        covariance, shares = np.diag(deviation**2), self._probabilities() if self._chosen else None
        if self._prior is not None and self._starts == 0:
            mean, covariance, shares = self._near(self._prior)
        self._model = ActingCatCMA(
            x_space=[[0.0, 1.0]] * len(self._real) or None,
            z_space=[unit.tolist() for unit in units] or None,
            c_space=[len(found) for found in self._chosen.values()] or None,
            population_size=self._popsize,
            mean=np.array(mean),
            sigma=1.0,
            cov=covariance,
            cat_param=shares,
            seed=int(np.random.SeedSequence([self._seed, self._starts]).generate_state(1)[0]),
        )
        self._starts += 1
        self._began = self._moves
        self._solutions: list[CatCMAwM.Solution] = []
        self._best, self._likeliest = -math.inf, deque[float](maxlen=PATIENCE)

    def _pairs(self, units: list[Array]) -> list[tuple[Array, tuple[int, Array]]]:
        return list(zip(units, self._whole.items(), strict=True))

    def _probabilities(self) -> Array:
        """Of every choice at first, shape ``(variables, most choices)``, 0 where a variable has no such choice."""
        found = np.zeros((len(self._chosen), max(map(len, self._chosen.values()))))
        least = self._margin
        for row, (i, choices) in zip(found, self._chosen.items(), strict=True):
            count, initial = len(choices), self._spec.genes[i].initial
            if initial is None or self._initial_share is None:
                row[:count] = 1 / count
            else:
                share = min(max(self._initial_share, least / (count - 1)), 1 - least)
                row[:count] = (1 - share) / (count - 1)
                row[choices.index(initial)] = share
        return found

    @property
    def _margin(self) -> float:
        """The least probability of all choices but one: that of the paper holds from the first generation on."""
        return float(1 - 0.73 ** (1 / max(len(self._chosen) + len(self._whole), 1)))

    def _promising(self, genomes: Sequence[Genome]) -> Promising | None:
        points, choices = [], []
        for genome in genomes:
            reals = [(i, float(genome.values[i])) for i in self._real]
            point = [
                (x - self._spec.genes[i].low) / (self._spec.genes[i].high - self._spec.genes[i].low) for i, x in reals
            ]
            for i, allowed in self._whole.items():
                point.append(float(np.abs(allowed - float(genome.values[i])).argmin()) / (len(allowed) - 1))
            points.append(point)
            choices.append([found.index(genome.values[i]) for i, found in self._chosen.items()])
        rows, numbers = len(points), len(self._real) + len(self._whole)
        counts = [len(found) for found in self._chosen.values()]
        chosen = np.array(choices, dtype=np.int64).reshape(rows, len(counts))
        return promising(np.array(points).reshape(rows, numbers), chosen, counts, self._warm_start)

    def _near(self, prior: Promising) -> tuple[list[float], Array, Array | None]:
        """Mean, covariance and probabilities of an earlier run's distribution, as `CatCMAwM` takes them."""
        if not self._chosen:
            return prior.mean.tolist(), prior.covariance.copy(), None
        shares = np.zeros((len(prior.shares), max(map(len, prior.shares))))
        for row, share in zip(shares, prior.shares, strict=True):
            row[: len(share)] = at_least(share, self._margin / (len(share) - 1))
        return prior.mean.tolist(), prior.covariance.copy(), shares

    def _draw(self) -> list[Genome]:
        self._solutions = [self._model.ask() for _ in range(self._popsize)]
        return [self._genome(solution) for solution in self._solutions]

    def _genome(self, solution: CatCMAwM.Solution) -> Genome:
        values: list[Value] = list(self._spec.initial.values)
        if solution.x is not None:
            for i, x in zip(self._real, solution.x, strict=True):
                gene = self._spec.genes[i]
                values[i] = float(gene.low + (gene.high - gene.low) * x)
        if solution.z is not None:
            for (i, allowed), z in zip(self._whole.items(), solution.z, strict=True):
                values[i] = float(allowed[round(z * (len(allowed) - 1))])
        if solution.c is not None:
            for (i, choices), one_hot in zip(self._chosen.items(), solution.c, strict=True):
                values[i] = choices[int(one_hot.argmax())]
        return self._spec.genome(values)

    def _sample(self) -> tuple[Genome, Sample]:
        solution = self._model.ask()
        point = np.empty(0) if solution._v_raw is None else np.array(solution._v_raw)
        choices = np.empty(0, dtype=bool) if solution.c is None else solution.c
        return self._genome(solution), Sample(point, self._mean, choices, self._moves)

    def _restored(self, point: Array, choices: NDArray[Any], moves: int) -> tuple[Genome, Sample]:
        sample = Sample(point, self._mean, choices, moves)
        return self._genome(self._solution(sample, point)), sample

    @property
    def _mean(self) -> Array:
        return np.array(self._model._mean) if self._real or self._whole else np.empty(0)

    def _counts(self, sample: Sample) -> bool:
        return sample.moves >= self._began

    def _replace(self, samples: Sequence[Sample]) -> None:
        self._solutions = [
            self._solution(sample, sample.point if sample.moves == self._moves else self._followed(sample))
            for sample in samples
        ]

    def _followed(self, sample: Sample) -> Array:
        """Not farther from the mean than Hansen's bound for injected points."""
        if not len(sample.point):
            return sample.point
        step = sample.followed(self._mean) - self._mean
        basis, lengths = self._model._eigen_decomposition()
        distance = float(np.linalg.norm(basis.T @ (step / self._model._A) / lengths)) / self._model._sigma
        return np.asarray(self._mean + step * min(1.0, longest(len(step)) / max(distance, 1e-300)))

    def _solution(self, sample: Sample, point: Array) -> CatCMAwM.Solution:
        model, reals = self._model, len(self._real)
        return CatCMAwM.Solution(
            x=model._repair_continuous_params(point[:reals]) if reals else None,
            z=model._discretization(point[reals:]) if self._whole else None,
            c=sample.choices if self._chosen else None,
            _v_raw=point if reals or self._whole else None,
        )

    def _move(self, gains: Array) -> None:
        self._moves += 1
        self._model.learn(self._solutions, ranks_of(gains), self._acts())
        if float(np.nanmax(gains)) > self._best:
            self._best = float(np.nanmax(gains))
            self._likeliest.clear()
        self._likeliest.append(self._agreement())
        self._solutions = []
        if self._restart and len(self._likeliest) == PATIENCE and np.mean(self._likeliest) > SETTLED:
            self._popsize *= 2 if self._restart == "ipop" and self._popsize < LARGEST else 1
            self._fresh()

    def _acts(self) -> NDArray[np.bool_] | None:
        """Which numbers, then choices act in each solution, shape ``(solutions, genes)``; ``None`` where all may."""
        if self._active is None:
            return None
        names = [self._spec.genes[i].name for i in (*self._real, *self._whole, *self._chosen)]
        return acting(self._active, [self._genome(solution) for solution in self._solutions], names)

    def _agreement(self) -> float:
        """The share of the generation that took its most frequent choices; 0 while its numbers still differ."""
        points, choices = _rows(self._solutions, "_v_raw"), _rows(self._solutions, "c")
        if points.shape[1] and points.std(axis=0).max() > CLOSE:
            return 0.0
        counts = np.unique(choices.reshape(len(choices), -1), axis=0, return_counts=True)[1]
        return float(counts.max() / len(choices))

    def _drawn(self) -> dict[str, Any]:
        count = len(self._solutions) if self._genomes else 0
        return {name: _rows(self._solutions[:count], field) for name, field in _FIELDS.items()}

    def _take(self, drawn: Mapping[str, Any]) -> list[Genome]:
        columns = {field: np.array(drawn[name]) for name, field in _FIELDS.items()}
        columns["c"] = columns["c"].astype(bool)
        self._solutions = [
            CatCMAwM.Solution(**{field: rows[i] if rows.shape[1] else None for field, rows in columns.items()})
            for i in range(self._popsize)
        ]
        return [self._genome(solution) for solution in self._solutions]


_FIELDS = {"points": "_v_raw", "numbers": "x", "wholes": "z", "choices": "c"}


def _rows(solutions: list[CatCMAwM.Solution], field: str) -> NDArray[Any]:
    """One field of all solutions, flattened, shape ``(solutions, ...)``; nothing where the space has no such genes."""
    rows = [getattr(solution, field) for solution in solutions]
    if not rows or rows[0] is None:
        return np.empty((len(rows), 0))
    return np.array(rows)
