"""Evolution strategies that move as evaluations arrive: no worker ever waits for the slowest of a generation."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evomerge.genomes.genome import Genome, GenomeSpec
from evomerge.objectives import Objective
from evomerge.protocols import Proposal
from evomerge.strategies.bases.conditional import Active
from evomerge.strategies.bases.generations import Array, Generations
from evomerge.strategies.bases.promising import Given, Promising, check_warm_start
from evomerge.strategies.bases.saving import check_settings

FOLLOWED = 0.5
"""The share of the mean's way since it was drawn that a sample is taken along before it is learnt from.

Samples of an earlier distribution lie around an earlier mean. Learnt from where they are (0: injected, Hansen, arXiv
1110.4181) they pull the mean back on its way: the fastest on the sphere, but the step size collapses on ill-conditioned
functions. Taken along the whole way (1: the step that would have been taken then, as in delayed gradients), they
overshoot on the sphere. Half way was as good as by generations, or better, on sphere and Rastrigin, and the best
compromise on an ellipsoid of condition 1000, with as many and with four times as many workers as a generation has
members.
"""


@dataclass(frozen=True)
class Sample:
    """A point of a distribution.

    Attributes:
        point: where it is, in the coordinates of the distribution, shape ``(numbers,)``.
        mean: of the distribution that it was drawn from, same coordinates and shape.
        choices: of its categorical variables, as the strategy writes them.
        moves: how often the distribution had moved.
    """

    point: Array
    mean: Array
    choices: NDArray[Any]
    moves: int

    def followed(self, mean: Array) -> Array:
        """The point, taken along with the mean."""
        return self.point + FOLLOWED * (mean - self.mean)


def longest(dimensions: int) -> float:
    """The Mahalanobis length that points of other distributions are shortened to (arXiv 1110.4181, equation 5)."""
    return float(np.sqrt(dimensions) + 2 * dimensions / (dimensions + 2))


class Arrivals(Generations):
    """Generations that can also be learnt from as they arrive.

    With `asynchronous`, `ask` draws from the distribution as it is, and `tell` moves it whenever as many candidates as
    a generation has were told, whichever distribution these were drawn from. Samples of an earlier one are taken
    along with the mean (`FOLLOWED`), and no longer than Hansen's bound for injected points (`longest`).

    The state is what was told, each with the number of candidates that had been asked by then: drawn and told again,
    they make the same distribution.
    """

    _samples: dict[int, Sample]  # asked and not told, by number
    _arrived: list[tuple[Sample, float]]  # told, not learnt from yet, and their gains
    _events: list[tuple[int, int, float]]  # of each candidate told: asked by then, its number, its gain

    def __init__(
        self,
        spec: GenomeSpec,
        objectives: Sequence[Objective],
        *,
        seed: int,
        popsize: int,
        asynchronous: bool,
        conditional: bool = False,
        warm_start: Given = False,
    ) -> None:
        check_warm_start(warm_start)
        self.asynchronous = asynchronous
        self._conditional, self._warm_start = conditional, warm_start
        self._active: Active | None = None
        self._prior: Promising | None = None
        super().__init__(spec, objectives, seed=seed, popsize=popsize)

    def know_active(self, active: Active) -> None:
        """Be told which genes act; implements `conditional.Conditional`."""
        self._active = active if self._conditional else None

    def begin_from(self, genomes: Sequence[Genome]) -> None:
        """Begin with the distribution of the best of these, the best of all first; nothing was asked before."""
        self._prior = self._promising(genomes)
        if self._prior is not None:
            self._begin(self._seed)

    @abstractmethod
    def _promising(self, genomes: Sequence[Genome]) -> Promising | None:
        """Their distribution, in coordinates and choices of the strategy's own; ``None`` for too few."""

    @abstractmethod
    def _sample(self) -> tuple[Genome, Sample]:
        """Draw one point."""

    @abstractmethod
    def _restored(self, point: Array, choices: NDArray[Any], moves: int) -> tuple[Genome, Sample]:
        """A point that another machine drew."""

    @abstractmethod
    def _replace(self, samples: Sequence[Sample]) -> None:
        """Make these the present generation."""

    def _check(self, state: Mapping[str, Any]) -> None:
        # States of old runs do not say.
        old = {"asynchronous": False, "conditional": False, "restarts": None}
        ours = {"asynchronous": self.asynchronous, "conditional": self._conditional}
        check_settings(self.title, {**ours, **self._agreed()}, {**old, **state["settings"]})

    def _counts(self, sample: Sample) -> bool:
        """Whether there is something to learn from a sample: not of what is over."""
        return True

    def ask(self, n: int | None = None) -> list[Proposal]:
        """Up to `n` proposals, a generation for ``None``; as they arrive, there are always as many as wanted."""
        if not self.asynchronous:
            return super().ask(n)
        proposals = []
        for _ in range(self._popsize if n is None else max(n, 0)):
            genome, sample = self._sample()
            self._submit(self._asked, genome, sample)
            self._asked += 1
            proposals.append(Proposal(genome))
        return proposals

    def state_dict(self) -> dict[str, Any]:
        """See `Generations.state_dict`; as they arrive, the events and the candidates in flight."""
        prior = {} if self._prior is None else {"prior": self._prior.state()}
        if not self.asynchronous:
            return {**super().state_dict(), **prior}
        asked, numbers, gains = np.array(self._events, dtype=np.float64).reshape(-1, 3).T
        numbers_in_flight = sorted(self._samples)
        flying = [self._samples[number] for number in numbers_in_flight]
        return {
            **prior,
            "seed": self._seed,
            "settings": self._agreed(),
            "asked": self._asked,
            "asked_by": asked.astype(np.int64),
            "numbers": numbers.astype(np.int64),
            "gains": gains.copy(),
            "in_flight": np.array(numbers_in_flight, dtype=np.int64),
            "points": np.array([sample.point for sample in flying]),
            "choices": np.array([sample.choices for sample in flying]),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `Generations.load_state_dict`; where this machine rounds differently, points in flight are the saved."""
        self._check(state)
        self._prior = Promising.of_state(state.get("prior"))
        if not self.asynchronous:
            super().load_state_dict(state)
            return
        self._begin(int(state["seed"]))
        genomes: dict[int, Genome] = {}

        def ask_until(count: int) -> None:
            for proposal in self.ask(count - self._asked):
                genomes[self._asked - count + len(genomes)] = proposal.genome

        for asked, number, gain in zip(state["asked_by"], state["numbers"], state["gains"], strict=True):
            ask_until(int(asked))
            self._arrive(int(number), float(gain))
        ask_until(int(state["asked"]))
        self._take_saved(state)

    def _take_saved(self, state: Mapping[str, Any]) -> None:
        """Those in flight, in the order asked, as saved."""
        self._waiting.clear()
        other = False
        for number, point, choices in zip(state["in_flight"], state["points"], state["choices"], strict=True):
            drawn = self._samples[int(number)]
            other = other or not (np.array_equal(drawn.point, point) and np.array_equal(drawn.choices, choices))
            genome, sample = self._restored(np.array(point), np.array(choices), drawn.moves)
            self._submit(int(number), genome, sample if other else drawn)
        if other:
            warnings.warn(self._not_repeated(), stacklevel=3)

    def _submit(self, number: int, genome: Genome, sample: Sample) -> None:
        self._samples[number] = sample
        self._waiting.setdefault(genome, deque()).append(number)

    def _arrive(self, number: int, gain: float) -> None:
        if not self.asynchronous:
            super()._arrive(number, gain)
            return
        self._events.append((self._asked, number, gain))
        sample = self._samples.pop(number)
        if self._counts(sample):
            self._arrived.append((sample, gain))
        if len(self._arrived) >= self._popsize:
            gains = np.array([gain for _, gain in self._arrived])
            if not np.isnan(gains).all():
                self._replace([sample for sample, _ in self._arrived])
                self._move(gains)
            self._arrived = []

    def _clear(self) -> None:
        super()._clear()
        self._samples, self._arrived, self._events = {}, [], []
