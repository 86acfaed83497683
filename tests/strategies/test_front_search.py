"""The front of functions: what is found of one that is known, and NSGA-III's selection by hand."""

from __future__ import annotations

import numpy as np
import pytest

from evomerge.genomes.genome import Gene, GenomeSpec
from evomerge.preferences import lattice
from evomerge.strategies.bases.front_search import Array, front_of, most_volume_first, ranks, survivors
from evomerge.strategies.variation.coordinates import Coordinates


def test_fronts_are_counted_from_the_first() -> None:
    gains = np.array([[1.0, 1.0], [2.0, 0.0], [0.0, 0.0], [0.5, 1.0], [1.0, 1.0]])
    assert ranks(gains).tolist() == [0, 0, 2, 1, 0]


def test_the_last_front_gives_to_directions_that_have_nobody() -> None:
    """Two extremes stay; of the second front the one in the middle stays, and not the one beside an extreme."""
    gains = np.array([[1.0, 0.0], [0.0, 1.0], [0.95, -0.05], [-0.05, 0.95], [-0.01, -0.01]])
    assert ranks(gains).tolist() == [0, 0, 1, 1, 1]
    assert survivors(gains, 3, lattice(2, 3), np.random.default_rng(0)).tolist() == [0, 1, 4]


def test_what_adds_the_most_volume_is_first() -> None:
    """Above (-0.1, -0.1) the middle adds 0.36, then an end 0.06, and the other 0.05; what they beat adds nothing."""
    front = np.array([[0.0, 1.0], [0.5, 0.5], [1.0, 0.02], [0.9, 0.0], [1.0, 0.0]])
    assert most_volume_first(front, np.empty((0, 2)), 9) == [1, 2, 0]
    assert most_volume_first(front, front[[1]], 1) == [2]
    assert most_volume_first(front, np.array([[2.0, 2.0]]), 9) == []


@pytest.mark.parametrize("count", [5, 9])
def test_all_stay_where_there_are_no_more(count: int) -> None:
    gains = np.random.default_rng(0).random((5, 3))
    assert survivors(gains, count, lattice(3, 10), np.random.default_rng(0)).tolist() == [0, 1, 2, 3, 4]


def test_points_lie_on_the_front_and_all_along_it() -> None:
    """Three objectives, each best at a point of its own in four genes: the front is the triangle between them."""
    tops = np.array([[0.1, 0.2, 0.8, 0.5], [0.9, 0.3, 0.6, 0.5], [0.5, 0.9, 0.2, 0.5]])

    def gains(points: Array) -> Array:
        return -np.square(points[:, None] - tops).sum(axis=2)

    at = Coordinates(GenomeSpec(tuple(Gene(name) for name in "abcd")))
    points, found = front_of(gains, np.full((1, 4), 0.5), at, popsize=60, generations=25, rng=np.random.default_rng(0))
    np.testing.assert_allclose(found, gains(points))
    assert (ranks(found) == 0).all()
    corners, sums = np.vstack([tops.T, np.ones(3)]), np.vstack([points.T, np.ones(len(points))])
    shares = np.linalg.lstsq(corners, sums, rcond=None)[0]  # of the corners
    assert np.abs(shares.T @ tops - points).mean() < 0.03
    assert shares.min() > -0.3
    assert (shares.max(axis=1) > 0.8).all()  # near every corner
    assert np.abs(shares - 1 / 3).max(axis=0).min() < 0.08  # and in the middle


def test_whole_numbers_stay_on_their_grid() -> None:
    spec = GenomeSpec((Gene("n", "integer", 0, 4), Gene("x", resolution=0.25)))
    at = Coordinates(spec)

    def gains(points: Array) -> Array:
        return np.column_stack([points.sum(axis=1), -points[:, 0]])

    points, _ = front_of(gains, at.start[None], at, popsize=12, generations=10, rng=np.random.default_rng(1))
    found = {at.genome(point, np.empty(0, dtype=np.int64)).values for point in points}
    np.testing.assert_allclose(points, [at.snapped(point[None])[0] for point in points], atol=1e-12)
    assert found == {(n, 1.0) for n in range(5)}
