"""Optuna's samplers as strategies: TPE, Gaussian processes, NSGA-II and NSGA-III.

What Optuna offers besides is its own code here where that is smaller or better: `RandomSearch`, `QuasiRandom` (Sobol
points for every kind of gene) and `BruteForce`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from optuna.samplers import GPSampler, NSGAIIISampler, NSGAIISampler, TPESampler

from evomerge.errors import ConfigError
from evomerge.genome import GenomeSpec
from evomerge.protocols import Objective
from evomerge.strategies.optuna_strategy import DrawsMutations, OptunaStrategy, WholeSpace


class _Tpe(WholeSpace, TPESampler):
    pass


class _Gp(WholeSpace, GPSampler):
    pass


class _Nsga2(DrawsMutations, NSGAIISampler):
    pass


class _Nsga3(DrawsMutations, NSGAIIISampler):
    pass


class Tpe(OptunaStrategy):
    """The tree-structured Parzen estimator, joint over all genes; constant liar for what is in flight.

    Bergstra et al., "Algorithms for Hyper-Parameter Optimization" (2011); Watanabe (arXiv 2304.11127). The time for a
    proposal grows with genes times evaluations: half a second for 20 genes at 10,000.

    Args:
        spec, objectives, seed: as of `OptunaStrategy`.
        startup: random proposals before the first that is modelled.
        candidates: drawn from the good side's density for every proposal.
        batch: how many ``ask(None)`` proposes.
    """

    title = "TPE"

    def __init__(
        self,
        spec: GenomeSpec,
        objectives: Sequence[Objective],
        *,
        seed: int,
        startup: int = 10,
        candidates: int = 24,
        batch: int = 8,
    ) -> None:
        if startup < 1 or candidates < 1:
            raise ConfigError(f"strategy.startup is {startup}, strategy.candidates {candidates}", "at least 1 each")
        self._startup, self._candidates = startup, candidates
        super().__init__(spec, objectives, seed=seed, batch=batch)

    def _settings(self) -> dict[str, Any]:
        return {"startup": self._startup, "candidates": self._candidates}

    def _sampler(self, seed: int) -> WholeSpace:
        return _Tpe(
            seed=seed,
            n_startup_trials=self._startup,
            n_ei_candidates=self._candidates,
            multivariate=True,
            constant_liar=True,
        )


class Gp(OptunaStrategy):
    """Bayesian optimisation with a Gaussian process (Matern 5/2, log expected improvement or hypervolume improvement).

    For evaluations that are dear: a proposal costs about half a second to seconds, growing with the cube of the
    evaluations; beyond some hundreds take `Tpe`. Optuna fits the process with torch, which is imported with
    the first proposal that is modelled.

    Args:
        spec, objectives, seed: as of `OptunaStrategy`.
        startup: random proposals before the first that is modelled.
        batch: how many ``ask(None)`` proposes.
    """

    title = "GP"

    def __init__(
        self, spec: GenomeSpec, objectives: Sequence[Objective], *, seed: int, startup: int = 10, batch: int = 4
    ) -> None:
        if startup < 1:
            raise ConfigError(f"strategy.startup is {startup}", "at least 1")
        self._startup = startup
        super().__init__(spec, objectives, seed=seed, batch=batch)

    def _settings(self) -> dict[str, Any]:
        return {"startup": self._startup}

    def _sampler(self, seed: int) -> WholeSpace:
        return _Gp(seed=seed, n_startup_trials=self._startup, deterministic_objective=True)


class Nsga2(OptunaStrategy):
    """NSGA-II: non-dominated sorting and crowding distance; uniform crossover, mutated genes are drawn anew.

    Deb et al., "A fast and elitist multiobjective genetic algorithm: NSGA-II" (2002). A generation ends when
    `popsize` of its proposals are evaluated; what is asked before is another member of it.

    Args:
        spec, objectives, seed: as of `OptunaStrategy`.
        popsize: of a generation, and how many ``ask(None)`` proposes.
        crossover: probability of two parents instead of one.
        mutation: probability that a gene is drawn anew; one gene on average for ``None``.
    """

    title = "NSGA-II"
    _kind: type[_Nsga2] | type[_Nsga3] = _Nsga2

    def __init__(
        self,
        spec: GenomeSpec,
        objectives: Sequence[Objective],
        *,
        seed: int,
        popsize: int = 24,
        crossover: float = 0.9,
        mutation: float | None = None,
    ) -> None:
        if popsize < 2:
            raise ConfigError(f"strategy.popsize is {popsize}", "at least 2")
        for name, value in (("crossover", crossover), ("mutation", mutation)):
            if value is not None and not 0 <= value <= 1:
                raise ConfigError(f"strategy.{name} is {value}", "a probability")
        self._popsize, self._crossover, self._mutation = popsize, crossover, mutation
        super().__init__(spec, objectives, seed=seed, batch=popsize)

    def _settings(self) -> dict[str, Any]:
        return {"popsize": self._popsize, "crossover": self._crossover, "mutation": self._mutation}

    def _sampler(self, seed: int) -> WholeSpace:
        return self._kind(
            seed=seed,
            population_size=self._popsize,
            crossover_prob=self._crossover,
            mutation_prob=self._mutation,
        )


class Nsga3(Nsga2):
    """NSGA-III: reference directions instead of crowding distance, for three objectives and more; else as `Nsga2`.

    Deb and Jain, "An Evolutionary Many-Objective Optimization Algorithm Using Reference-Point-Based Nondominated
    Sorting Approach" (2014).
    """

    title = "NSGA-III"
    _kind = _Nsga3
