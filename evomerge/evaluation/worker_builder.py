"""How workers are made where they will live."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from evomerge.evaluation.cache_settings import CacheSettings
from evomerge.protocols import Evaluator

if TYPE_CHECKING:
    from evomerge.evaluation.worker import Worker


BuiltFrom = Literal["fitnesses", "worker", "shipped worker"]
"""What the class of an evaluator is given first, its attribute `built_from`: the fitnesses by split where genomes are
the models; a `WorkerBuilder` for this process; one that travels to other processes and opens its own pool there."""


class WorkerBuilder(Protocol):
    """Builds a worker where it will live; picklable when it is to travel.

    One whose workers take several candidates at once has an attribute ``together`` that says how many.
    """

    def __call__(self, *, device: str, threads: int | None, cache: CacheSettings) -> Worker:
        """Open the pool and build the worker."""


@dataclass(frozen=True)
class ShippedBuilder:
    """A builder, the files and folders with modules that it needs where they are not installed, and how many candidates
    its workers take at once."""

    build: WorkerBuilder
    modules: tuple[str, ...]
    together: int = 1

    def __call__(self, *, device: str, threads: int | None, cache: CacheSettings) -> Worker:
        """Build the worker."""
        return self.build(device=device, threads=threads, cache=cache)


def together_of(build: WorkerBuilder) -> int:
    """How many candidates a worker takes at once."""
    return max(1, int(getattr(build, "together", 1)))


def workers_of(evaluator: Evaluator) -> int:
    """How many workers an evaluator has, each of which may take several candidates at once."""
    return max(1, evaluator.slots // max(1, int(getattr(evaluator, "together", 1))))
