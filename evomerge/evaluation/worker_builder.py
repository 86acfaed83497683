"""How workers are made where they will live."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from evomerge.evaluation.cache_settings import CacheSettings

if TYPE_CHECKING:
    from evomerge.evaluation.worker import Worker


BuiltFrom = Literal["fitnesses", "worker", "shipped worker"]
"""What the class of an evaluator is given first, its attribute `built_from`: the fitnesses by split where genomes are
the models; a `WorkerBuilder` for this process; one that travels to other processes and opens its own pool there."""


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
