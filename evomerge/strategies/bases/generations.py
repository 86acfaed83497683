"""What strategies that move by whole generations share: portions, ranks, and a state that is replayed."""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from evomerge.candidate import Candidate, Evaluation
from evomerge.errors import FitnessError
from evomerge.genomes.genome import Genome, GenomeSpec
from evomerge.objectives import Objective
from evomerge.protocols import Proposal
from evomerge.strategies.bases.capabilities import KINDS, require
from evomerge.strategies.bases.saving import check_settings, settings_of

Array = NDArray[np.float64]


def gain_of(evaluation: Evaluation, objective: Objective) -> float:
    """The objective with larger being better, or NaN when there is nothing to learn from it.

    Raises:
        FitnessError: the evaluation is ok and lacks the objective.
    """
    if not evaluation.ok:
        return math.nan
    if objective.name not in evaluation.objectives:
        raise FitnessError(
            f"the evaluation of candidate {evaluation.candidate} has no objective {objective.name!r}",
            f"it has {', '.join(evaluation.objectives) or 'none'}",
        )
    gain = objective.gain(evaluation.objectives[objective.name])
    return gain if math.isfinite(gain) else math.nan


def ranks_of(gains: Array) -> NDArray[np.int64]:
    """The place of each gain, 0 for the largest; NaN last, equals in their order on every machine."""
    ranks = np.empty(len(gains), dtype=np.int64)
    ranks[np.argsort(-gains, kind="stable")] = np.arange(len(gains))
    return ranks


class Generations(ABC):
    """A strategy for one objective that samples a generation at once and moves when all of it was told.

    `ask` hands a generation out in any portions, and returns nothing more until all of it has been told, in any
    order. Candidates that were not proposed (baselines) and candidates told a second time are ignored; two equal
    proposals of a generation are told in the order in which they were asked. A generation in which nothing is ok
    moves nothing: the next is drawn from the same distribution.

    The state is the seed and all gains that were told: the same seed draws the same points, and the same gains move
    the distribution in the same way. Sub-classes hold the distribution.
    """

    title: ClassVar[str] = "strategy"
    asynchronous: bool = False  # an instance's own, see `Arrivals`
    multi_objective: ClassVar[bool] = False
    by_generation: ClassVar[bool] = True
    kinds: ClassVar[frozenset[str]] = KINDS

    _history: list[Array]  # of all generations told, their gains; a generation may be larger than the one before
    _genomes: list[Genome]  # the present generation
    _asked: int  # how many of them were handed out
    _gains: Array
    _told: NDArray[np.bool_]
    _waiting: dict[Genome, deque[int]]  # handed out and not told: numbers within the generation

    def __init__(self, spec: GenomeSpec, objectives: Sequence[Objective], *, seed: int, popsize: int) -> None:
        require(type(self), self.title, spec, objectives, seed)
        self._spec = spec
        self._objective = objectives[0]
        self._first = self._popsize = popsize
        self._begin(seed)

    @property
    def popsize(self) -> int:
        """Candidates of a generation."""
        return self._popsize

    @abstractmethod
    def _settings(self) -> dict[str, Any]:
        """What a saved state must agree on, besides genes, objective and population."""

    @abstractmethod
    def _start(self, seed: int) -> None:
        """Begin from nothing."""

    @abstractmethod
    def _draw(self) -> list[Genome]:
        """Sample a generation."""

    @abstractmethod
    def _move(self, gains: Array) -> None:
        """Learn from a generation; at least one of its gains is not NaN."""

    @abstractmethod
    def _drawn(self) -> dict[str, Any]:
        """The present generation as arrays, empty ones while there is none."""

    @abstractmethod
    def _take(self, drawn: Mapping[str, Any]) -> list[Genome]:
        """Replace the present generation by what `_drawn` gave."""

    def ask(self, n: int | None = None) -> list[Proposal]:
        """Up to `n` proposals of the present generation, all that remain for ``None``."""
        if not self._genomes:
            self._genomes = self._draw()
        end = self._popsize if n is None else min(self._asked + max(n, 0), self._popsize)
        proposals = [Proposal(genome) for genome in self._genomes[self._asked : end]]
        for index in range(self._asked, end):
            self._waiting.setdefault(self._genomes[index], deque()).append(index)
        self._asked = end
        return proposals

    def tell(self, candidate: Candidate, evaluation: Evaluation) -> None:
        """Keep the score; move the distribution when it is the generation's last.

        Raises:
            FitnessError: the evaluation is ok and lacks the objective; the candidate stays in flight.
        """
        waiting = self._waiting.get(candidate.genome) if candidate.genome is not None else None
        if not waiting:
            return
        gain = self._gain(waiting[0], candidate, evaluation)
        self._arrive(waiting.popleft(), gain)

    def state_dict(self) -> dict[str, Any]:
        """Seed, settings and the gains of all generations (higher is better, NaN for failures)."""
        sizes = [len(gains) for gains in self._history]
        grown = {"sizes": np.array(sizes, dtype=np.int64)} if {*sizes, self._popsize} != {self._popsize} else {}
        gains = np.concatenate([np.empty(0), *self._history])
        return {
            "seed": self._seed,
            "settings": self._agreed(),
            "history": gains if grown else gains.reshape(-1, self._popsize),
            **grown,
            "sampled": bool(self._genomes),
            "asked": self._asked,
            "gains": self._gains.copy(),
            "told": self._told.copy(),
            **self._drawn(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Draw and learn again all that `state` tells of.

        Should this machine's numpy or linear algebra round differently, the present generation is taken
        from the state, a warning is given, and the search goes on without being bit for bit the same.

        Raises:
            ConfigError: the state is of a strategy with other settings or genes.
        """
        self._check(state)
        self._begin(int(state["seed"]))
        for gains in _generations(state):
            self._genomes = self._draw()
            self._learn(gains)
        if not state["sampled"]:
            return
        self._genomes = self._draw()
        if any(not np.array_equal(state[name], value) for name, value in self._drawn().items()):
            warnings.warn(self._not_repeated(), stacklevel=2)
            self._genomes = self._take(state)
        self._asked = int(state["asked"])
        self._gains = np.array(state["gains"], dtype=np.float64)
        self._told = np.array(state["told"], dtype=np.bool_)
        for index in np.flatnonzero(~self._told[: self._asked]):
            self._waiting.setdefault(self._genomes[index], deque()).append(int(index))

    def _arrive(self, number: int, gain: float) -> None:
        """Keep the gain of a candidate by its number; move when it is the generation's last."""
        self._gains[number] = gain
        self._told[number] = True
        if self._told.all():
            self._learn(self._gains)

    def _gain(self, index: int, candidate: Candidate, evaluation: Evaluation) -> float:
        """The gain of a candidate by its number within the generation, NaN where there is nothing to learn from.

        Raises:
            FitnessError: the evaluation is ok and lacks something; nothing has changed then.
        """
        return gain_of(evaluation, self._objective)

    def _check(self, state: Mapping[str, Any]) -> None:
        check_settings(self.title, self._agreed(), state["settings"])

    def _not_repeated(self) -> str:
        return (
            f"this machine does not repeat the saved {self.title} bit for bit (another numpy, processor or thread "
            "count); the search goes on from the saved generation"
        )

    def _agreed(self) -> dict[str, Any]:
        return settings_of(self._spec, [self._objective], popsize=self._first, **self._settings())

    def _begin(self, seed: int) -> None:
        self._seed, self._popsize = seed, self._first
        self._history = []
        self._clear()
        self._start(seed)

    def _clear(self) -> None:
        """Forget the present generation."""
        self._genomes = []
        self._asked = 0
        self._gains = np.full(self._popsize, np.nan)
        self._told = np.zeros(self._popsize, dtype=np.bool_)
        self._waiting = {}

    def _learn(self, gains: Array) -> None:
        """Move the distribution by the ranks of a whole generation."""
        if not np.isnan(gains).all():
            self._move(gains)
        self._history.append(np.array(gains))
        self._clear()


def _generations(state: Mapping[str, Any]) -> list[Array]:
    """The gains of each generation of a saved history."""
    history = np.asarray(state["history"], dtype=np.float64)
    return np.split(history, np.cumsum(state["sizes"])[:-1]) if "sizes" in state else list(history)
