"""Coefficients that sum to one, within a cap."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import minimize

from evomerge.genomes.coefficients import moving_average, summing_to_one


def test_the_first_is_what_is_missing_to_one() -> None:
    assert summing_to_one([0.25, -0.5, 1.5], 2.0).tolist() == [-0.25, 0.25, -0.5, 1.5]
    assert summing_to_one([], 2.0).tolist() == [1.0]


def test_a_first_one_beyond_the_cap_is_moved_to_the_nearest_within() -> None:
    free, cap = np.array([1.9, 1.5, -0.2, 0.7]), 2.0
    wanted = np.array([1 - free.sum(), *free])
    assert wanted[0] < -cap
    found = summing_to_one(free, cap)
    nearest = minimize(
        lambda x: ((x - wanted) ** 2).sum(),
        np.full(5, 0.2),
        bounds=[(-cap, cap)] * 5,
        constraints={"type": "eq", "fun": lambda x: x.sum() - 1},
        options={"ftol": 1e-14},
    )
    assert found == pytest.approx(nearest.x, abs=1e-6)


@pytest.mark.parametrize("cap", [1.0, 2.0, 10.0])
def test_they_sum_to_one_and_keep_to_the_cap_wherever_the_others_are(cap: float) -> None:
    rng = np.random.default_rng(0)
    for count in (1, 2, 15, 99):
        corners = [np.full(count, cap), np.full(count, -cap)]
        for free in [*corners, *rng.uniform(-cap, cap, (50, count))]:
            found = summing_to_one(free, cap)
            assert abs(math.fsum(found) - 1) < 1e-15 * count + 1e-15
            assert np.abs(found).max() <= cap + 1e-12


def test_moving_averages_go_from_the_last_checkpoint_to_the_uniform_average() -> None:
    assert moving_average(3, 0.0).tolist() == [0, 0, 1]
    assert moving_average(4, 1.0).tolist() == [0.25] * 4
    assert moving_average(3, 0.5) == pytest.approx([1 / 7, 2 / 7, 4 / 7])
