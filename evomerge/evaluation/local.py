"""The evaluator of a laptop: one worker in this process."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence

from evomerge.candidate import Candidate, Evaluation, Split
from evomerge.evaluation.building import WorkerBuilder
from evomerge.evaluation.cache_settings import CacheSettings
from evomerge.evaluation.worker import Worker
from evomerge.protocols import Work

_NAME = "this process"


class LocalEvaluator:
    """Evaluates in this process, one candidate at a time. Never imports ray.

    Args:
        build: makes the worker, when the first candidate arrives.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        threads: CPU threads of torch; ``None`` leaves torch's own choice.
        cache: bytes of merged slices to keep (``2GB``); ``auto`` for a quarter of what is free.
        shared_cache: ``off`` (and ``auto``), ``memory``, ``disk``, or a folder that outlives the run.
        shared_cache_size: its bytes.
    """

    def __init__(
        self,
        build: WorkerBuilder,
        *,
        device: str = "auto",
        threads: int | None = None,
        cache: str | int = "auto",
        shared_cache: str = "auto",
        shared_cache_size: str | int = "auto",
    ) -> None:
        self._build = build
        self._cache = CacheSettings.of(cache, shared_cache, shared_cache_size)
        self._device, self._threads = device, threads
        self._worker: Worker | None = None
        self._doing = Work(_NAME)
        self._queue: deque[tuple[Candidate, Split]] = deque()

    @property
    def slots(self) -> int:
        """One: the process evaluates while it is asked to."""
        return 1

    @property
    def worker(self) -> Worker:
        """The worker, built at first use."""
        if self._worker is None:
            self._worker = self._build(device=self._device, threads=self._threads, cache=self._cache)
        return self._worker

    def submit(self, candidate: Candidate, split: Split = "search") -> None:
        """Queue a candidate."""
        self._queue.append((candidate, split))

    def collect(self) -> Evaluation:
        """Evaluate the oldest queued candidate."""
        candidate, split = self._queue.popleft()
        self._doing = Work(_NAME, candidate.id, split, time.time())
        try:
            return self.worker.evaluate(candidate, split)
        finally:
            self._doing = Work(_NAME)

    def work(self) -> Sequence[Work]:
        """What the worker does; another thread may ask."""
        return (self._doing,)

    def withdraw(self) -> list[int]:
        """Forget all that is queued; returns the candidates' ids."""
        ids = [candidate.id for candidate, _ in self._queue]
        self._queue.clear()
        return ids

    def fingerprint(self, split: Split) -> str:
        """The fingerprint of a split's fitness."""
        return self.worker.fitness(split).fingerprint()

    def close(self) -> None:
        """Let the resident model and the caches go."""
        if self._worker is not None:
            self._worker.close()
        self._worker = None
