from __future__ import annotations

import pytest
import torch

from evomerge.merge.methods import METHODS, Context, call_values
from evomerge.models.statistics import Statistic
from evomerge.recipes.method_spec import Scalar

BASE = [[1.0, 1.0, 1.0], [0.0, 0.0, 0.0], [2.0, 2.0, 2.0]]
ONE = [[2.0, 3.0, 1.0], [1.0, 0.0, 0.0], [2.0, 2.0, 2.0]]
OTHER = [[0.0, 3.0, 5.0], [0.0, 2.0, 0.0], [2.0, 2.0, 1.0]]
STEEP = [[9.0, 1.0, 4.0], [1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]
EVEN = [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]
NO_FLOOR = -30.0


def merged(
    curvature: list[list[list[float]] | None],
    weight: tuple[float, ...] = (1.0, 1.0),
    density: tuple[float, ...] = (1.0, 1.0),
    means: tuple[float, ...] = (1.0, 1.0),
    **shared: Scalar,
) -> list[list[float]]:
    method = METHODS["ota"]
    each: list[dict[str, Scalar]] = [{"weight": w, "density": d} for w, d in zip(weight, density, strict=True)]
    values = call_values(method.spec, each, {"log_floor": NO_FLOOR, **{k.rstrip("_"): v for k, v in shared.items()}})
    known = tuple(
        Statistic(torch.tensor(own).reshape(-1), mean=mean) if own is not None else None
        for own, mean in zip(curvature, means, strict=True)
    )
    assert method.function is not None
    inputs, base = [torch.tensor(ONE), torch.tensor(OTHER)], torch.tensor(BASE)
    found: list[list[float]] = method.function(inputs, base, context=Context(statistics=known), **values).tolist()
    return found


def test_changes_are_weighted_by_the_root_of_the_curvature() -> None:
    # Changes (1, 2, 0), (1, 0, 0), 0 and (-1, 2, 4), (0, 2, 0), (0, 0, -1); roots (3, 1, 2), 1, 1 and 1.
    found = merged([STEEP, EVEN])
    assert found[0] == pytest.approx([1 + (3 - 1) / 4, 3, 1 + 4 / 3])
    assert found[1] == pytest.approx([0.5, 1, 0])
    assert found[2] == pytest.approx([2, 2, 1.5])
    # As it is: 9 to 1 and 4 to 1; twice the change, the second three times.
    assert merged([STEEP, EVEN], power=1.0)[0] == pytest.approx([1 + (9 - 1) / 10, 3, 1 + 4 / 5])
    found = merged([STEEP, EVEN], weight=(1.0, 3.0), lambda_=2.0)
    assert found[0] == pytest.approx([1 + 2 * (3 - 3) / 6, 1 + 2 * 2, 1 + 2 * 12 / 5])


def test_what_costs_least_is_left_out() -> None:
    # Scores of the first: (9, 4, 0), (1, 0, 0), 0. Three of nine: 9, 4 and 1. Of the second (1, 4, 16), (0, 4, 0),
    # (0, 0, 1): of two only 16 is above the next, and both 4 are kept.
    found = merged([STEEP, EVEN], density=(0.34, 0.23))
    assert found[0] == pytest.approx([2, 1 + 2, 5])  # one alone; both; the second alone, the first being left out
    assert found[1] == pytest.approx([1, 2, 0])
    assert found[2] == pytest.approx([2, 2, 2])  # kept by neither: the base
    assert merged([STEEP, EVEN], density=(0.0, 0.0)) == [pytest.approx(row) for row in BASE]


def test_a_matrix_of_rank_one_is_given_by_its_sums() -> None:
    outer = [[2.0, 4.0, 6.0], [1.0, 2.0, 3.0], [1.0, 2.0, 3.0]]
    whole, short = merged([outer, EVEN]), merged([outer, EVEN], rank_one=True)
    assert short == [pytest.approx(row) for row in whole]
    # Rows of 14, 3 and 3, columns of 11, 3 and 6 of 20: 7.7 at the first element.
    found = merged([STEEP, EVEN], rank_one=True, power=1.0)
    assert found[0][0] == pytest.approx(1 + (7.7 - 1) / 8.7)


def test_units_are_each_models_mean_unless_they_are_not() -> None:
    ten = [[10 * v for v in row] for row in EVEN]
    assert merged([ten, EVEN], means=(10.0, 1.0)) == [pytest.approx(row) for row in merged([EVEN, EVEN])]
    found = merged([ten, EVEN], means=(10.0, 1.0), normalize=False, power=1.0)
    assert found[0] == pytest.approx([1 + (10 - 1) / 11, 3, 1 + 4 / 11])


def test_the_floor_makes_it_the_mean_and_so_does_no_curvature() -> None:
    expected = [[1, 3, 3], [0.5, 1, 0], [2, 2, 1.5]]
    assert merged([STEEP, EVEN], log_floor=9.0) == [pytest.approx(row, abs=1e-6) for row in expected]
    assert merged([STEEP, None]) == [pytest.approx(row) for row in expected]
    zero = [[0.0] * 3] * 3
    assert merged([zero, zero]) == [pytest.approx(row) for row in expected]  # the floor is all that counts
