"""How workers are made where they will live."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from evomerge.evaluation.cache_settings import CacheSettings

if TYPE_CHECKING:
    from evomerge.evaluation.worker import Worker


class WorkerBuilder(Protocol):
    """Builds a worker where it will live; picklable when it is to travel."""

    def __call__(self, *, device: str, threads: int | None, cache: CacheSettings) -> Worker:
        """Open the pool and build the worker."""
