"""Who holds what, without a cluster."""

import time

import pytest

from evomerge.candidate import Candidate
from evomerge.evaluation.scheduler import Job, Seat, Seats


def seats(count: int = 1, tries: int = 2, timeout: float | None = None, pace: float = 1e-4) -> Seats:
    found = Seats(tries, timeout)
    for number in range(count):
        found.taken.append(Seat(f"worker {number}", None, begun=True, splits={"search"}))
    if pace:
        seat, job = found.taken[0], Job(Candidate(-1, None), "search")
        seat.jobs.append(job)
        found.finish(seat, job, pace)
    return found


def held(seat: Seat) -> list[int]:
    return [job.candidate.id for job in seat.jobs]


def queue(of: Seats, *ids: int) -> None:
    of.queue.extend(Job(Candidate(number, None), "search") for number in ids)


def test_slow_candidates_are_given_out_one_at_a_time_and_fast_ones_ahead() -> None:
    slow, fast, unknown = seats(2, pace=1.0), seats(2, pace=0.001), seats(2, pace=0)
    for some in (slow, fast, unknown):
        queue(some, *range(40))
        list(some.assign())
    assert [held(seat) for seat in slow.taken] == [held(seat) for seat in unknown.taken] == [[0], [1]]
    assert [held(seat) for seat in fast.taken] == [list(range(0, 32, 2)), list(range(1, 32, 2))]
    assert len(fast.queue) == 8


def test_a_worker_that_has_not_begun_gets_nothing() -> None:
    some = seats(2)
    some.taken[0].begun = False
    queue(some, 1)
    assert [seat.name for seat, _ in some.assign()] == ["worker 1"]


def test_what_a_dead_worker_held_waits_in_front_and_alone() -> None:
    some = seats()
    queue(some, 1, 2, 3)
    list(some.assign())
    queue(some, 4)
    assert some.vacate(some.taken[0], guilty=True) is None
    assert [(job.candidate.id, job.deaths, job.alone) for job in some.queue] == [
        (1, 1, True),
        (2, 0, True),
        (3, 0, True),
        (4, 0, False),
    ]
    some.taken = seats(2).taken
    list(some.assign())
    assert [held(seat) for seat in some.taken] == [[1], [2]]  # nothing beside what may kill
    some.finish(some.taken[0], some.taken[0].jobs[0], 1e-4)
    list(some.assign())
    assert [held(seat) for seat in some.taken] == [[3], [2]]


def test_the_first_of_several_is_not_condemned_for_another() -> None:
    """Its answer may have been lost when the next one killed the worker."""
    some = seats(tries=2)
    queue(some, 1, 2)
    list(some.assign())
    assert some.vacate(some.taken[0], guilty=True) is None
    for innocent in (1, 2):
        some.taken = seats().taken
        (pair,) = some.assign()
        assert pair[1].candidate.id == innocent
        if innocent == 1:
            some.finish(*pair, 1e-4)
        else:
            assert some.vacate(pair[0], guilty=True) is None
    some.taken = seats().taken
    ((seat, job),) = some.assign()
    assert some.vacate(seat, guilty=True) is job
    assert (job.candidate.id, job.deaths) == (2, 2)
    assert not some.queue


def test_a_node_that_leaves_is_nobody_s_fault() -> None:
    some = seats(tries=2)
    queue(some, 1, 2)
    for _ in range(5):
        some.taken = seats().taken
        list(some.assign())
        assert some.vacate(some.taken[0], guilty=False) is None
    assert [(job.candidate.id, job.deaths, job.alone) for job in some.queue] == [(1, 0, False), (2, 0, False)]
    for _ in range(15):
        some.taken = seats().taken
        list(some.assign())
        lost = some.vacate(some.taken[0], guilty=False)
    assert lost is not None
    assert lost.candidate.id == 1
    assert lost.lost == 20


def test_a_split_that_a_worker_has_not_prepared_waits_until_it_is_free() -> None:
    some = seats()
    queue(some, 1)
    some.queue.append(Job(Candidate(2, None), "held_out"))
    list(some.assign())
    assert held(some.taken[0]) == [1]
    some.finish(some.taken[0], some.taken[0].jobs[0], 1e-4)
    ((seat, job),) = some.assign()
    assert job.candidate.id == 2
    seat.preparing = True
    queue(some, 3)
    assert not list(some.assign())


def test_only_the_first_job_s_time_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    some = seats(timeout=10)
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
    some = seats(pace=1.0)
    queue(some, 4, 5, 6)
    list(some.assign())
    assert some.withdraw() == [5, 6]
    assert held(some.taken[0]) == [4]
