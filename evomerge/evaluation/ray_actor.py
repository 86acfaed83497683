"""A worker as a Ray actor: the calls that reach it, and the errors that it sends back."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import ray
from ray.exceptions import (
    LocalRayletDiedError,
    NodeDiedError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    WorkerCrashedError,
)

from evomerge.candidate import Candidate, Evaluation, Split
from evomerge.errors import EvomergeError
from evomerge.evaluation.cache_settings import CacheSettings
from evomerge.evaluation.ray_groups import memory_of_group
from evomerge.evaluation.worker_builder import WorkerBuilder
from evomerge.utils.installation import VERSION

if TYPE_CHECKING:
    from evomerge.evaluation.worker import Stage, Worker

DEAD = (RayActorError, OutOfMemoryError, NodeDiedError, WorkerCrashedError, LocalRayletDiedError)
"""Errors of calls to a worker that is gone."""

WATCH = "watch"
"""The concurrency group of calls that are answered while a candidate is evaluated."""


class Actor:
    """What runs in the worker process; `grouped` for one whose GPUs are those of its placement group."""

    def __init__(
        self, build: WorkerBuilder, device: str, threads: int | None, cache: CacheSettings, grouped: bool
    ) -> None:
        self._build = partial(build, device=device, threads=threads)
        self._cache, self._grouped = cache, grouped
        self._built: Worker | None = None

    def here(self) -> tuple[str, int]:
        """The node and the process."""
        return ray.get_runtime_context().get_node_id(), os.getpid()

    def begin(self, split: Split) -> tuple[str, str]:
        """Get the model and a split's items; the version of evomerge and the fingerprint of the items.

        Not in the constructor: what that raises reaches the driver as the actor's death, without the error itself.
        """
        if self._built is None:
            cache = replace(self._cache, group=memory_of_group()) if self._grouped else self._cache
            self._built = self._build(cache=cache)
        return VERSION, self._built.fingerprint(split)

    def evaluate(self, candidates: Sequence[Candidate], split: Split) -> tuple[list[Evaluation], float]:
        """The evaluations of candidates, at once where they can be, and the seconds that each took on average."""
        assert self._built is not None
        start = time.perf_counter()
        if len(candidates) == 1:
            found = [self._built.evaluate(candidates[0], split)]
        else:
            found = self._built.evaluate_together(candidates, split)
        return found, (time.perf_counter() - start) / len(candidates)

    def stage(self) -> Stage:
        """What the worker is at; in a thread of its own (`WATCH`), while another evaluates."""
        return self._built.stage() if self._built is not None else ("", 0, 0)

    def close(self) -> None:
        """Leave the shared cache."""
        if self._built is not None:
            self._built.close()


def cause(error: RayError) -> Exception:
    """The error that the worker raised, so that a user reads one line instead of Ray's traceback."""
    raised = getattr(error, "cause", None)
    if isinstance(raised, EvomergeError):
        return raised
    return EvomergeError(f"a Ray worker failed: {' '.join(str(raised or error).split())[:500]}")


def death(error: RayError) -> tuple[str, bool]:
    """How a worker died, and whether what it evaluated may be why."""
    text, memory = " ".join(str(error).split()), isinstance(error, OutOfMemoryError)
    if memory:
        return "Ray ended it because its node ran out of memory", True
    crashed = isinstance(error, WorkerCrashedError) or "worker process has died" in text
    return "killed, or crashed" if crashed else text[:200], crashed
