"""An evaluator without models: a fitness scores the genomes themselves, in this process."""

from __future__ import annotations

import traceback
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any, ClassVar, Protocol, cast

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from evomerge.candidate import Candidate, Evaluation, Part, Split
from evomerge.errors import ConfigError, EvomergeError, one_line
from evomerge.evaluation.worker_builder import BuiltFrom
from evomerge.genomes.arrays import numbers
from evomerge.genomes.genome import Genome
from evomerge.objectives import Objective
from evomerge.protocols import Scores


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
        """Score one array, which stays as it is. `FitnessError` for one that has no score.

        Threads call it at the same time where `evaluator.workers` is more than one.
        """

    def fingerprint(self) -> str:
        """Hash of the items and of how they are scored."""


class GenomeFitness(Protocol):
    """Scores genomes of named genes: as `ArrayFitness`, but for its method `score_genome`.

    One that has a method ``items() -> Mapping[str, int]`` says how many items each task has: see `protocols.Fitness`.
    """

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """What a search optimises, in order."""

    def check(self) -> None:
        """Raise `FitnessError` for all that can be seen without a genome."""

    def cautions(self) -> Sequence[str]:
        """What makes a search on these items hard to trust, a line each."""

    def score_genome(self, genome: Genome, part: Part | None = None) -> Scores:
        """Score one genome on some items, or on all. `EvomergeError` for one that has no score.

        Threads call it at the same time where `evaluator.workers` is more than one.
        """

    def fingerprint(self) -> str:
        """Hash of the items and of how they are scored."""


class DirectEvaluator:
    """Hands each candidate's genome to a fitness of arrays or of genomes; implements `protocols.Evaluator`.

    Args:
        fitnesses: by split; ``search`` must be among them.
        workers: how many genomes are scored at once, each by a thread of its own with one thread of BLAS. One scores
            in the caller's thread and leaves BLAS as it is. Several are of use to a search that has more than one
            candidate in flight (`search.in_flight`).

    Raises:
        ConfigError: a fitness that scores models; no worker.
    """

    built_from: ClassVar[BuiltFrom] = "fitnesses"

    def __init__(self, fitnesses: Mapping[Split, ArrayFitness | GenomeFitness], *, workers: int = 1) -> None:
        for split, fitness in fitnesses.items():
            if not (hasattr(fitness, "score") or hasattr(fitness, "score_genome")):
                raise ConfigError(
                    f"the {split} fitness {type(fitness).__name__} scores models",
                    "evaluator=direct needs one that scores arrays or genomes",
                    "choose another fitness, such as digits or surrogate, or evaluator=local",
                )
        if workers < 1:
            raise ConfigError(f"evaluator.workers is {workers}", "at least 1")
        self._fitnesses, self._workers = dict(fitnesses), workers
        self._queue: deque[tuple[Candidate, Split]] = deque()
        self._threads: ThreadPoolExecutor | None = None
        self._begun: dict[int, Future[Evaluation]] = {}
        self._done: SimpleQueue[Future[Evaluation]] = SimpleQueue()
        self._limits: threadpool_limits | None = None

    @property
    def slots(self) -> int:
        """The workers."""
        return self._workers

    def submit(self, candidate: Candidate, split: Split = "search") -> None:
        """Queue a candidate."""
        if self._workers == 1:
            self._queue.append((candidate, split))
            return
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self._workers, "evaluation")
            self._limits = threadpool_limits(1, user_api="blas")
        future = self._begun[candidate.id] = self._threads.submit(self._evaluate, candidate, split)
        future.add_done_callback(self._done.put)

    def collect(self) -> Evaluation:
        """Score the oldest queued candidate; with several workers, wait for any."""
        if self._queue:
            return self._evaluate(*self._queue.popleft())
        while (future := self._done.get()).cancelled():
            pass
        evaluation = future.result()
        del self._begun[evaluation.candidate]
        return evaluation

    def withdraw(self) -> list[int]:
        """Forget all that is queued; returns the candidates' ids."""
        ids = [candidate.id for candidate, _ in self._queue]
        self._queue.clear()
        for number, future in list(self._begun.items()):
            if future.cancel():
                ids.append(number)
                del self._begun[number]
        return ids

    def fingerprint(self, split: Split) -> str:
        """The fingerprint of a split's fitness."""
        return self._fitnesses[split].fingerprint()

    def close(self) -> None:
        """End the threads, and give BLAS back those that it had."""
        if self._threads is not None and self._limits is not None:
            self._threads.shutdown(cancel_futures=True)
            self._limits.restore_original_limits()
            self._threads = self._limits = None

    def _evaluate(self, candidate: Candidate, split: Split) -> Evaluation:
        if candidate.genome is None:
            return Evaluation(candidate.id, "failed", split, error="there is no genome to score")
        try:
            scores = self._scores(candidate.genome, candidate.part, self._fitnesses[split])
        except Exception as error:
            trace = "" if isinstance(error, EvomergeError) else traceback.format_exc()
            return Evaluation(candidate.id, "failed", split, error=one_line(error), traceback=trace)
        return Evaluation(
            candidate.id,
            "ok",
            split,
            scores.objectives,
            scores.metrics,
            scores.items,
            scores.seconds,
            responses=scores.responses,
        )

    @staticmethod
    def _scores(genome: Genome, part: Part | None, fitness: Any) -> Scores:
        """What its fitness says; one of arrays has no items by which it could be asked for a part."""
        if hasattr(fitness, "score_genome"):
            return cast(GenomeFitness, fitness).score_genome(genome, part)
        return cast(ArrayFitness, fitness).score(numbers(genome).astype(np.float32, copy=False))
