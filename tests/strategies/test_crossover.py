"""Children of arrays of numbers, against the paper's formulas in float64, and the noise of their mutation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from evomerge.strategies.crossover import Cut, Path, child_of, mutate_

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
