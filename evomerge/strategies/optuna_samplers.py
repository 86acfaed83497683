"""Optuna's samplers as strategies: TPE, Gaussian processes, NSGA-II and NSGA-III.

What Optuna offers besides is its own code here where that is smaller or better: `RandomSearch`, `QuasiRandom` (Sobol
points for every kind of gene) and `BruteForce`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from optuna.samplers import GPSampler, NSGAIIISampler, NSGAIISampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from evomerge.errors import ConfigError
from evomerge.genomes.genome import GenomeSpec
from evomerge.objectives import Objective
from evomerge.strategies.bases.optuna_strategy import DrawsMutations, OptunaStrategy, WholeSpace

LEAST_MEMORY = 40
"""Of models: fewer evaluations say too little of what is good."""

FORGET_EVERY = 500
"""Evaluations after which generations that are gone are forgotten."""


class _Tpe(WholeSpace, TPESampler):
    pass


class _Gp(WholeSpace, GPSampler):
    pass


class _Nsga2(DrawsMutations, NSGAIISampler):
    pass


class _Nsga3(DrawsMutations, NSGAIIISampler):
    pass


class ModelBased(OptunaStrategy):
    """A sampler that models trials, all of which it reads for every proposal: a bounded number of them.

    Args:
        memory: of how many evaluations at most a proposal is modelled. Whenever half of so many have been told, all
            but half of so many are forgotten: kept are the best, a quarter of these, and the latest. The best are
            those that the fewest others beat (with several objectives: beat in one and equal in all others). ``None``
            forgets nothing.
    """

    def __init__(
        self,
        spec: GenomeSpec,
        objectives: Sequence[Objective],
        *,
        seed: int,
        batch: int,
        startup: int,
        memory: int | None,
    ) -> None:
        if startup < 1:
            raise ConfigError(f"strategy.startup is {startup}", "at least 1")
        least = max(LEAST_MEMORY, 2 * startup)
        if memory is not None and memory < least:
            raise ConfigError(
                f"strategy.memory is {memory}",
                f"at least {LEAST_MEMORY} and twice strategy.startup, here {least}",
                "null forgets nothing",
            )
        self._startup, self._memory = startup, memory
        super().__init__(spec, objectives, seed=seed, batch=batch, every=None if memory is None else memory // 2)

    def _settings(self) -> dict[str, Any]:
        return {"startup": self._startup, "memory": self._memory}

    def _needed(self, trials: Sequence[FrozenTrial]) -> set[int]:
        assert self._memory is not None
        kept = self._memory // 2
        scored = [trial for trial in trials if trial.state == TrialState.COMPLETE]
        gains = np.array([trial.values for trial in scored]).reshape(-1, len(self._objectives))
        beaten = [int(((gains >= own).all(axis=1) & (gains > own).any(axis=1)).sum()) for own in gains]
        best = sorted(range(len(scored)), key=lambda i: (beaten[i], -i))[: kept // 4]
        found = {scored[i].number for i in best}
        for trial in reversed(trials):
            if len(found) == kept:
                break
            found.add(trial.number)
        return found


class Tpe(ModelBased):
    """The tree-structured Parzen estimator, joint over all genes; constant liar for what is in flight.

    Bergstra et al., "Algorithms for Hyper-Parameter Optimization" (2011); Watanabe (arXiv 2304.11127). The time for a
    proposal grows with genes times the evaluations in memory.

    Args:
        spec, objectives, seed: as of `OptunaStrategy`.
        startup: random proposals before the first that is modelled.
        candidates: drawn from the good side's density for every proposal.
        batch: how many ``ask(None)`` proposes.
        memory: of how many evaluations a proposal is modelled at most; see `ModelBased`.
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
        memory: int | None = 1000,
    ) -> None:
        if candidates < 1:
            raise ConfigError(f"strategy.candidates is {candidates}", "at least 1")
        self._candidates = candidates
        super().__init__(spec, objectives, seed=seed, batch=batch, startup=startup, memory=memory)

    def _settings(self) -> dict[str, Any]:
        return {**super()._settings(), "candidates": self._candidates}

    def _sampler(self, seed: int) -> WholeSpace:
        return _Tpe(
            seed=seed,
            n_startup_trials=self._startup,
            n_ei_candidates=self._candidates,
            multivariate=True,
            constant_liar=True,
        )


class Gp(ModelBased):
    """Bayesian optimisation with a Gaussian process (Matern 5/2, log expected improvement or hypervolume improvement).

    For evaluations that are dear: a proposal costs a quarter of a second to seconds, growing with the cube of the
    evaluations in memory; beyond some hundreds take `Tpe`. Optuna fits the process with torch, which is imported with
    the first proposal that is modelled.

    Args:
        spec, objectives, seed: as of `OptunaStrategy`.
        startup: random proposals before the first that is modelled.
        batch: how many ``ask(None)`` proposes.
        memory: of how many evaluations a proposal is modelled at most; see `ModelBased`.
    """

    title = "GP"

    def __init__(
        self,
        spec: GenomeSpec,
        objectives: Sequence[Objective],
        *,
        seed: int,
        startup: int = 10,
        batch: int = 4,
        memory: int | None = 500,
    ) -> None:
        super().__init__(spec, objectives, seed=seed, batch=batch, startup=startup, memory=memory)

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
        super().__init__(spec, objectives, seed=seed, batch=popsize, every=max(FORGET_EVERY, 4 * popsize))

    def _settings(self) -> dict[str, Any]:
        return {"popsize": self._popsize, "crossover": self._crossover, "mutation": self._mutation}

    def _sampler(self, seed: int) -> WholeSpace:
        return self._kind(
            seed=seed,
            population_size=self._popsize,
            crossover_prob=self._crossover,
            mutation_prob=self._mutation,
        )

    def _needed(self, trials: Sequence[FrozenTrial]) -> set[int]:
        """The newest generation, its parents and, once they are chosen, the next one's: nothing else is read."""
        key = self._kind._get_generation_key()
        # Optuna gives the start, whose genes are given, no generation: it is no parent.
        born = {t.number: int(t.system_attrs.get(key, -1)) for t in trials if t.state == TrialState.COMPLETE}
        newest = max(born.values(), default=0)
        notes = self._storage.get_study_system_attrs(self._study_id)
        parents = (notes.get(f"{self._parents}{generation}", ()) for generation in (newest, newest + 1))
        return {number for number, generation in born.items() if generation == newest}.union(*parents)

    def _notes(self) -> dict[str, Any]:
        """It is one of the newest generation."""
        key, trials = self._kind._get_generation_key(), self._study.get_trials(deepcopy=False)
        return {key: max((t.system_attrs.get(key, 0) for t in trials if t.state == TrialState.COMPLETE), default=0)}

    def _renumbered(self, notes: Mapping[str, Any], places: Mapping[int, int]) -> dict[str, Any]:
        return {
            key: [places[number] for number in numbers]
            for key, numbers in notes.items()
            if key.startswith(self._parents) and places.keys() >= set(numbers)
        }

    @property
    def _parents(self) -> str:
        """What the notes of a generation's parents are called, before its number."""
        return self._kind._get_parent_cache_key_prefix()


class Nsga3(Nsga2):
    """NSGA-III: reference directions instead of crowding distance, for three objectives and more; else as `Nsga2`.

    Deb and Jain, "An Evolutionary Many-Objective Optimization Algorithm Using Reference-Point-Based Nondominated
    Sorting Approach" (2014).
    """

    title = "NSGA-III"
    _kind = _Nsga3
