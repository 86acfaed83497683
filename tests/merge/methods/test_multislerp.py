from __future__ import annotations

import math

import pytest
from merge.carry_out import merged, weights

from evomerge.errors import InfeasibleError


def at(degrees: float, norm: float = 1.0) -> list[float]:
    return [norm * math.cos(math.radians(degrees)), norm * math.sin(math.radians(degrees))]


def nlerp(degrees: list[float], shares: list[float]) -> float:
    x, y = (sum(s * at(d)[i] for d, s in zip(degrees, shares, strict=True)) for i in (0, 1))
    return math.degrees(math.atan2(y, x))


def test_one_logarithmic_step_on_the_circle_is_exact() -> None:
    # On a circle logarithms are differences of angles, so that their mean is that of the angles.
    assert merged("multislerp", [at(0), at(20), at(100)]) == pytest.approx(at(40), rel=1e-5)
    assert merged("multislerp", [at(0, 2), at(90, 6)], each=weights(1, 3)) == pytest.approx(at(67.5, 5), rel=1e-5)


def test_mergekits_reading_is_the_normalised_mean() -> None:
    result = merged("multislerp", [at(0), at(20), at(100)], each=weights(2, 1, 1), reading="mergekit")
    assert result == pytest.approx(at(nlerp([0, 20, 100], [0.5, 0.25, 0.25])), rel=1e-5)
    assert abs(nlerp([0, 20, 100], [0.5, 0.25, 0.25]) - 30) > 1


def test_weights_as_given() -> None:
    # The mean is at 45 degrees; half of each logarithm cancels, and the norm is 0.5 + 0.5 * 3.
    result = merged("multislerp", [at(0), at(90, 3)], each=weights(0.5, 0.5), normalize_weights=False)
    assert result == pytest.approx(at(45, 2))
    doubled = merged("multislerp", [at(0), at(90, 3)], each=weights(1, 1), normalize_weights=False)
    assert doubled == pytest.approx(at(45, 4))
    alone = merged("multislerp", [at(30, 3)], each=weights(0.5), normalize_weights=False)
    assert alone == pytest.approx(at(30, 1.5))


def test_task_vectors() -> None:
    base = [5.0, -1.0]
    moved = [[x + b for x, b in zip(at(d, n), base, strict=True)] for d, n in ((0, 2), (90, 6))]
    expected = [x + b for x, b in zip(at(45, 4), base, strict=True)]
    assert merged("multislerp", moved, base) == pytest.approx(expected)
    assert merged("multislerp", [base, base], base) == base


@pytest.mark.parametrize("reading", ["paper", "mergekit"])
def test_zero_and_cancelling_tensors(reading: str) -> None:
    assert merged("multislerp", [[0.0, 0.0], at(30, 4)], reading=reading) == pytest.approx(at(30, 2))
    assert merged("multislerp", [[0.0], [0.0]], reading=reading) == [0.0]
    assert merged("multislerp", [at(0, 4), at(180, 2)], reading=reading) == pytest.approx([1.0, 0.0], abs=1e-6)


def test_opposite_tensors_of_unequal_weight() -> None:
    given = [at(0, 4), at(180, 2)]
    assert merged("multislerp", given, each=weights(3, 1)) == pytest.approx([2.5, 0.0], abs=1e-6)
    mean = merged("multislerp", given, each=weights(3, 1), reading="mergekit")
    assert mean == pytest.approx([3.5, 0.0], abs=1e-6)


def test_eps_is_the_norm_of_nothing() -> None:
    assert merged("multislerp", [at(0, 1e-3), at(90)], eps=1e-2) == pytest.approx(at(90, 0.5005))


def test_weights_that_sum_to_zero() -> None:
    with pytest.raises(InfeasibleError, match="sum to 0"):
        merged("multislerp", [[1.0], [2.0]], each=weights(1, -1))
