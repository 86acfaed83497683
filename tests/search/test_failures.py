from evomerge.candidate import Evaluation
from evomerge.search.failures import Streak


def failed(reason: str) -> Evaluation:
    return Evaluation(0, "failed", error=reason)


def test_the_same_reason_again_and_again_is_hopeless() -> None:
    streak = Streak(3)
    for size in (10, 2048, 77):
        assert not streak.hopeless
        streak.see(failed(f"CUDA out of memory: tried to allocate {size}.5 MiB at 0x7f{size}a"))
    assert streak.hopeless
    assert streak.length == 3
    assert streak.reason == "CUDA out of memory: tried to allocate 77.5 MiB at 0x7f77a"


def test_another_reason_begins_again_and_a_score_ends_it() -> None:
    streak = Streak(3)
    for reason in ("no space left", "no space left", "scores are NaN"):
        streak.see(failed(reason))
    assert streak.length == 1
    streak.see(Evaluation(0, "infeasible", error="weights sum to 0"))  # never reached a worker
    streak.see(failed("scores are NaN"))
    assert streak.length == 2
    streak.see(Evaluation(0, "ok"))
    streak.see(failed("scores are NaN"))
    assert (streak.length, streak.hopeless) == (1, False)


def test_without_a_limit_nothing_is() -> None:
    streak = Streak(None)
    for _ in range(1000):
        streak.see(failed("it broke"))
    assert not streak.hopeless
