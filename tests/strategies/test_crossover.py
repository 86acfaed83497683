"""Children of arrays of numbers, against the paper's formulas in float64, and the noise of their mutation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from evomerge.strategies.crossover import Angle, Cut, Path, child_of, mutate_, mutated_child_of

Floats = NDArray[Any]


def line(a: Floats, b: Floats, mix: float) -> Floats:
    """The straight way."""
    return np.asarray((1 - mix) * a + mix * b)


def arc(a: Floats, b: Floats, mix: float) -> Floats:
    """Equation 2 of arXiv 2508.16204."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    omega = np.arccos(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    return np.asarray((np.sin((1 - mix) * omega) * a + np.sin(mix * omega) * b) / np.sin(omega))


@pytest.mark.parametrize("path", ["slerp", "linear"])
def test_before_the_split_a_child_is_at_the_mix_and_after_it_at_the_rest(path: Path) -> None:
    a, b = np.random.default_rng(0).standard_normal((2, 500)).astype(np.float32)
    child = child_of(a, b, [Cut(0, 500, 130, 0.3)], path)
    place = arc if path == "slerp" else line
    expected = np.concatenate([place(a[:130], b[:130], 0.3), place(a[130:], b[130:], 0.7)])
    assert child.dtype == np.float32
    np.testing.assert_allclose(child, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_noise_of_mutation_is_normal(dtype: type) -> None:
    array: Floats = np.full(400_001, 3.0, dtype)
    mutate_(array, 0.5, np.random.default_rng(1))
    noise = (array - 3.0) / 0.5
    assert array.dtype == dtype
    assert abs(noise.mean()) < 0.01
    assert abs(noise.std() - 1) < 0.005
    for beyond, share in ((1.0, 0.15866), (2.0, 0.02275), (3.0, 0.00135)):
        assert abs((noise > beyond).mean() / share - 1) < 0.15
        assert abs((noise < -beyond).mean() / share - 1) < 0.15
    neighbours = np.corrcoef(noise[:-1], noise[1:])[0, 1], np.corrcoef(noise[:-4], noise[4:])[0, 1]
    assert max(map(abs, neighbours)) < 0.01


def test_the_same_seed_mutates_the_same() -> None:
    one, two, other = np.zeros((3, 19_210), np.float32)
    for array, seed in ((one, 7), (two, 7), (other, 8)):
        mutate_(array, 0.01, np.random.default_rng(seed))
    assert np.array_equal(one, two)
    assert not np.array_equal(one, other)


@pytest.mark.parametrize("cuts", [[(0, 1001, 400)], [(0, 1001, 0)], [(0, 300, 299), (300, 1001, 1001)]], ids=str)
@pytest.mark.parametrize("angle", ["segment", "whole"])
@pytest.mark.parametrize("path", ["slerp", "linear"])
def test_one_pass_makes_the_bits_of_mixing_and_then_mutating(
    path: Path, angle: Angle, cuts: list[tuple[int, int, int]]
) -> None:
    a, b = np.random.default_rng(0).standard_normal((2, 1001)).astype(np.float32)
    places = [Cut(begin, end, at, 0.3) for begin, end, at in cuts]
    one, other = np.random.default_rng(4), np.random.default_rng(4)
    expected = child_of(a, b, places, path, angle)
    mutate_(expected, 0.1, one)
    child, inside = mutated_child_of(a, b, places, path, angle, 0.1, other, 8.0)
    assert child.tobytes() == expected.tobytes()
    assert one.random() == other.random()
    assert inside


@pytest.mark.parametrize("value", [1.5, -1.5, np.nan, np.inf])
def test_one_weight_out_of_bounds_is_reported(value: float) -> None:
    a = np.zeros(1001, np.float32)
    a[700] = value
    cuts = [Cut(0, 1001, 1001, 0.0)]
    for bound, expected in ((1.0, False), (2.0, bool(abs(value) < 2))):
        rng = np.random.default_rng(0)
        assert mutated_child_of(a, a, cuts, "linear", "whole", 0.01, rng, bound)[1] is expected
