"""The evaluator of a cluster: Ray actors with one resident model each. The only module that imports ray."""

from __future__ import annotations

import contextlib
import logging
import os
from collections import deque
from functools import partial
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError

from evomerge.candidate import Candidate, Evaluation, Split
from evomerge.errors import ConfigError, EvomergeError
from evomerge.evaluation.caching import CacheSettings, sweep
from evomerge.evaluation.worker import Worker, WorkerBuilder

_TRIES = 2  # a candidate whose worker dies is tried once more on a new worker, then recorded as failed
_CLOSING = 10  # seconds


class _Actor:
    """What runs in the worker process."""

    def __init__(self, build: WorkerBuilder, device: str, threads: int | None, cache: CacheSettings) -> None:
        self._build = partial(build, device=device, threads=threads, cache=cache)
        self._built: Worker | None = None

    def evaluate(self, candidate: Candidate, split: Split) -> Evaluation:
        return self._worker().evaluate(candidate, split)

    def fingerprint(self, split: Split) -> str:
        return self._worker().fitness(split).fingerprint()

    def close(self) -> None:
        if self._built is not None:
            self._built.close()

    def _worker(self) -> Worker:
        # Built by the first call and not by the constructor: what a constructor raises reaches the
        # driver as the actor's death, without the error itself.
        if self._built is None:
            self._built = self._build()
        return self._built


class RayEvaluator:
    """Evaluates on Ray actors, each holding one resident model.

    A worker that dies is replaced and its candidate tried once more.

    Args:
        build: makes a worker inside its actor; travels by pickle.
        workers: number of actors.
        cpus_per_worker, gpus_per_worker: Ray resources of each; GPUs may be a fraction.
        address: of a running cluster; ``None`` starts Ray on this machine for this run.
        device: as in the local evaluator.
        threads: CPU threads of torch in each worker; ``None`` is `cpus_per_worker`.
        cache: bytes of merged slices that each worker keeps (``2GB``); ``auto`` for a quarter of what is free, divided.
        shared_cache: of the workers of a machine: ``memory`` (``auto`` with several workers), ``disk``, ``off``, or a
            folder that outlives the run.
        shared_cache_size: its bytes.
    """

    def __init__(
        self,
        build: WorkerBuilder,
        *,
        workers: int = 2,
        cpus_per_worker: int = 1,
        gpus_per_worker: float = 0,
        address: str | None = None,
        device: str = "auto",
        threads: int | None = None,
        cache: str | int = "auto",
        shared_cache: str = "auto",
        shared_cache_size: str | int = "auto",
    ) -> None:
        if workers < 1 or cpus_per_worker < 1 or gpus_per_worker < 0:
            raise ConfigError(
                f"evaluator.workers={workers}, cpus_per_worker={cpus_per_worker}, gpus_per_worker={gpus_per_worker}",
                "at least one worker, one CPU each, and no negative GPUs",
            )
        self._build, self._workers, self._address = build, workers, address
        settings = CacheSettings.of(cache, shared_cache, shared_cache_size, workers)
        self._arguments = (device, cpus_per_worker if threads is None else threads, settings)
        self._resources = {"num_cpus": cpus_per_worker, "num_gpus": gpus_per_worker}
        self._queue: deque[tuple[Candidate, Split, int]] = deque()
        self._running: dict[Any, tuple[Any, Candidate, Split, int]] = {}
        self._idle: list[Any] = []
        self._started = False
        self._ours = False  # whether this evaluator connected to Ray, and so disconnects

    @property
    def slots(self) -> int:
        """The number of workers."""
        return self._workers

    def submit(self, candidate: Candidate, split: Split = "search") -> None:
        """Queue a candidate; it starts at once when a worker is idle."""
        self._start()
        self._queue.append((candidate, split, 1))
        self._dispatch()

    def collect(self) -> Evaluation:
        """Wait for any running candidate."""
        while True:
            done, _ = ray.wait(list(self._running), num_returns=1)
            actor, candidate, split, tries = self._running.pop(done[0])
            try:
                evaluation: Evaluation = ray.get(done[0])
            except RayActorError as error:
                self._idle.append(self._new_actor())
                reason = str(error).splitlines()[0]
                if tries < _TRIES:
                    self._queue.appendleft((candidate, split, tries + 1))
                    self._dispatch()
                    continue
                evaluation = Evaluation(candidate.id, "failed", split, error=f"its worker died {tries} times: {reason}")
            except RayError as error:
                raise _cause(error) from error
            else:
                self._idle.append(actor)
            self._dispatch()
            return evaluation

    def withdraw(self) -> list[int]:
        """Forget what waits for a worker; returns the candidates' ids."""
        ids = [candidate.id for candidate, _, _ in self._queue]
        self._queue.clear()
        return ids

    def fingerprint(self, split: Split) -> str:
        """The fingerprint of a split's fitness, asked of an idle worker."""
        self._start()
        try:
            return str(ray.get(self._idle[0].fingerprint.remote(split)))
        except RayError as error:
            raise _cause(error) from error

    def close(self) -> None:
        """End the workers, and Ray where this evaluator started it."""
        if self._started:
            with contextlib.suppress(RayError):  # a worker that died has nothing to close
                ray.get([actor.close.remote() for actor in self._idle], timeout=_CLOSING)
            for actor in [*self._idle, *(actor for actor, *_ in self._running.values())]:
                ray.kill(actor)
            sweep()  # what killed workers left behind
        if self._ours:
            ray.shutdown()
            self._ours = False
        self._idle, self._running, self._started = [], {}, False
        self._queue.clear()

    def _start(self) -> None:
        if self._started:
            return
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # CPU actors still see the GPUs as set
        if not ray.is_initialized():
            here: dict[str, Any] = {"num_cpus": self._workers * int(self._resources["num_cpus"])}
            here["include_dashboard"] = False
            where = here if self._address is None else {"address": self._address}
            try:
                ray.init(log_to_driver=False, logging_level=logging.ERROR, **where)
            except (RayError, ConnectionError, ValueError, RuntimeError) as error:
                raise ConfigError(
                    f"Ray did not start: {' '.join(str(error).split())[:300]}",
                    "evaluator.address is a running cluster's, or null to start one here",
                    "check `ray status` and that RAY_AUTH_MODE is the same on both sides",
                ) from error
            self._ours = True
        self._check_capacity()
        self._started = True
        self._idle = [self._new_actor() for _ in range(self._workers)]

    def _check_capacity(self) -> None:
        have = ray.cluster_resources()
        for resource, each in (("CPU", self._resources["num_cpus"]), ("GPU", self._resources["num_gpus"])):
            wanted = each * self._workers
            if wanted > have.get(resource, 0):
                raise ConfigError(
                    f"{self._workers} workers need {wanted:g} {resource}s",
                    f"the cluster has {have.get(resource, 0):g}",
                    "lower evaluator.workers or the resources of each",
                )

    def _new_actor(self) -> Any:
        return ray.remote(_Actor).options(**self._resources).remote(self._build, *self._arguments)

    def _dispatch(self) -> None:
        while self._idle and self._queue:
            candidate, split, tries = self._queue.popleft()
            actor = self._idle.pop(0)
            self._running[actor.evaluate.remote(candidate, split)] = (actor, candidate, split, tries)


def _cause(error: RayError) -> Exception:
    """The error that the worker raised, so that a user reads one line instead of Ray's traceback."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, EvomergeError):
        return cause
    return EvomergeError(f"a Ray worker failed: {' '.join(str(cause or error).split())[:500]}")
