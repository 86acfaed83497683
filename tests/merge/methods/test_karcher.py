from __future__ import annotations

import math

import numpy as np
import pytest
from merge.carry_out import merged, weights

from evomerge.errors import InfeasibleError


def at(degrees: float, norm: float = 1.0) -> list[float]:
    return [norm * math.cos(math.radians(degrees)), norm * math.sin(math.radians(degrees))]


def test_mean_angle_and_mean_norm() -> None:
    assert merged("karcher", [at(0), at(90)]) == pytest.approx(at(45))
    assert merged("karcher", [at(0, 1), at(90, 3)]) == pytest.approx(at(45, 2))
    assert merged("karcher", [at(10, 2), at(40, 5), at(100, 8)]) == pytest.approx(at(50, 5), rel=1e-5)
    # Weights 1, 3 and 0: three quarters of the way, which nlerp is not.
    assert merged("karcher", [at(0), at(80), at(170)], each=weights(1, 3, 0)) == pytest.approx(at(60), rel=1e-5)


def test_iterations_end_at_the_minimum() -> None:
    generator = np.random.default_rng(0)
    points = generator.normal(size=(3, 6)) + 1
    point = np.array(merged("karcher", points.tolist(), max_iter=100, tol=1e-9))

    def cost(x: np.ndarray) -> float:
        cosines = points @ x / np.linalg.norm(points, axis=1) / np.linalg.norm(x)
        return float((np.arccos(cosines) ** 2).sum())

    least = cost(point)
    assert least < cost(points.mean(axis=0)) - 1e-4
    for _ in range(50):
        assert cost(point + 1e-2 * generator.normal(size=6)) > least
    assert np.linalg.norm(point) == pytest.approx(np.linalg.norm(points, axis=1).mean(), rel=1e-6)


def test_max_iter_and_tol_stop_early() -> None:
    points = [at(0), at(5), at(100)]
    nlerp = np.sum(points, axis=0)
    assert merged("karcher", points, max_iter=0) == pytest.approx((nlerp / np.linalg.norm(nlerp)).tolist())
    assert merged("karcher", points, tol=1.0) == merged("karcher", points, max_iter=0)
    assert merged("karcher", points, max_iter=100) == pytest.approx(at(35), rel=1e-5)


def test_zero_tensors_count_for_the_norm_only() -> None:
    assert merged("karcher", [[0.0, 0.0], at(30, 4)]) == pytest.approx(at(30, 2))
    assert merged("karcher", [[0.0, 0.0], [0.0, 0.0]]) == [0.0, 0.0]


def test_weighted_average_where_directions_are_opposite() -> None:
    assert merged("karcher", [at(0, 4), at(180, 2)]) == pytest.approx([1.0, 0.0], abs=1e-6)
    assert merged("karcher", [at(0, 4), at(180, 4)], each=weights(3, 1)) == pytest.approx([2.0, 0.0], abs=1e-6)
    assert merged("karcher", [[1.0], [-2.0], [4.0]]) == [1.0]


def test_weights_that_sum_to_zero() -> None:
    with pytest.raises(InfeasibleError, match="sum to 0"):
        merged("karcher", [[1.0], [2.0]], each=weights(0, 0))
