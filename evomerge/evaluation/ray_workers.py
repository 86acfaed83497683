"""The workers of a cluster: started up to the number that is wanted, prepared, compared and let go."""

from __future__ import annotations

import contextlib
import logging
import time
from dataclasses import replace
from typing import Any, NamedTuple

import ray
from ray.exceptions import RayError

from evomerge.candidate import Split
from evomerge.errors import ConfigError, EvomergeError
from evomerge.evaluation import ray_groups
from evomerge.evaluation.cache_settings import CacheSettings
from evomerge.evaluation.ray_actor import WATCH, Actor
from evomerge.evaluation.ray_cluster import Cluster
from evomerge.evaluation.scheduler import Job, Scheduler, WorkerSlot
from evomerge.evaluation.worker_builder import WorkerBuilder
from evomerge.protocols import Work
from evomerge.utils.installation import VERSION

_LOG = logging.getLogger(__name__)
_CLOSING = 10  # seconds
_LOOKING = 5.0  # seconds between two looks at what the cluster has room for
_WATCHING = 2.0  # seconds between two questions to a worker what it is at
LONGEST_START = 3600.0
"""Seconds that a worker may take to load its model, or to build the items of a split."""

_FAILED_STARTS = 3  # one after the other
_BACKOFF = 2.0  # seconds after a failed start, to the power of their number


def _given(device: str, gpus: float) -> str:
    """The device of a worker to which Ray gives so many GPUs: those it sees; given none it would see all."""
    if device != "auto":
        return device
    return "spread" if gpus > 1 else "auto" if gpus else "cpu"


def _end(slot: WorkerSlot) -> None:
    """End a worker, and the processes of its engine, which have the GPUs of its group."""
    ray.kill(slot.worker)
    if slot.group is not None:
        ray_groups.release(slot.group)


class Call(NamedTuple):
    """A call to an actor that is under way: of jobs, for a split, to say what it is at, else to say where it is."""

    slot: WorkerSlot
    jobs: tuple[Job, ...] = ()
    split: Split | None = None
    watch: bool = False


class RayWorkers:
    """Actors and the calls to them that are under way.

    Args:
        cluster: where they live.
        scheduler: holds their slots.
        build: makes a worker inside its actor.
        fixed: how many; ``None`` for as many as the cluster has room for.
        device, threads, cache: of each.
        patience: seconds to wait for a place for a worker while there is no worker.

    Attributes:
        calls: by the reference that Ray answers with.
        fingerprints: of the splits, as the first worker prepared them.
        wanted: how many workers there should be.
        failed_starts: one after the other.
    """

    def __init__(
        self,
        cluster: Cluster,
        scheduler: Scheduler,
        build: WorkerBuilder,
        *,
        fixed: int | None,
        device: str,
        threads: int,
        cache: CacheSettings,
        patience: float,
    ) -> None:
        self._cluster, self._scheduler, self._build = cluster, scheduler, build
        self._fixed, self._device, self._threads, self._patience = fixed, device, threads, patience
        self._cache = cache
        self._first: Split = "search"
        self.calls: dict[Any, Call] = {}
        self.fingerprints: dict[Split, str] = {}
        self.wanted = self.failed_starts = self._named = 0
        self._looked_at = self._start_after = self._no_worker_since = 0.0

    def open(self, split: Split) -> None:
        """Open the cluster and start workers, if that has not been done; they prepare `split` first."""
        if self._cluster.is_open:
            return
        self._cluster.open()
        self._first = split
        room = self._cluster.room()
        if self._fixed is not None and self._cluster.address is None and sum(room) < self._fixed:
            raise ConfigError(
                f"{self._fixed} workers with {self._cluster.each} each",
                f"this machine has room for {sum(room)}",
                "lower evaluator.workers or the resources of each"
                + (": gpus_per_worker=0.5 lets two share a GPU" if self._cluster.gpus == 1 else ""),
            )
        if not sum(room):
            _LOG.warning("no node can hold a worker with %s: it starts when one joins that can", self._cluster.each)
        elif self._fixed is not None and sum(room) < self._fixed:
            _LOG.warning(
                "%d of %d workers have a place in the cluster; the others start when nodes join", sum(room), self._fixed
            )
        most = max([1, *room])
        self._cache = replace(self._cache, workers=most if self._fixed is None else min(most, self._fixed))
        if self._cluster.gpus:
            self._cache = self._cache.on_gpus(self._cluster.sharing)
        self._device = _given(self._device, self._cluster.gpus)
        self._no_worker_since = time.monotonic()
        self.hire()

    def hire(self) -> None:
        """Start workers up to the number that is wanted; raise when there has been none for too long."""
        now = time.monotonic()
        answers = self._cluster.check()
        if answers and (not self.wanted or now - self._looked_at >= _LOOKING):
            self._looked_at = now
            self.wanted = self._fixed or sum(self._cluster.room())
        if answers and now >= self._start_after:
            while len(self._scheduler.taken) < self.wanted:
                self._place()
        if any(slot.place for slot in self._scheduler.taken):
            self._no_worker_since = now
        elif now - self._no_worker_since > self._patience:
            raise EvomergeError(
                f"no worker has found a place for {self._patience:g} s",
                f"{'' if self._cluster.strategy else 'a node with '}{self._cluster.each} that are free",
                "see `ray status`; `evomerge resume RUN` goes on with the search",
            )

    def _place(self) -> None:
        """Ask for a worker."""
        cluster, group = self._cluster, None
        options: dict[str, Any] = {"num_cpus": cluster.cpus, "num_gpus": cluster.gpus}
        if cluster.strategy is not None:
            group, options = ray_groups.make_group(cluster.cpus, int(cluster.gpus), cluster.strategy)
        self._named += 1
        remote: Any = ray.remote
        actor = remote(**options, concurrency_groups={WATCH: 1})(Actor)
        worker = actor.remote(self._build, self._device, self._threads, self._cache, group is not None)
        slot = WorkerSlot(f"worker {self._named}", worker, group)
        self._scheduler.taken.append(slot)
        self.calls[worker.here.remote()] = Call(slot)

    def prepare(self, slot: WorkerSlot, split: Split) -> None:
        """Let a worker prepare a split's items; calls to it come after."""
        slot.splits.add(split)
        slot.preparing, slot.asked = True, time.monotonic()
        self.calls[slot.worker.begin.remote(split)] = Call(slot, split=split)

    def watch(self) -> None:
        """Ask workers that evaluate what they are at, now and then."""
        now = time.monotonic()
        for slot in self._scheduler.taken:
            if slot.jobs and not slot.preparing and now - slot.watched >= _WATCHING:
                slot.watched = now
                self.calls[slot.worker.stage.options(concurrency_group=WATCH).remote()] = Call(slot, watch=True)

    def work(self) -> list[Work]:
        """What each does, or waits for; another thread may ask."""
        doing = []
        for slot in list(self._scheduler.taken):
            jobs, name = list(slot.jobs), slot.name
            if jobs:
                doing.append(Work(name, jobs[0].candidate.id, jobs[0].split, slot.began, *slot.stage))
            elif not slot.place:
                doing.append(Work(name, stage=f"waiting for {self._cluster.each}"))
            else:
                doing.append(Work(name, stage="" if slot.begun else "starting"))
        return doing

    def let_go(self, slot: WorkerSlot) -> list[tuple[Call, Any]]:
        """End a worker and forget its calls; returns those of jobs that were answered before, with the answers."""
        answered = []
        for reference in [reference for reference, call in self.calls.items() if call.slot is slot]:
            call = self.calls.pop(reference)
            if call.jobs and ray.wait([reference], timeout=0)[0]:
                with contextlib.suppress(RayError):
                    answered.append((call, ray.get(reference)))
        with contextlib.suppress(RayError):  # one that is only out of reach must not stay
            _end(slot)
        return answered

    def count_failed_start(self, slot: WorkerSlot, how: str) -> None:
        """A worker died while it began: wait before the next; raise when that goes on."""
        self.failed_starts += 1
        self._start_after = time.monotonic() + min(60.0, _BACKOFF**self.failed_starts)
        if self.failed_starts >= _FAILED_STARTS and not any(s.begun for s in self._scheduler.taken if s is not slot):
            raise EvomergeError(
                f"{self.failed_starts} workers died one after the other while they began ({how})",
                "room in memory for the model and its sources",
                "see Ray's logs of the workers; `evomerge resume RUN` goes on with the search",
            )

    def _compare(self, slot: WorkerSlot, split: Split, version: str, fingerprint: str) -> None:
        """Raise unless a worker would give the scores that the others give."""
        if version != VERSION:
            raise EvomergeError(
                f"{slot.name} on node {slot.place[:8]} has evomerge {version}, this is {VERSION}",
                "the same version on every node",
            )
        known = self.fingerprints.setdefault(split, fingerprint)
        if known != fingerprint:
            raise EvomergeError(
                f"the {split} fitness of {slot.name} on node {slot.place[:8]} has fingerprint {fingerprint}, "
                f"others have {known}",
                "the same items, prompts, tokenizer and libraries on every node: scores would not be comparable",
            )

    def placed(self, slot: WorkerSlot, place: str) -> None:
        """A worker has a place: it prepares its items next."""
        slot.place = place
        self.prepare(slot, self._first)

    def prepared(self, slot: WorkerSlot, split: Split, version: str, fingerprint: str) -> None:
        """A worker has prepared a split; raise unless it would give the scores that the others give."""
        self._compare(slot, split, version, fingerprint)
        self.failed_starts = 0
        slot.begun, slot.preparing = True, False
        slot.start_clock()

    def close(self) -> None:
        """End all of them."""
        if self._cluster.is_open and not self._cluster.gone:
            idle = [slot.worker for slot in self._scheduler.taken if slot.begun and not slot.jobs]
            with contextlib.suppress(RayError):  # a worker that died has nothing to close
                ray.get([worker.close.remote() for worker in idle], timeout=_CLOSING)
            for slot in self._scheduler.taken:
                _end(slot)
            if self._cache.shared != "off":
                from evomerge.evaluation.caching import sweep

                sweep()  # what killed workers left behind
        self.calls.clear()
        self.wanted = self.failed_starts = 0
        self._start_after = 0.0
