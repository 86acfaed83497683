"""An evaluator without models: a fitness scores the genomes' own arrays, in this process."""

from __future__ import annotations

import traceback
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from evomerge.array_genome import numbers
from evomerge.candidate import Candidate, Evaluation, Split
from evomerge.errors import ConfigError, EvomergeError
from evomerge.evaluation.failures import one_line
from evomerge.protocols import Objective, Scores


class ArrayFitness(Protocol):
    """Scores arrays of numbers. Constructed from its config alone."""

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """What a search optimises, in order."""

    def check(self) -> None:
        """Raise `FitnessError` for all that can be seen without an array."""

    def cautions(self) -> Sequence[str]:
        """What makes a search on these items hard to trust, a line each."""

    def score(self, weights: NDArray[np.float32]) -> Scores:
        """Score one array, which stays as it is. `FitnessError` for one that has no score."""

    def fingerprint(self) -> str:
        """Hash of the items and of how they are scored."""


class DirectEvaluator:
    """Hands each candidate's genome to an `ArrayFitness`; implements `protocols.Evaluator`.

    Args:
        fitnesses: by split; ``search`` must be among them.

    Raises:
        ConfigError: a fitness that scores models, not arrays.
    """

    def __init__(self, fitnesses: Mapping[Split, ArrayFitness]) -> None:
        for split, fitness in fitnesses.items():
            if not hasattr(fitness, "score"):
                raise ConfigError(
                    f"the {split} fitness {type(fitness).__name__} scores models",
                    "evaluator=direct needs one that scores arrays",
                    "choose another fitness, such as digits, or evaluator=local",
                )
        self._fitnesses = dict(fitnesses)
        self._queue: deque[tuple[Candidate, Split]] = deque()

    @property
    def slots(self) -> int:
        """One: the process evaluates while it is asked to."""
        return 1

    def submit(self, candidate: Candidate, split: Split = "search") -> None:
        """Queue a candidate."""
        self._queue.append((candidate, split))

    def collect(self) -> Evaluation:
        """Score the oldest queued candidate."""
        candidate, split = self._queue.popleft()
        if candidate.genome is None:
            return Evaluation(candidate.id, "failed", split, error="there is no genome to score")
        try:
            scores = self._fitnesses[split].score(numbers(candidate.genome).astype(np.float32, copy=False))
        except Exception as error:
            trace = "" if isinstance(error, EvomergeError) else traceback.format_exc()
            return Evaluation(candidate.id, "failed", split, error=one_line(error), traceback=trace)
        return Evaluation(candidate.id, "ok", split, scores.objectives, scores.metrics, scores.items, scores.seconds)

    def withdraw(self) -> list[int]:
        """Forget all that is queued; returns the candidates' ids."""
        ids = [candidate.id for candidate, _ in self._queue]
        self._queue.clear()
        return ids

    def fingerprint(self, split: Split) -> str:
        """The fingerprint of a split's fitness."""
        return self._fitnesses[split].fingerprint()

    def close(self) -> None:
        """Nothing is held."""
