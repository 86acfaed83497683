"""The evaluator of a cluster: Ray actors with one resident model each. Only the modules `ray_...` here import ray."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import ray
from ray.exceptions import (
    LocalRayletDiedError,
    NodeDiedError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    WorkerCrashedError,
)

from evomerge import __version__
from evomerge.candidate import Candidate, Evaluation, Split
from evomerge.errors import ConfigError, EvomergeError
from evomerge.evaluation.cache_settings import CacheSettings
from evomerge.evaluation.ray_actor import Actor, cause
from evomerge.evaluation.ray_cluster import Cluster
from evomerge.evaluation.scheduler import Job, Scheduler, WorkerSlot
from evomerge.evaluation.worker_builder import WorkerBuilder
from evomerge.protocols import Work

_LOG = logging.getLogger(__name__)
_DEAD = (RayActorError, OutOfMemoryError, NodeDiedError, WorkerCrashedError, LocalRayletDiedError)
_CLOSING = 10  # seconds
_LOOKING = 5.0  # seconds between two looks at what the cluster has room for
_FAILED_STARTS = 3  # one after the other
_BACKOFF = 2.0  # seconds after a failed start, to the power of their number


class _Call(NamedTuple):
    """A call to an actor that is under way: of a job, else for a split, else to say where it is."""

    slot: WorkerSlot
    job: Job | None = None
    split: Split | None = None


class RayEvaluator:
    """Evaluates on Ray actors, each holding one resident model.

    A worker that dies is replaced and its candidate tried again; one whose workers die `tries` times is recorded as
    failed. Nodes may leave and join: workers that have no place start when there is one.

    Args:
        build: makes a worker inside its actor; travels by pickle. Its `modules`, if it has any, are files that the
            workers of other machines need.
        workers: number of actors, or ``auto``: as many as the cluster has room for, at any time.
        cpus_per_worker, gpus_per_worker: Ray resources of each; GPUs may be a fraction.
        address: of a running cluster; ``None`` starts Ray on this machine for this run.
        device: as in the local evaluator; ``auto`` with several GPUs for each worker spreads the model over them.
        threads: CPU threads of torch in each worker; ``None`` is `cpus_per_worker`.
        cache: bytes of merged slices that each worker keeps (``2GB``); ``auto`` for a quarter of what is free, divided.
        shared_cache: of the workers of a machine: ``memory`` (``auto`` with several workers), ``disk``, ``off``, or a
            folder that outlives the run.
        shared_cache_size: its bytes.
        shared_cache_keeps: ``likely``: what is likely wanted again; ``all``: whatever was merged, while there is room.
        timeout: seconds that an evaluation may take; then its worker is replaced, and it has failed.
        tries: how many workers may die evaluating a candidate.
        patience: seconds to wait for a place for a worker while there is no worker.
        working_dir: a folder with files that workers of other machines need; they run in a copy of it.
    """

    def __init__(
        self,
        build: WorkerBuilder,
        *,
        workers: int | str = 2,
        cpus_per_worker: int = 1,
        gpus_per_worker: float = 0,
        address: str | None = None,
        device: str = "auto",
        threads: int | None = None,
        cache: str | int = "auto",
        shared_cache: str = "auto",
        shared_cache_size: str | int = "auto",
        shared_cache_keeps: str = "likely",
        timeout: float | None = None,
        tries: int = 2,
        patience: float = 600,
        working_dir: str | None = None,
    ) -> None:
        if (workers != "auto" and (not isinstance(workers, int) or workers < 1)) or cpus_per_worker < 1:
            raise ConfigError(
                f"evaluator.workers={workers}, cpus_per_worker={cpus_per_worker}",
                "at least one worker (or auto), and one CPU each",
            )
        if gpus_per_worker < 0 or (gpus_per_worker > 1 and gpus_per_worker != int(gpus_per_worker)):
            raise ConfigError(f"evaluator.gpus_per_worker is {gpus_per_worker}", "a whole number, or a fraction of one")
        if tries < 1 or patience <= 0 or (timeout is not None and timeout <= 0):
            raise ConfigError(
                f"evaluator.tries={tries}, patience={patience}, timeout={timeout}", "above 0; timeout may be null"
            )
        self._build, self._workers, self._patience = build, workers, patience
        self._fixed = workers if isinstance(workers, int) else None
        modules = getattr(build, "modules", ())
        self._cluster = Cluster(address, cpus_per_worker, gpus_per_worker, self._fixed, modules, working_dir)
        self._cache = CacheSettings.of(cache, shared_cache, shared_cache_size, shared_cache_keeps, self._fixed or 2)
        several = device == "auto" and gpus_per_worker > 1
        self._device, self._threads = "spread" if several else device, cpus_per_worker if threads is None else threads
        self._scheduler = Scheduler(tries, timeout)
        self._calls: dict[Any, _Call] = {}
        self._done: deque[Evaluation] = deque()
        self._fingerprints: dict[Split, str] = {}
        self._wanted = self._named = self._failed_starts = 0
        self._looked_at = self._start_after = self._no_worker_since = 0.0
        self._first: Split = "search"

    @property
    def slots(self) -> int:
        """The number of workers; with ``auto``, of those that there is room for now."""
        if self._fixed is not None or self._cluster.is_open:
            return self._fixed or max(1, self._wanted)
        if self._cluster.address is None and not self._cluster.gpus:
            return max(1, (os.cpu_count() or 1) // self._cluster.cpus)
        return 1

    def submit(self, candidate: Candidate, split: Split = "search") -> None:
        """Queue a candidate; it starts at once when a worker is free."""
        self._open(split)
        self._scheduler.queue.append(Job(candidate, split))
        self._dispatch()

    def collect(self) -> Evaluation:
        """Wait for any candidate that was submitted.

        Raises:
            EvomergeError: no worker can be had, or none that scores the same items; the cluster has gone.
        """
        while not self._done:
            self._step()
        return self._done.popleft()

    def work(self) -> Sequence[Work]:
        """What each worker does; another thread may ask."""
        doing = []
        for slot in list(self._scheduler.taken):
            jobs = list(slot.jobs)
            busy = Work(slot.name, jobs[0].candidate.id, jobs[0].split, slot.began) if jobs else Work(slot.name)
            doing.append(busy)
        return doing

    def withdraw(self) -> list[int]:
        """Forget what waits for a worker; returns the candidates' ids."""
        return self._scheduler.withdraw()

    def fingerprint(self, split: Split) -> str:
        """The fingerprint of a split's fitness, as the workers prepared it."""
        self._open(split)
        while split not in self._fingerprints:
            for slot in self._scheduler.taken:
                if slot.begun and split not in slot.splits and not slot.jobs:
                    self._prepare(slot, split)
                    break
            self._step()
        return self._fingerprints[split]

    def close(self) -> None:
        """End the workers, and Ray where this evaluator started it."""
        if self._cluster.is_open and not self._cluster.gone:
            idle = [slot.worker for slot in self._scheduler.taken if slot.begun and not slot.jobs]
            with contextlib.suppress(RayError):  # a worker that died has nothing to close
                ray.get([worker.close.remote() for worker in idle], timeout=_CLOSING)
            for slot in self._scheduler.taken:
                ray.kill(slot.worker)
            if self._cache.shared != "off":
                from evomerge.evaluation.caching import sweep

                sweep()  # what killed workers left behind
        self._cluster.close()
        self._scheduler = Scheduler(self._scheduler.tries, self._scheduler.timeout)
        self._calls.clear()
        self._done.clear()
        self._wanted = self._failed_starts = 0
        self._start_after = 0.0

    def _open(self, split: Split) -> None:
        if self._cluster.is_open:
            return
        self._cluster.open()
        self._first = split
        room = self._cluster.room()
        if self._fixed is not None and self._cluster.address is None and sum(room) < self._fixed:
            raise ConfigError(
                f"{self._fixed} workers with {self._cluster.cpus} CPUs and {self._cluster.gpus:g} GPUs each",
                f"this machine has room for {sum(room)}",
                "lower evaluator.workers or the resources of each",
            )
        if self._fixed is not None and sum(room) < self._fixed:
            _LOG.warning(
                "%d of %d workers have a place in the cluster; the others start when nodes join", sum(room), self._fixed
            )
        most = max([1, *room])
        self._cache = replace(self._cache, workers=most if self._fixed is None else min(most, self._fixed))
        self._no_worker_since = time.monotonic()
        self._hire()

    def _step(self) -> None:
        """Wait a little for anything to happen, and see to it."""
        self._hire()
        self._dispatch()
        pause = self._scheduler.pause(1.0)
        if not self._calls:
            time.sleep(min(pause, 0.2))
        else:
            references = list(self._calls)
            ready, rest = ray.wait(references, num_returns=1, timeout=pause)
            if ready and rest:
                ready += ray.wait(rest, num_returns=len(rest), timeout=0)[0]
            for reference in ready:
                self._arrive(reference)
        self._end_overdue()
        self._dispatch()

    def _arrive(self, reference: Any) -> None:
        """A call has ended."""
        call = self._calls.pop(reference, None)
        if call is None:  # of a worker that was lost meanwhile
            return
        try:
            result = ray.get(reference)
        except _DEAD as error:
            self._lose(call.slot, error)
        except RayError as error:
            raise cause(error) from error
        else:
            self._take(call, result)

    def _take(self, call: _Call, result: Any) -> None:
        slot = call.slot
        if call.job is not None:
            evaluation, seconds = result
            self._scheduler.finish(slot, call.job, seconds)
            self._done.append(evaluation)
        elif call.split is not None:
            version, fingerprint = result
            self._compare(slot, call.split, version, fingerprint)
            self._failed_starts = 0
            slot.begun, slot.preparing = True, False
            slot.start_clock()
        else:
            slot.place, _ = result
            self._prepare(slot, self._first)

    def _compare(self, slot: WorkerSlot, split: Split, version: str, fingerprint: str) -> None:
        """Raise unless a worker would give the scores that the others give."""
        if version != __version__:
            raise EvomergeError(
                f"{slot.name} on node {slot.place[:8]} has evomerge {version}, this is {__version__}",
                "the same version on every node",
            )
        known = self._fingerprints.setdefault(split, fingerprint)
        if known != fingerprint:
            raise EvomergeError(
                f"the {split} fitness of {slot.name} on node {slot.place[:8]} has fingerprint {fingerprint}, "
                f"others have {known}",
                "the same items, prompts, tokenizer and libraries on every node: scores would not be comparable",
            )

    def _lose(self, slot: WorkerSlot, error: RayError) -> None:
        """A worker is gone."""
        text = " ".join(str(error).split())
        if "owner has died" in text or "Owner's node has crashed" in text:
            raise self._cluster.lost("the Ray node that the search runs on has gone")
        if "creation task" in text:  # what it is made from could not be read: it will not be the next time either
            raise EvomergeError(
                f"{slot.name} could not be made: {str(error).strip().splitlines()[-1].strip()}",
                "modules that every node can import",
                "install them there, or put them into a folder and set evaluator.working_dir",
            )
        memory = isinstance(error, OutOfMemoryError)
        caused_failure = memory or isinstance(error, WorkerCrashedError) or "worker process has died" in text
        how = "Ray ended it because its node ran out of memory" if memory else "killed, or crashed"
        _LOG.warning("%s is gone (%s)", slot.name, how if caused_failure else text[:200])
        self._settle(slot)
        if caused_failure and (slot.preparing or not slot.begun):
            self._count_failed_start(slot, how)
        job = self._scheduler.vacate(slot, caused_failure=caused_failure)
        if job is not None:
            self._fail(
                job, f"its worker died {job.deaths} times: {how}" if caused_failure else f"lost {job.lost} workers"
            )

    def _settle(self, slot: WorkerSlot) -> None:
        """Forget a worker's calls and end it; answers that arrived before count."""
        for reference in [reference for reference, call in self._calls.items() if call.slot is slot]:
            call = self._calls.pop(reference)
            if call.job is not None and ray.wait([reference], timeout=0)[0]:
                with contextlib.suppress(RayError):
                    self._take(call, ray.get(reference))
        with contextlib.suppress(RayError):  # one that is only out of reach must not stay
            ray.kill(slot.worker)

    def _count_failed_start(self, slot: WorkerSlot, how: str) -> None:
        self._failed_starts += 1
        self._start_after = time.monotonic() + min(60.0, _BACKOFF**self._failed_starts)
        if self._failed_starts >= _FAILED_STARTS and not any(s.begun for s in self._scheduler.taken if s is not slot):
            raise EvomergeError(
                f"{self._failed_starts} workers died one after the other while they began ({how})",
                "room in memory for the model and its sources",
                "see Ray's logs of the workers; `evomerge resume RUN` goes on with the search",
            )

    def _end_overdue(self) -> None:
        """End workers whose evaluation takes too long."""
        for slot in self._scheduler.overdue():
            self._settle(slot)
            late = slot in self._scheduler.overdue()  # unless its answer was just there
            job = self._scheduler.vacate(slot, caused_failure=late, final=late)
            if job is not None:
                self._fail(job, f"it took longer than evaluator.timeout={self._scheduler.timeout:g} s")

    def _fail(self, job: Job, error: str) -> None:
        self._done.append(Evaluation(job.candidate.id, "failed", job.split, error=error))

    def _hire(self) -> None:
        """Start workers up to the number that is wanted; raise when there has been none for too long."""
        now = time.monotonic()
        answers = self._cluster.check()
        if answers and (not self._wanted or now - self._looked_at >= _LOOKING):
            self._looked_at = now
            self._wanted = self._fixed or sum(self._cluster.room())
        if answers and now >= self._start_after:
            while len(self._scheduler.taken) < self._wanted:
                self._place()
        if any(slot.place for slot in self._scheduler.taken):
            self._no_worker_since = now
        elif now - self._no_worker_since > self._patience:
            raise EvomergeError(
                f"no worker has found a place for {self._patience:g} s",
                f"a node with {self._cluster.cpus} CPUs and {self._cluster.gpus:g} GPUs that are free",
                "see `ray status`; `evomerge resume RUN` goes on with the search",
            )

    def _place(self) -> None:
        """Ask for a worker."""
        resources = {"num_cpus": self._cluster.cpus, "num_gpus": self._cluster.gpus}
        self._named += 1
        actor: Any = ray.remote(Actor).options(**resources)
        worker = actor.remote(self._build, self._device, self._threads, self._cache)
        slot = WorkerSlot(f"worker {self._named}", worker)
        self._scheduler.taken.append(slot)
        self._calls[worker.here.remote()] = _Call(slot)

    def _prepare(self, slot: WorkerSlot, split: Split) -> None:
        """Let a worker prepare a split's items; calls to it come after."""
        slot.splits.add(split)
        slot.preparing = True
        self._calls[slot.worker.begin.remote(split)] = _Call(slot, split=split)

    def _dispatch(self) -> None:
        for slot, job in self._scheduler.assign():
            if job.split not in slot.splits:
                self._prepare(slot, job.split)
            self._calls[slot.worker.evaluate.remote(job.candidate, job.split)] = _Call(slot, job)
