"""Samplers of Optuna behind `protocols.Strategy`.

Every proposal is drawn by a fresh sampler whose seed follows from the search's seed and the proposal's number, from the
trials of a study in memory. So the state of a strategy is its trials, nothing is hidden in a generator, and loading
them is exact and costs no more than copying.

Optuna goes through all trials for every proposal: those that a sampler needs no more are forgotten.

Akiba et al., "Optuna" (arXiv 1907.10902).
"""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FrozenTrial, TrialState

from evomerge.candidate import Candidate, Evaluation
from evomerge.errors import ConfigError
from evomerge.genomes.genome import Gene, Genome, GenomeSpec, Value
from evomerge.objectives import Objective
from evomerge.protocols import Proposal
from evomerge.strategies.bases.capabilities import KINDS, require
from evomerge.strategies.bases.generations import gain_of
from evomerge.strategies.bases.saving import check_settings, settings_of

optuna.logging.set_verbosity(optuna.logging.ERROR)

Space = dict[str, BaseDistribution]

LARGEST = 1e100
"""Objectives are clipped here: products of a few of them stay finite."""

_STATES = (TrialState.RUNNING, TrialState.COMPLETE, TrialState.PRUNED)
_PASSING = ("relative_params", "fixed_params")  # notes about a trial that matter until its parameters are set


class WholeSpace(BaseSampler):
    """All genes are sampled together from the first trial on: Optuna need not find out which there are."""

    space: Space

    def infer_relative_search_space(self, study: Any, trial: Any) -> Space:
        """See Optuna."""
        return self.space


class DrawsMutations(WholeSpace):
    """Mutated genes are drawn by a generator of their own: theirs would repeat the draws that decided to mutate."""

    mutations: RandomSampler

    def sample_independent(self, study: Any, trial: Any, name: str, distribution: BaseDistribution) -> Any:
        """See Optuna."""
        return self.mutations.sample_independent(study, trial, name, distribution)


class OptunaStrategy(ABC):
    """A sampler of Optuna behind `protocols.Strategy`; sub-classes say which.

    Genes of every kind, one objective or several. Never waits: it proposes from what has been told. The first proposal
    is the space's start. Evaluations that are not ``ok`` and scores that are not finite are pruned trials: TPE counts
    them among the bad ones, the others leave them out. Candidates that it did not propose and candidates told a second
    time are ignored; `inject` makes trials of others.

    Args:
        spec: the genes; those of one value keep it.
        objectives: one or several.
        seed: of all that is random here. The state of `numpy.random` is neither read nor changed.
        batch: how many ``ask(None)`` proposes.

    Raises:
        ConfigError: no free gene, no objective, or arguments out of range.
    """

    title: ClassVar[str] = "Optuna"
    asynchronous: ClassVar[bool] = True
    multi_objective: ClassVar[bool] = True
    kinds: ClassVar[frozenset[str]] = KINDS

    _storage: optuna.storages.InMemoryStorage
    _study: optuna.Study
    _study_id: int
    _proposed: int
    _told: int
    _waiting: dict[Genome, deque[int]]  # handed out and not told: numbers of trials

    def __init__(
        self, spec: GenomeSpec, objectives: Sequence[Objective], *, seed: int, batch: int, every: int | None
    ) -> None:
        if batch < 1:
            raise ConfigError(f"strategy.batch is {batch}", "at least 1")
        require(type(self), self.title, spec, objectives, seed)
        self._every = every  # so many evaluations after the last time, trials are forgotten; never for None
        self._spec, self._objectives, self._batch = spec, tuple(objectives), batch
        self._free_genes = [gene for gene in spec if _distribution(gene) is not None]
        self._space: Space = {gene.name: found for gene in spec if (found := _distribution(gene)) is not None}
        self._begin(seed)

    @abstractmethod
    def _settings(self) -> dict[str, Any]:
        """What a saved state must agree on, besides genes and objectives."""

    @abstractmethod
    def _sampler(self, seed: int) -> WholeSpace:
        """A fresh sampler for one proposal."""

    @abstractmethod
    def _needed(self, trials: Sequence[FrozenTrial]) -> set[int]:
        """Numbers of the trials, of those that were told, that samplers go on to need."""

    def _renumbered(self, notes: Mapping[str, Any], places: Mapping[int, int]) -> dict[str, Any]:
        """What samplers noted of the study, for trials with new numbers: `places` has those that are kept."""
        return dict(notes)

    def ask(self, n: int | None = None) -> list[Proposal]:
        """`n` proposals, or a batch."""
        return [self._propose() for _ in range(self._batch if n is None else max(n, 0))]

    def tell(self, candidate: Candidate, evaluation: Evaluation) -> None:
        """Complete the trial.

        Raises:
            FitnessError: the evaluation is ok and lacks an objective; the candidate stays in flight.
        """
        waiting = self._waiting.get(candidate.genome) if candidate.genome is not None else None
        if not waiting:
            return
        gains = [gain_of(evaluation, objective) for objective in self._objectives]
        number = waiting.popleft()
        if not waiting:
            del self._waiting[candidate.genome]  # type: ignore[arg-type]  # it was looked up above
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if any(math.isnan(gain) for gain in gains):
                self._study.tell(number, state=TrialState.PRUNED)
            else:
                self._study.tell(number, np.clip(gains, -LARGEST, LARGEST).tolist())
        self._count_told()

    def inject(self, candidate: Candidate, evaluation: Evaluation) -> None:
        """Make a trial of a candidate that was not proposed; one without a genome is ignored."""
        if candidate.genome is None:
            return
        gains = [gain_of(evaluation, objective) for objective in self._objectives]
        failed = any(math.isnan(gain) for gain in gains)
        pairs = zip(self._spec, candidate.genome.values, strict=True)
        self._study.add_trial(
            optuna.trial.create_trial(
                state=TrialState.PRUNED if failed else TrialState.COMPLETE,
                params={gene.name: _parameter(gene, value) for gene, value in pairs if gene.name in self._space},
                distributions=self._space,
                values=None if failed else np.clip(gains, -LARGEST, LARGEST).tolist(),
                system_attrs=self._notes(),
            )
        )
        self._count_told()

    def _notes(self) -> dict[str, Any]:
        """What samplers would have noted of a trial, had it been proposed."""
        return {}

    def _count_told(self) -> None:
        self._told += 1
        if self._every is not None and self._told % self._every == 0:
            self._forget()

    def state_dict(self) -> dict[str, Any]:
        """Every trial in memory: its genes as Optuna counts them, its gains (larger is better), what samplers noted."""
        trials = self._study.get_trials(deepcopy=False)
        count, objectives = len(trials), len(self._objectives)
        points = [[d.to_internal_repr(trial.params[name]) for name, d in self._space.items()] for trial in trials]
        return {
            "seed": self._seed,
            "settings": self._agreed(),
            "proposed": self._proposed,
            "told": self._told,
            "points": np.array(points, dtype=np.float64).reshape(count, len(self._space)),
            "gains": np.array([t.values or [math.nan] * objectives for t in trials]).reshape(count, objectives),
            "states": np.array([_STATES.index(trial.state) for trial in trials], dtype=np.int64),
            "trial_notes": [
                {key: value for key, value in trial.system_attrs.items() if not any(word in key for word in _PASSING)}
                for trial in trials
            ],
            "study_notes": dict(self._storage.get_study_system_attrs(self._study_id)),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from these trials.

        Raises:
            ConfigError: the state is of a strategy with other settings, genes or objectives.
        """
        check_settings(self.title, self._agreed(), state["settings"])
        self._begin(int(state["seed"]))
        rows = zip(state["points"], state["gains"], state["states"], state["trial_notes"], strict=True)
        for number, (point, gains, code, notes) in enumerate(rows):
            params = {
                name: d.to_external_repr(float(x)) for (name, d), x in zip(self._space.items(), point, strict=True)
            }
            status = _STATES[int(code)]
            self._study.add_trial(
                optuna.trial.create_trial(
                    state=status,
                    params=params,
                    distributions=self._space,
                    values=gains.tolist() if status == TrialState.COMPLETE else None,
                    system_attrs=dict(notes),
                )
            )
            if status == TrialState.RUNNING:
                self._waiting.setdefault(self._genome(params), deque()).append(number)
        self._take_notes(state["study_notes"])
        self._proposed, self._told = int(state["proposed"]), int(state["told"])

    def _begin(self, seed: int) -> None:
        self._seed = seed
        self._proposed = self._told = 0
        self._waiting = {}
        self._new_study()

    def _new_study(self) -> None:
        self._storage = optuna.storages.InMemoryStorage()
        directions = [optuna.study.StudyDirection.MAXIMIZE] * len(self._objectives)  # of gains
        self._study = optuna.create_study(storage=self._storage, study_name="search", directions=directions)
        self._study_id = self._storage.get_study_id_from_name("search")

    def _take_notes(self, notes: Mapping[str, Any]) -> None:
        for key, value in notes.items():
            self._storage.set_study_system_attr(self._study_id, key, value)

    def _forget(self) -> None:
        """Go on with a study of the trials that are needed and those in flight, in their order."""
        trials, notes = self._study.get_trials(deepcopy=False), self._storage.get_study_system_attrs(self._study_id)
        needed = self._needed([trial for trial in trials if trial.state != TrialState.RUNNING])
        kept = [trial for trial in trials if trial.state == TrialState.RUNNING or trial.number in needed]
        places = {trial.number: place for place, trial in enumerate(kept)}
        self._new_study()
        self._study.add_trials(kept)
        self._take_notes(self._renumbered(notes, places))
        self._waiting = {g: deque(places[number] for number in numbers) for g, numbers in self._waiting.items()}

    def _agreed(self) -> dict[str, Any]:
        return settings_of(self._spec, self._objectives, **self._settings())

    def _propose(self) -> Proposal:
        seeds = np.random.SeedSequence([self._seed, self._proposed]).generate_state(2)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # experimental parts announce themselves
            sampler = self._sampler(int(seeds[0]))
            sampler.space = self._space
            if isinstance(sampler, DrawsMutations):
                sampler.mutations = RandomSampler(int(seeds[1]))
            if self._proposed == 0:
                self._begin_at({gene.name: _parameter(gene, gene.start) for gene in self._free_genes})
            self._study.sampler = sampler
            trial = self._study.ask(self._space)
        genome = self._genome(trial.params)
        self._waiting.setdefault(genome, deque()).append(trial.number)
        self._proposed += 1
        return Proposal(genome)

    def _begin_at(self, start: Mapping[str, Any]) -> None:
        """Propose these parameters first, unless they were injected."""
        if all(trial.params != start for trial in self._study.get_trials(deepcopy=False)):
            self._study.enqueue_trial(dict(start))

    def _genome(self, params: Mapping[str, Any]) -> Genome:
        values: list[Value] = []
        for gene in self._spec:
            value = params.get(gene.name, gene.start)
            on_grid = gene.kind == "continuous" and gene.resolution is not None and gene.name in params
            values.append(gene.low + value * gene.resolution if on_grid else value)
        return self._spec.genome(values)


def _distribution(gene: Gene) -> BaseDistribution | None:
    """The gene as Optuna sees it, ``None`` for one value. Grids are whole numbers of steps."""
    if gene.kind == "boolean":
        return CategoricalDistribution((False, True))
    if gene.kind == "categorical":
        return CategoricalDistribution(gene.choices) if len(gene.choices) > 1 else None
    if gene.kind == "integer":
        low, high = math.ceil(gene.low), math.floor(gene.high)
        return IntDistribution(low, high) if low < high else None
    if gene.low == gene.high:
        return None
    if gene.resolution is None:
        return FloatDistribution(gene.low, gene.high)
    return IntDistribution(0, math.floor((gene.high - gene.low) / gene.resolution + 1e-9))


def _parameter(gene: Gene, value: Value) -> Any:
    """A value of the gene as Optuna counts it."""
    if gene.kind == "continuous" and gene.resolution is not None:
        return round((float(value) - gene.low) / gene.resolution)
    return value
