"""How workers are made where they will live."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from evomerge.evaluation.cache_settings import CacheSettings

if TYPE_CHECKING:
    from evomerge.evaluation.worker import Worker


class WorkerBuilder(Protocol):
    """Builds a worker where it will live; picklable when it is to travel."""

    def __call__(self, *, device: str, threads: int | None, cache: CacheSettings) -> Worker:
        """Open the pool and build the worker."""


@dataclass(frozen=True)
class ShippedBuilder:
    """A builder, and the files and folders with modules that it needs where they are not installed."""

    build: WorkerBuilder
    modules: tuple[str, ...]

    def __call__(self, *, device: str, threads: int | None, cache: CacheSettings) -> Worker:
        """Build the worker."""
        return self.build(device=device, threads=threads, cache=cache)
