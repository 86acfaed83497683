from __future__ import annotations

import numpy as np
from contracts.strategy_player import CONTINUOUS, MIXED

from evomerge.genomes.genome import Gene, Genome, GenomeSpec
from evomerge.strategies.variation.coordinates import Coordinates

NONE = np.empty(0, dtype=np.int64)


def test_what_is_free() -> None:
    mixed = Coordinates(MIXED)
    assert mixed.names == (
        "embed/method",
        "embed/a/weight",
        "embed/rank",
        "layers.0/a/weight",
        "layers.0/rescale",
        "head/a/weight",
    )
    assert mixed.counts == [3, 2]
    # A range of 4 from -2, starting at 1; the numbers 1 to 6, starting at 4 (the middle, rounded to even); a grid.
    assert mixed.start.tolist() == [0.75, 3.5 / 6, 0.5, 0.0]
    assert mixed.steps.tolist() == [0.0, 1 / 6, 0.05, 0.0]


def test_coordinates_become_genomes() -> None:
    coordinates = Coordinates(MIXED)
    genome = coordinates.genome(np.array([0.25, 0.5, 0.52, 1.0]), np.array([2, 0]))
    assert genome == Genome(("slerp", -1.0, 4, "ties", 0.5, False, 3, 1.0))
    MIXED.check(genome)
    assert coordinates.genome(coordinates.start, np.array([0, 1])) == MIXED.initial


def test_whole_numbers_share_the_range_equally() -> None:
    coordinates = Coordinates(GenomeSpec((Gene("k", "integer", low=-1.5, high=3.2),)))
    points = np.linspace(0, 1, 5 * 20, endpoint=False)
    found = [coordinates.genome(np.array([at]), NONE).values[0] for at in points]
    assert found == [number for number in (-1, 0, 1, 2, 3) for _ in range(20)]
    assert coordinates.genome(np.array([1.0]), NONE).values == (3,)


def test_points_are_put_on_their_grids() -> None:
    genes = (Gene("x"), Gene("k", "integer", low=0, high=3), Gene("y", low=1.0, high=2.0, resolution=0.25))
    coordinates = Coordinates(GenomeSpec(genes))
    points = np.array([[0.3, 0.2, 0.3], [0.71, 0.99, 0.99], [0.0, 0.0, 0.1]])
    wanted = [[0.3, 0.125, 0.25], [0.71, 0.875, 1.0], [0.0, 0.125, 0.0]]
    np.testing.assert_allclose(coordinates.snapped(points), wanted)


def test_continuous_genes_are_scaled_by_their_range() -> None:
    coordinates = Coordinates(CONTINUOUS)
    assert coordinates.genome(np.array([0.1, 0.25, 0.49, 1.0]), NONE).values == (0.1, -1.0, 0.5, 0.4, 1.0)
