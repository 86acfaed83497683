"""Who evaluates what: candidates that wait, workers, and which worker holds which. Knows nothing of clusters."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from evomerge.candidate import Candidate, Split

_LEAD = 0.05
"""Seconds of work that a worker is given ahead, so that it need not wait for the next candidate to be sent."""
_MOST_AHEAD = 15
_MOST_LOST = 20


@dataclass(eq=False)
class Job:
    """A candidate on its way.

    Attributes:
        candidate, split: what is to be evaluated.
        deaths: workers that died while they evaluated it.
        lost: workers that it was lost with for another reason: their node went away.
        alone: to be evaluated by a worker that holds nothing else, so that nothing else can be what kills it.
    """

    candidate: Candidate
    split: Split
    deaths: int = 0
    lost: int = 0
    alone: bool = False


@dataclass(eq=False)
class WorkerSlot:
    """A worker's slot.

    Attributes:
        name: for people.
        worker: its handle.
        group: of GPUs that it has with the processes of its engine; ``None`` for one that is one process.
        place: the node that it is on; empty while it waits for one.
        begun: whether it has its model.
        splits: those it has items of, or is asked to prepare.
        jobs: what it holds, in the order given: it evaluates the first, the others wait.
        at_once: how many of them it evaluates at once.
        preparing: whether it is not at its first job yet.
        asked: when it was asked to prepare what it prepares, by the monotonic clock.
        since, began: when the first job began, by the monotonic clock and by the calendar.
        stage, watched: what it was at when it was last asked (`Work.stage`, `done` and `slices`), and when that was.
    """

    name: str
    worker: Any
    group: Any = None
    place: str = ""
    begun: bool = False
    splits: set[Split] = field(default_factory=set)
    jobs: deque[Job] = field(default_factory=deque)
    at_once: int = 1
    preparing: bool = False
    asked: float = 0.0
    since: float = 0.0
    began: float = 0.0
    stage: tuple[str, int, int] = ("", 0, 0)
    watched: float = 0.0

    def start_clock(self) -> None:
        """The first job begins now."""
        self.since, self.began = time.monotonic(), time.time()


class Scheduler:
    """Workers and what waits for them.

    A worker is given more than one candidate at a time only when evaluations take less than `_LEAD` seconds.

    Args:
        tries: how many workers may die evaluating a candidate before it counts as failed.
        timeout: seconds that an evaluation may take, of several at once as many times that; ``None`` for any number.
        together: how many candidates a worker evaluates at once; with more than one none is given ahead.
    """

    def __init__(self, tries: int, timeout: float | None, together: int = 1) -> None:
        self.tries, self.timeout, self.together = tries, timeout, together
        self.queue: deque[Job] = deque()
        self.taken: list[WorkerSlot] = []
        self._pace = math.inf  # seconds of an evaluation, of late

    def assign(self) -> Iterator[tuple[WorkerSlot, Job]]:
        """Give out what can be given, to the least busy first."""
        depth = 1 + min(_MOST_AHEAD, int(_LEAD / self._pace)) if self._pace > 0 else 1 + _MOST_AHEAD
        while self.queue:
            job = self.queue[0]
            free = [slot for slot in self.taken if slot.begun and self._takes(slot, job, depth)]
            if not free:
                return
            slot = min(free, key=lambda slot: len(slot.jobs))
            self.queue.popleft()
            slot.jobs.append(job)
            if len(slot.jobs) == 1:
                slot.start_clock()
            yield slot, job

    def assign_together(self) -> Iterator[tuple[WorkerSlot, list[Job]]]:
        """Give idle workers what waits, each an equal part, as many as it evaluates at once at most."""
        while self.queue:
            free = [slot for slot in self.taken if slot.begun and not slot.jobs]
            if not free:
                return
            slot, first = free[0], self.queue.popleft()
            most = 1 if first.alone else min(self.together, -(-(1 + len(self.queue)) // len(free)))
            group = [first]
            while self.queue and len(group) < most and self._go_together(first, self.queue[0]):
                group.append(self.queue.popleft())
            slot.jobs.extend(group)
            slot.at_once = len(group)
            slot.start_clock()
            yield slot, group

    @staticmethod
    def _go_together(first: Job, other: Job) -> bool:
        return other.split == first.split and not other.alone

    def _takes(self, slot: WorkerSlot, job: Job, depth: int) -> bool:
        if not slot.jobs:
            return True
        mixed = job.alone or slot.jobs[0].alone or slot.preparing or job.split not in slot.splits
        return len(slot.jobs) < depth and not mixed

    def finish(self, slot: WorkerSlot, job: Job, seconds: float) -> None:
        """A job has come back."""
        slot.jobs.remove(job)
        slot.start_clock()
        self._pace = seconds if self._pace == math.inf else 0.9 * self._pace + 0.1 * seconds

    def overdue(self) -> list[WorkerSlot]:
        """Workers whose evaluation takes too long."""
        if self.timeout is None:
            return []
        now = time.monotonic()
        return [slot for slot in self._evaluating() if now - slot.since > self.timeout * slot.at_once]

    def stuck(self, longest: float) -> list[WorkerSlot]:
        """Workers that have been preparing for more than so many seconds: a call of a driver may never return."""
        late = time.monotonic() - longest
        return [slot for slot in self.taken if slot.preparing and slot.asked < late]

    def pause(self, most: float) -> float:
        """Seconds until something may be overdue, at most so many."""
        if self.timeout is None:
            return most
        left = [slot.since + self.timeout * slot.at_once - time.monotonic() for slot in self._evaluating()]
        return max(0.01, min([most, *left]))

    def _evaluating(self) -> list[WorkerSlot]:
        return [slot for slot in self.taken if slot.jobs and not slot.preparing]

    def vacate(self, slot: WorkerSlot, *, caused_failure: bool, final: bool = False) -> Job | None:
        """A worker is gone: what it held waits again, in front. Returns a job that shall not be tried again.

        Of several that it evaluated at once nobody knows which is why: none is blamed, each is tried alone.

        Args:
            slot: the worker's.
            caused_failure: whether what it evaluated may be why. An answer can be lost on its way when a worker dies
                right after it, so that the job which seems to be the first may have been evaluated: no job fails
                before it was tried alone.
        """
        self.taken.remove(slot)
        jobs = list(slot.jobs)
        slot.jobs.clear()
        for job in jobs:
            job.alone = job.alone or caused_failure
        given_up = None
        blamed = slot.at_once == 1 or not caused_failure
        if jobs and not slot.preparing and blamed:
            first = jobs[0]
            if caused_failure:
                first.deaths += 1
            else:
                first.lost += 1
            if final or first.deaths >= self.tries or first.lost >= _MOST_LOST:
                given_up = first
                jobs = jobs[1:]
        self.queue.extendleft(reversed(jobs))
        return given_up

    def clear(self) -> None:
        """Forget all workers and what waits."""
        self.queue.clear()
        self.taken.clear()
        self._pace = math.inf

    def withdraw(self) -> list[int]:
        """Forget what waits; returns the candidates' ids."""
        ids = [job.candidate.id for job in self.queue]
        self.queue.clear()
        return ids
