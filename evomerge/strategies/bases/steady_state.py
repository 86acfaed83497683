"""What strategies share that move with every evaluation: first genomes, what is in flight, and the saved state."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from evomerge.candidate import Candidate, Evaluation
from evomerge.errors import ConfigError
from evomerge.genomes.genome import GenomeSpec
from evomerge.objectives import Objective
from evomerge.protocols import Proposal
from evomerge.strategies.bases.capabilities import KINDS, check_range, require
from evomerge.strategies.bases.saving import InFlight, check_settings, rng_state, settings_of, starts_of
from evomerge.strategies.variation.coordinates import Coordinates, Spread

Array = NDArray[np.float64]
Choices = NDArray[np.int64]


FIRST, VARIED = 0, 1
"""Numbers of proposals: of first genomes, and of variations where these need not be told apart."""


class SteadyState(ABC):
    """A strategy that proposes one genome at a time, from all that has been told by then.

    The first proposals are the spec's start (and its seeds, if it has any), unless they were injected before, and
    random genomes, for as long as the sub-class wants these; from then on it varies what it holds. `ask` never waits:
    how many are in flight, and in which order they are told, is free. Candidates that were not proposed (baselines)
    and candidates told a second time are ignored; `inject` takes in others.

    Args:
        spec, objectives, seed: as of every strategy.
        spread: standard deviation of the first random numbers around the start, in units of a gene's range; uniform
            within bounds for ``None``; for ``auto`` as near the start as genes say, uniform where they do not.
        batch: how many ``ask(None)`` proposes.
    """

    title: ClassVar[str]
    asynchronous: ClassVar[bool] = True
    multi_objective: ClassVar[bool] = False
    kinds: ClassVar[frozenset[str]] = KINDS

    def __init__(
        self, spec: GenomeSpec, objectives: Sequence[Objective], *, seed: int, spread: Spread, batch: int
    ) -> None:
        require(type(self), self.title, spec, objectives, seed)
        if isinstance(spread, str) and spread != "auto":
            raise ConfigError(f"strategy.spread is {spread!r}", "0 to 1, auto, or null")
        check_range("spread", 0 if spread is None or spread == "auto" else spread, 0, 1)
        check_range("batch", batch, 1, math.inf)
        self._spec, self._objective = spec, objectives[0]
        self._spread, self._batch = spread, batch
        self._coordinates = Coordinates(spec)
        self._counts = np.array(self._coordinates.counts, dtype=np.int64)
        self._rng = np.random.default_rng(seed)
        self._flight = InFlight(self._coordinates)
        self._starts = starts_of(spec, self._coordinates)
        self._known: set[int] = set()  # the starts that were injected
        self._proposed = 0

    @abstractmethod
    def _settings(self) -> dict[str, Any]:
        """What a saved state must agree on, besides genes, objective and spread."""

    @abstractmethod
    def _begun(self) -> bool:
        """Whether there are enough first genomes."""

    @abstractmethod
    def _varied(self) -> tuple[Array, Choices, int, tuple[int, ...]]:
        """Coordinates and choices made from what is held, a number for `_learn` to know them by, and the parents."""

    @abstractmethod
    def _learn(self, point: Array, choices: Choices, tag: int | None, candidate: Candidate, told: Evaluation) -> None:
        """Take in a candidate: what was proposed with the number `tag`; ``None`` for one from elsewhere.

        Raises:
            FitnessError: the evaluation is ok and lacks something; nothing must have changed then.
        """

    @abstractmethod
    def _held(self) -> dict[str, Any]:
        """What it holds, as JSON values and arrays."""

    @abstractmethod
    def _hold(self, state: Mapping[str, Any]) -> None:
        """Hold what `_held` gave; what is in flight is known by then."""

    def ask(self, n: int | None = None) -> list[Proposal]:
        """`n` proposals, or a batch."""
        return [self._propose() for _ in range(self._batch if n is None else max(n, 0))]

    def tell(self, candidate: Candidate, evaluation: Evaluation) -> None:
        """Learn from a proposal that was evaluated.

        Raises:
            FitnessError: the evaluation is ok and lacks the objective; the candidate stays in flight.
        """
        row = self._flight.first(candidate.genome)
        if row is not None:
            self._learn(*row, candidate, evaluation)
            self._flight.take(candidate.genome)

    def inject(self, candidate: Candidate, evaluation: Evaluation) -> None:
        """Take in a candidate from elsewhere, as far as it is good enough."""
        if candidate.genome is None:
            return
        self._learn(*self._coordinates.point(candidate.genome), None, candidate, evaluation)
        for number, start in enumerate(self._starts):
            if number >= self._proposed and self._coordinates.genome(*start) == candidate.genome:
                self._known.add(number)

    def state_dict(self) -> dict[str, Any]:
        """What it holds, what is in flight, and the random generator's state."""
        return {
            "settings": self._agreed(),
            "rng": rng_state(self._rng),
            "flight": self._flight.state(),
            "proposed": self._proposed,
            "known": sorted(self._known),
            **self._held(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue exactly where `state` was taken.

        Raises:
            ConfigError: the state is of a strategy with other settings or genes.
        """
        check_settings(self.title, self._agreed(), state["settings"])
        self._flight.load(state["flight"])
        self._proposed, self._known = int(state["proposed"]), set(map(int, state["known"]))
        self._hold(state)
        self._rng.bit_generator.state = state["rng"]

    def _agreed(self) -> dict[str, Any]:
        return settings_of(self._spec, [self._objective], spread=self._spread, **self._settings())

    def _propose(self) -> Proposal:
        """A genome to start from, a random one, or a variation."""
        while self._proposed in self._known:
            self._proposed += 1
        self._proposed += 1
        if self._proposed <= len(self._starts):
            return Proposal(self._flight.add(*self._starts[self._proposed - 1], FIRST))
        if not self._begun():
            return Proposal(self._flight.add(*self._coordinates.sample(self._rng, self._spread), FIRST))
        point, choices, tag, parents = self._varied()
        return Proposal(self._flight.add(point, choices, tag), parents)
