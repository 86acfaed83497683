"""Who holds what, without a cluster."""

import time

import pytest

from evomerge.candidate import Candidate
from evomerge.evaluation.scheduler import Job, Scheduler, WorkerSlot


def slots(count: int = 1, tries: int = 2, timeout: float | None = None, pace: float = 1e-4) -> Scheduler:
    found = Scheduler(tries, timeout)
    for number in range(count):
        found.taken.append(WorkerSlot(f"worker {number}", None, begun=True, splits={"search"}))
    if pace:
        slot, job = found.taken[0], Job(Candidate(-1, None), "search")
        slot.jobs.append(job)
        found.finish(slot, job, pace)
    return found


def held(slot: WorkerSlot) -> list[int]:
    return [job.candidate.id for job in slot.jobs]


def queue(of: Scheduler, *ids: int) -> None:
    of.queue.extend(Job(Candidate(number, None), "search") for number in ids)


def test_slow_candidates_are_given_out_one_at_a_time_and_fast_ones_ahead() -> None:
    slow, fast, unknown = slots(2, pace=1.0), slots(2, pace=0.001), slots(2, pace=0)
    for some in (slow, fast, unknown):
        queue(some, *range(40))
        list(some.assign())
    assert [held(slot) for slot in slow.taken] == [held(slot) for slot in unknown.taken] == [[0], [1]]
    assert [held(slot) for slot in fast.taken] == [list(range(0, 32, 2)), list(range(1, 32, 2))]
    assert len(fast.queue) == 8


def test_a_worker_that_has_not_begun_gets_nothing() -> None:
    some = slots(2)
    some.taken[0].begun = False
    queue(some, 1)
    assert [slot.name for slot, _ in some.assign()] == ["worker 1"]


def test_what_a_dead_worker_held_waits_in_front_and_alone() -> None:
    some = slots()
    queue(some, 1, 2, 3)
    list(some.assign())
    queue(some, 4)
    assert some.vacate(some.taken[0], caused_failure=True) is None
    assert [(job.candidate.id, job.deaths, job.alone) for job in some.queue] == [
        (1, 1, True),
        (2, 0, True),
        (3, 0, True),
        (4, 0, False),
    ]
    some.taken = slots(2).taken
    list(some.assign())
    assert [held(slot) for slot in some.taken] == [[1], [2]]  # nothing beside what may kill
    some.finish(some.taken[0], some.taken[0].jobs[0], 1e-4)
    list(some.assign())
    assert [held(slot) for slot in some.taken] == [[3], [2]]


def test_the_first_of_several_is_not_condemned_for_another() -> None:
    """Its answer may have been lost when the next one killed the worker."""
    some = slots(tries=2)
    queue(some, 1, 2)
    list(some.assign())
    assert some.vacate(some.taken[0], caused_failure=True) is None
    for innocent in (1, 2):
        some.taken = slots().taken
        (pair,) = some.assign()
        assert pair[1].candidate.id == innocent
        if innocent == 1:
            some.finish(*pair, 1e-4)
        else:
            assert some.vacate(pair[0], caused_failure=True) is None
    some.taken = slots().taken
    ((slot, job),) = some.assign()
    assert some.vacate(slot, caused_failure=True) is job
    assert (job.candidate.id, job.deaths) == (2, 2)
    assert not some.queue


def test_a_node_that_leaves_is_nobody_s_fault() -> None:
    some = slots(tries=2)
    queue(some, 1, 2)
    for _ in range(5):
        some.taken = slots().taken
        list(some.assign())
        assert some.vacate(some.taken[0], caused_failure=False) is None
    assert [(job.candidate.id, job.deaths, job.alone) for job in some.queue] == [(1, 0, False), (2, 0, False)]
    for _ in range(15):
        some.taken = slots().taken
        list(some.assign())
        lost = some.vacate(some.taken[0], caused_failure=False)
    assert lost is not None
    assert lost.candidate.id == 1
    assert lost.lost == 20


def test_a_split_that_a_worker_has_not_prepared_waits_until_it_is_free() -> None:
    some = slots()
    queue(some, 1)
    some.queue.append(Job(Candidate(2, None), "held_out"))
    list(some.assign())
    assert held(some.taken[0]) == [1]
    some.finish(some.taken[0], some.taken[0].jobs[0], 1e-4)
    ((slot, job),) = some.assign()
    assert job.candidate.id == 2
    slot.preparing = True
    queue(some, 3)
    assert not list(some.assign())


def test_only_the_first_job_s_time_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    some = slots(timeout=10)
    queue(some, 1, 2)
    list(some.assign())
    now[0] = 109.0
    assert (some.overdue(), some.pause(5.0)) == ([], 1.0)
    some.finish(some.taken[0], some.taken[0].jobs[0], 9.0)
    now[0] = 118.0
    assert not some.overdue()
    now[0] = 119.5
    assert some.overdue() == some.taken
    some.taken[0].preparing = True
    assert not some.overdue()


def test_withdrawn_is_what_no_worker_holds() -> None:
    some = slots(pace=1.0)
    queue(some, 4, 5, 6)
    list(some.assign())
    assert some.withdraw() == [5, 6]
    assert held(some.taken[0]) == [4]


def together(count: int, workers: int, timeout: float | None = None) -> Scheduler:
    found = Scheduler(2, timeout, count)
    for number in range(workers):
        found.taken.append(WorkerSlot(f"worker {number}", None, begun=True, splits={"search"}))
    return found


def test_idle_workers_share_what_waits_and_take_several_at_once() -> None:
    some = together(4, 2)
    queue(some, *range(6))
    list(some.assign_together())
    assert [held(slot) for slot in some.taken] == [[0, 1, 2], [3, 4, 5]]
    queue(some, *range(6, 16))
    assert list(some.assign_together()) == []  # nobody is idle, and nothing is given ahead
    for job in list(some.taken[1].jobs):
        some.finish(some.taken[1], job, 1.0)
    list(some.assign_together())
    assert held(some.taken[1]) == [6, 7, 8, 9]
    some.taken[0].jobs.clear()
    some.queue[1].split = "held_out"
    list(some.assign_together())
    assert held(some.taken[0]) == [10]


def test_of_several_at_once_none_is_blamed_and_each_is_tried_alone() -> None:
    some = together(4, 1)
    queue(some, 1, 2, 3)
    list(some.assign_together())
    assert some.vacate(some.taken[0], caused_failure=True, final=True) is None
    assert [(job.candidate.id, job.deaths, job.alone) for job in some.queue] == [
        (1, 0, True),
        (2, 0, True),
        (3, 0, True),
    ]
    some.taken = together(4, 1).taken
    list(some.assign_together())
    assert held(some.taken[0]) == [1]
    assert some.vacate(some.taken[0], caused_failure=True) is None
    some.taken = together(4, 1).taken
    list(some.assign_together())
    given_up = some.vacate(some.taken[0], caused_failure=True)
    assert given_up is not None
    assert (given_up.candidate.id, given_up.deaths) == (1, 2)


def test_several_at_once_may_take_as_many_times_as_long() -> None:
    some = together(4, 1, timeout=10)
    queue(some, 1, 2, 3)
    list(some.assign_together())
    some.taken[0].since = time.monotonic() - 29
    assert not some.overdue()
    assert 0.01 <= some.pause(60) <= 1
    some.taken[0].since -= 2
    assert some.overdue() == some.taken
