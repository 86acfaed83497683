"""Points as coefficients against the vectors themselves."""

from __future__ import annotations

import numpy as np
import pytest

from evomerge.merge.methods.sphere import Sphere, arc


@pytest.fixture
def points() -> np.ndarray:
    return np.random.default_rng(3).normal(size=(3, 20)) * np.array([[1.0], [5.0], [0.01]])


def test_exponential_undoes_the_logarithm(points: np.ndarray) -> None:
    sphere = Sphere(points @ points.T)
    point = sphere.mean(np.array([0.2, 0.3, 0.5]))
    assert point is not None
    assert sphere.length(point) == pytest.approx(1)
    for i in range(3):
        alone = np.eye(3)[i]
        tangent = sphere.tangent(point, alone)
        assert tangent is not None
        # The logarithm is as long as the angle and leads to the direction itself.
        unit = points[i] / np.linalg.norm(points[i])
        centre = np.array(sphere.factors(point, 1.0)) @ points
        assert sphere.length(tangent) == pytest.approx(np.arccos(unit @ centre))
        assert np.array(sphere.factors(sphere.step(point, tangent), 7.0)) @ points == pytest.approx(7 * unit)


def test_cancelling_and_opposite_directions() -> None:
    x = np.array([[1.0, 0.0], [-2.0, 0.0], [0.0, 0.0]])
    sphere = Sphere(x @ x.T)
    assert sphere.mean(np.array([0.5, 0.5, 0.0])) is None
    assert sphere.mean(np.array([0.0, 0.0, 1.0])) is None
    point = sphere.mean(np.array([0.7, 0.3, 0.0]))
    assert point is not None
    assert sphere.tangent(point, np.array([0.7, 0.3, 0.0])) is None
    tangent = sphere.tangent(point, np.array([1.0, 0.0, 0.0]))
    assert tangent is not None
    assert sphere.length(tangent) == 0
    assert sphere.step(point, tangent) is point


def test_arc_of_many_angles_at_once() -> None:
    cosines = np.array([0.0, 0.5, 1.0, -1.0, 1 - 1e-12])
    first, second = arc(cosines, 0.25, 1e-6)
    assert first[2:] == pytest.approx([0.75, 0.75, 0.75])
    assert second[2:] == pytest.approx([0.25, 0.25, 0.25])
    angle = np.pi / 3
    assert (first[1], second[1]) == pytest.approx(
        (np.sin(0.75 * angle) / np.sin(angle), np.sin(angle / 4) / np.sin(angle))
    )
