"""CMA-ES through pycma, as an ask/tell strategy that replays exactly.

Hansen, "The CMA Evolution Strategy: A Tutorial" (arXiv 1604.00772).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evomerge.errors import ConfigError
from evomerge.genomes.genome import Genome, GenomeSpec
from evomerge.objectives import Objective
from evomerge.strategies.bases.arrivals import Arrivals, Sample
from evomerge.strategies.bases.generations import ranks_of
from evomerge.strategies.variation.categorical import Categorical
from evomerge.strategies.variation.coordinates import Coordinates

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it warns when matplotlib, which nothing here needs, is not installed
    import cma
    from cma.evolution_strategy import InjectionWarning
    from cma.sigma_adaptation import CMAAdaptSigmaCSA

Array = NDArray[np.float64]

SMALLEST_STD = 1e-7
"""Standard deviations, in units of a gene's range, never fall below this: finer changes vanish when float32
weights are rounded, and pycma runs into underflow long after a search has converged."""

GRID_STD = 0.2
"""The least standard deviation, in steps, of genes on a grid and of whole numbers: below it a generation is one point.
pycma's own floor for integer variables; what CMA-ES with margin (arXiv 2205.13482) achieves by moving the mean."""


class CmaEs(Arrivals):
    """Single-objective CMA-ES over genes of every kind; implements `protocols.Strategy`.

    pycma works on the unit cube (every gene's range scaled to 0..1) and keeps to it by its bound transform,
    which is smooth and maps what falls outside back inside near the edge. Genes on a grid and integer genes are
    rounded in the proposals only (`Coordinates`); pycma learns from the points it drew. Categorical and boolean genes
    have probabilities of their own, which learn from the same ranks (`Categorical`: together, CatCMA). All choices
    are equally likely at first, and none is ever given up.

    pycma sees ranks, not values: equal scores keep the order in which they were asked; evaluations that are not
    ``ok`` and scores that are not finite rank behind all others.

    Args:
        spec: the genes; those of one value keep it.
        objectives: one.
        seed: of all that is random here. The state of `numpy.random` is neither read nor changed.
        sigma0: initial standard deviation, in units of a gene's range; of genes with a `spread` that is it.
        popsize: candidates per generation; 4 + 3 ln(free genes), rounded down, for ``None``.
        separable: learn variances only, no covariances: for hundreds of genes and more.
        asynchronous: move as evaluations arrive; with search.ordered=false it is true unless it is given.

    Raises:
        ConfigError: no free gene, several objectives, or arguments out of range.

    >>> from evomerge.candidate import Candidate, Evaluation
    >>> from evomerge.genomes import Gene, GenomeSpec
    >>> strategy = CmaEs(GenomeSpec((Gene("math/weight"), Gene("code/weight"))), [Objective("score")], seed=0)
    >>> for generation in range(20):  # the weights shall add up to 1.2
    ...     for number, proposal in enumerate(strategy.ask()):
    ...         scores = {"score": -abs(sum(proposal.genome.values) - 1.2)}
    ...         evaluation = Evaluation(number, "ok", objectives=scores)
    ...         strategy.tell(Candidate(number, None, proposal.genome), evaluation)
    >>> abs(sum(strategy.ask(1)[0].genome.values) - 1.2) < 0.1
    True
    """

    title = "CMA-ES"

    def __init__(
        self,
        spec: GenomeSpec,
        objectives: Sequence[Objective],
        *,
        seed: int,
        sigma0: float = 0.25,
        popsize: int | None = None,
        separable: bool = False,
        asynchronous: bool = False,
    ) -> None:
        if not (math.isfinite(sigma0) and 0 < sigma0 <= 1):
            raise ConfigError(f"strategy.sigma0 is {sigma0}", "above 0 and at most 1, in units of a gene's range")
        if popsize is not None and popsize < 3:
            raise ConfigError(f"strategy.popsize is {popsize}", "at least 3, or null for 4 + 3 ln(genes)")
        self._sigma0, self._separable = float(sigma0), separable
        self._coordinates = Coordinates(spec)
        free = max(len(self._coordinates.names), 1)
        popsize = popsize or 4 + int(3 * math.log(free))
        super().__init__(spec, objectives, seed=seed, popsize=popsize, asynchronous=asynchronous)

    def _settings(self) -> dict[str, Any]:
        more = {"asynchronous": True} if self.asynchronous else {}
        return {"sigma0": self._sigma0, "separable": self._separable, **more}

    def _start(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        start = self._coordinates.start
        smallest = np.maximum(GRID_STD * self._coordinates.steps, SMALLEST_STD)
        # pycma refuses less than two dimensions; ones that nothing depends on do no harm.
        missing = max(2 - len(start), 0)
        x0, smallest = np.append(start, missing * [0.5]), np.append(smallest, missing * [SMALLEST_STD])
        options = {
            "bounds": [0, 1],
            "popsize": self._popsize,
            "CMA_diagonal": self._separable,
            # CSA in every dimension: from 300 on pycma would take another rule, which draws from numpy.random.
            "AdaptSigma": CMAAdaptSigmaCSA,
            "minstd": smallest,
            "randn": lambda *shape: rng.standard_normal(shape),
            "seed": math.nan,  # otherwise pycma seeds numpy.random
            "signals_filename": "",
            "verbose": -9,
            "verb_disp": 0,
            "verb_log": 0,
            "verb_time": False,
        }
        if self.asynchronous:
            options["CMA_mirrors"] = 0  # points are drawn one at a time
        spreads = np.append(self._coordinates.spreads, missing * [np.nan])
        if not np.isnan(spreads).all():
            options["CMA_stds"] = np.where(np.isnan(spreads), 1.0, spreads / self._sigma0)
        self._cma, self._drawn_from = cma.CMAEvolutionStrategy(x0, self._sigma0, options), -1
        self._choice_rng = np.random.default_rng([seed, 1])
        self._categorical = Categorical(self._coordinates.counts)

    def _draw(self) -> list[Genome]:
        self._points = list(self._cma.ask())
        self._choices = self._categorical.sample(self._choice_rng, self._popsize)
        return self._decoded([point[: len(self._coordinates.start)] for point in self._points], self._choices)

    def favourite(self) -> Genome | None:
        """The mean of the distribution, and the likeliest choices; ``None`` before anything was learnt."""
        if not self._cma.countiter:
            return None
        mean = np.asarray(self._cma.result.xfavorite)[: len(self._coordinates.start)]
        return self._decoded([mean], [self._categorical.likeliest])[0]

    def _sample(self) -> tuple[Genome, Sample]:
        point = self._cma.ask(1)[0]
        self._drawn_from = self._cma.countiter
        choices = self._categorical.sample(self._choice_rng, 1)[0]
        sample = Sample(np.array(point), np.array(self._cma.mean), choices, self._cma.countiter)
        return self._decoded([point[: len(self._coordinates.start)]], [choices])[0], sample

    def _restored(self, point: Array, choices: NDArray[Any], moves: int) -> tuple[Genome, Sample]:
        sample = Sample(point, np.array(self._cma.mean), choices, moves)
        return self._decoded([point[: len(self._coordinates.start)]], [choices])[0], sample

    def _replace(self, samples: Sequence[Sample]) -> None:
        if self._drawn_from != self._cma.countiter:  # pycma wants a distribution drawn from before it moves
            self._sample()
        self._points = [s.point if s.moves == self._cma.countiter else self._followed(s) for s in samples]
        self._choices = np.array([sample.choices for sample in samples])

    def _followed(self, sample: Sample) -> Array:
        """Within the bounds; pycma shortens what it did not draw where that is far from the mean."""
        transform = self._cma.gp
        start = np.asarray(transform.geno(sample.point))
        moved = replace(sample, point=start).followed(np.asarray(self._cma.mean))
        return np.asarray(transform.pheno(moved, into_bounds=self._cma.boundary_handler.repair))

    def _move(self, gains: Array) -> None:
        ranks = ranks_of(gains)
        with warnings.catch_warnings():
            # Populations below six are mirrored, and pycma does not know its mirrors again when they come back from
            # the bounds: it then takes them for any other points.
            warnings.simplefilter("ignore", InjectionWarning)
            self._cma.tell(self._points, ranks.tolist())  # it minimises
        if self._coordinates.counts:
            best = np.argsort(ranks)[: min(self._popsize // 2, int(np.isfinite(gains).sum()))]
            weights = math.log((self._popsize + 1) / 2) - np.log(np.arange(1, len(best) + 1))
            self._categorical.learn(self._choices[best], weights / weights.sum())

    def _drawn(self) -> dict[str, Any]:
        count, numbers = len(self._genomes), len(self._coordinates.start)
        points = np.array([point[:numbers] for point in self._points[:count]]) if count else np.empty((0, numbers))
        choices = self._choices[:count] if count else np.empty((0, len(self._coordinates.counts)), dtype=np.int64)
        return {"points": points, "choices": np.array(choices)}

    def _take(self, drawn: Mapping[str, Any]) -> list[Genome]:
        # What pycma drew stays as it was drawn here, so that it learns from points of its own.
        self._choices = np.array(drawn["choices"], dtype=np.int64)
        return self._decoded(np.asarray(drawn["points"], dtype=np.float64), self._choices)

    def _decoded(
        self, points: Sequence[Array] | Array, choices: Sequence[NDArray[np.int64]] | NDArray[np.int64]
    ) -> list[Genome]:
        return [self._coordinates.genome(np.array(p), c) for p, c in zip(points, choices, strict=True)]
