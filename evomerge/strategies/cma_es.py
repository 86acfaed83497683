"""CMA-ES through pycma, as an ask/tell strategy that replays exactly.

Hansen, "The CMA Evolution Strategy: A Tutorial" (arXiv 1604.00772).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from evomerge.errors import ConfigError
from evomerge.genomes.genome import Genome, GenomeSpec
from evomerge.objectives import Objective
from evomerge.strategies.bases.arrivals import Arrivals, Sample
from evomerge.strategies.bases.conditional import acting
from evomerge.strategies.bases.generations import ranks_of
from evomerge.strategies.bases.promising import Given, Promising, promising
from evomerge.strategies.bases.pycma import correlate, losses_of, stay
from evomerge.strategies.bases.restarts import Kind, Restarts, Run
from evomerge.strategies.variation.categorical import Categorical
from evomerge.strategies.variation.coordinates import Coordinates
from evomerge.utils.imports import absent

# Of scipy.stats, which takes a second of a processor to import, pycma wants one rank correlation, for surrogates that
# nothing here has; it has its own where there is no scipy.
with warnings.catch_warnings(), absent("scipy.stats"):
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


SETTLED = 1e-4
"""Standard deviations, in units of a gene's range, below which a run has converged and is begun anew (pycma's
``tolx``): what a weight of a merge changes by less, no score shows."""


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
        restarts: begin anew whenever pycma says that a run has ended (`es.stop`, with scores as they are): ``ipop``
            with twice the population, ``bipop`` with large and small populations in turn (`bases.restarts`). Numbers
            begin anywhere within bounds, but near the start where genes have a `spread`; choices are equally likely.
        conditional: learn nothing from genes that do not act, where the space says which (`bases.conditional`).
        warm_start: begin with the distribution of an earlier run's best tenth (`bases.promising`): ``auto`` where that
            is four evaluations at least.
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
        restarts: Kind | None = None,
        conditional: bool = False,
        warm_start: Given = False,
        asynchronous: bool = False,
    ) -> None:
        if not (math.isfinite(sigma0) and 0 < sigma0 <= 1):
            raise ConfigError(f"strategy.sigma0 is {sigma0}", "above 0 and at most 1, in units of a gene's range")
        if popsize is not None and popsize < 3:
            raise ConfigError(f"strategy.popsize is {popsize}", "at least 3, or null for 4 + 3 ln(genes)")
        if restarts not in (None, *get_args(Kind)):
            raise ConfigError(f"strategy.restarts is {restarts!r}", "ipop, bipop or null")
        self._sigma0, self._separable, self._kind = float(sigma0), separable, restarts
        self._coordinates = Coordinates(spec)
        free = max(len(self._coordinates.names), 1)
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
        more: dict[str, Any] = {"asynchronous": True} if self.asynchronous else {}
        more |= {"restarts": self._kind} if self._kind is not None else {}
        more |= {"conditional": True} if self._conditional else {}
        return {"sigma0": self._sigma0, "separable": self._separable, **more}

    def _start(self, seed: int) -> None:
        self._rng, self._choice_rng = np.random.default_rng(seed), np.random.default_rng([seed, 1])
        self._start_rng = np.random.default_rng([seed, 3])
        self._restarts = None if self._kind is None else Restarts(self._kind, self._popsize, seed)
        self._run, self._began, self._taken = Run(self._popsize, large=False), 0, 0
        self._launch(self._coordinates.start, self._coordinates.spreads, self._sigma0, self._prior)

    def _launch(self, start: Array, spreads: Array, sigma0: float, prior: Promising | None) -> None:
        """Begin a run."""
        if prior is not None:
            start, spreads = np.clip(prior.mean, 0.0, 1.0), np.sqrt(np.diag(prior.covariance))
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
            "randn": lambda *shape: self._rng.standard_normal(shape),
            "seed": math.nan,  # otherwise pycma seeds numpy.random
            "signals_filename": "",
            "verbose": -9,
            "verb_disp": 0,
            "verb_log": 0,
            "verb_time": False,
        }
        if self._kind is not None:
            options["tolx"] = SETTLED  # pycma's own is below what standard deviations are kept above
        if self.asynchronous:
            options["CMA_mirrors"] = 0  # points are drawn one at a time
        spreads = np.append(spreads, missing * [np.nan])
        if not np.isnan(spreads).all():
            options["CMA_stds"] = np.where(np.isnan(spreads), 1.0, spreads / self._sigma0)
        self._cma, self._drawn_from = cma.CMAEvolutionStrategy(x0, sigma0, options), -1
        self._categorical = Categorical(self._coordinates.counts, None if prior is None else prior.shares)
        if prior is not None and not self._separable:
            correlate(self._cma, prior.covariance)

    @property
    def _moves(self) -> int:
        """How often the distributions of all runs have moved."""
        return self._began + int(self._cma.countiter)

    def _promising(self, genomes: Sequence[Genome]) -> Promising | None:
        rows = [self._coordinates.point(genome) for genome in genomes]
        points = np.array([point for point, _ in rows]).reshape(len(rows), len(self._coordinates.start))
        choices = np.array([row for _, row in rows], dtype=np.int64).reshape(len(rows), len(self._coordinates.counts))
        return promising(points, choices, self._coordinates.counts, self._warm_start)

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
        self._drawn_from = self._moves
        choices = self._categorical.sample(self._choice_rng, 1)[0]
        sample = Sample(np.array(point), np.array(self._cma.mean), choices, self._moves)
        return self._decoded([point[: len(self._coordinates.start)]], [choices])[0], sample

    def _restored(self, point: Array, choices: NDArray[Any], moves: int) -> tuple[Genome, Sample]:
        sample = Sample(point, np.array(self._cma.mean), choices, moves)
        return self._decoded([point[: len(self._coordinates.start)]], [choices])[0], sample

    def _replace(self, samples: Sequence[Sample]) -> None:
        if self._drawn_from != self._moves:  # pycma wants a distribution drawn from before it moves
            self._sample()
        self._points = [s.point if s.moves == self._moves else self._followed(s) for s in samples]
        self._choices = np.array([sample.choices for sample in samples])

    def _followed(self, sample: Sample) -> Array:
        """Within the bounds; pycma shortens what it did not draw where that is far from the mean."""
        transform = self._cma.gp
        start = np.asarray(transform.geno(sample.point))
        moved = replace(sample, point=start).followed(np.asarray(self._cma.mean))
        return np.asarray(transform.pheno(moved, into_bounds=self._cma.boundary_handler.repair))

    def _counts(self, sample: Sample) -> bool:
        return sample.moves >= self._began

    def _move(self, gains: Array) -> None:
        ranks = ranks_of(gains)
        values = ranks.astype(float) if self._kind is None else losses_of(gains, ranks)
        points, choices, mean = self._points, self._choices, np.array(self._cma.mean)
        with warnings.catch_warnings():
            # Populations below six are mirrored, and pycma does not know its mirrors again when they come back from
            # the bounds: it then takes them for any other points.
            warnings.simplefilter("ignore", InjectionWarning)
            self._cma.tell(points, values.tolist())  # it minimises
        acts = self._acts(points, choices)
        if acts is not None:
            stay(self._cma, mean, acts[0][np.argsort(ranks)])
        if self._coordinates.counts:
            best = np.argsort(ranks)[: min(self._popsize // 2, int(np.isfinite(gains).sum()))]
            weights = math.log((self._popsize + 1) / 2) - np.log(np.arange(1, len(best) + 1))
            self._categorical.learn(choices[best], weights / weights.sum(), None if acts is None else acts[1][best])
        self._taken += len(gains)
        if self._restarts is not None and (self._taken >= self._run.most or self._cma.stop()):
            self._begin_anew(self._restarts)

    def _begin_anew(self, restarts: Restarts) -> None:
        self._began = self._moves
        self._run, self._taken = restarts.next(self._run, self._taken), 0
        self._popsize = self._run.popsize
        start = self._coordinates.sample(self._start_rng, "auto")[0]
        self._launch(start, self._coordinates.spreads, self._run.step * self._sigma0, None)

    def _acts(
        self, points: Sequence[Array], choices: NDArray[np.int64]
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]] | None:
        """Which coordinates and which variables act in each of a generation; ``None`` where all may."""
        if self._active is None:
            return None
        names, chosen = self._coordinates.number_names, self._coordinates.choice_names
        genomes = self._decoded([point[: len(names)] for point in points], choices)
        acts = acting(self._active, genomes, [*names, *chosen])
        return acts[:, : len(names)], acts[:, len(names) :]

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
