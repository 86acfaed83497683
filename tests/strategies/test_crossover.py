"""Children of arrays of numbers, against the paper's formulas in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from evomerge.strategies.variation.crossover import Cut, Interpolation, child_of

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
def test_before_the_split_a_child_is_at_the_mix_and_after_it_at_the_rest(path: Interpolation) -> None:
    a, b = np.random.default_rng(0).standard_normal((2, 500)).astype(np.float32)
    child = child_of(a, b, [Cut(0, 500, 130, 0.3)], path)
    place = arc if path == "slerp" else line
    expected = np.concatenate([place(a[:130], b[:130], 0.3), place(a[130:], b[130:], 0.7)])
    assert child.dtype == np.float32
    np.testing.assert_allclose(child, expected, rtol=1e-5, atol=1e-6)
