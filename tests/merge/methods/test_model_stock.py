from __future__ import annotations

import math

import pytest
from merge.carry_out import merged

from evomerge.errors import PoolError


def test_angle_between_two_models() -> None:
    base = [1.0, 1.0]
    # Task vectors (2, 0) and (1, sqrt 3): 60 degrees, t = 2 * 0.5 / 1.5.
    a, b = [3.0, 1.0], [2.0, 1.0 + math.sqrt(3)]
    t = 2 / 3
    assert merged("model_stock", [a, b], base) == pytest.approx([1 + t * 1.5, 1 + t * math.sqrt(3) / 2])


def test_mean_cosine_of_three() -> None:
    base = [0.0, 0.0]
    # Cosines 0, 0.8 and 0.6: t = 3 c / (1 + 2 c) of their mean.
    a, b, c = [1.0, 0.0], [0.0, 2.0], [4.0, 3.0]
    cosine = (0 + 0.8 + 0.6) / 3
    t = 3 * cosine / (1 + 2 * cosine)
    assert merged("model_stock", [a, b, c], base) == pytest.approx([t * 5 / 3, t * 5 / 3])


def test_models_beyond_right_angles() -> None:
    base = [0.0, 1.0]
    a, b = [1.0, 1.0], [-1.0, 2.0]  # task vectors (1, 0) and (-1, 1): 135 degrees
    assert merged("model_stock", [a, b], base) == base
    cosine = -math.sqrt(0.5)
    t = 2 * cosine / (1 + cosine)  # -4.83
    assert merged("model_stock", [a, b], base, reading="mergekit") == pytest.approx([0.0, 1 + t * 0.5])
    opposite = [[1.0, 1.0], [-1.0, 1.0]]
    for reading in ("paper", "mergekit"):
        assert merged("model_stock", opposite, base, reading=reading) == base


def test_a_model_that_is_the_base() -> None:
    base = [1.0, 2.0]
    assert merged("model_stock", [base, [2.0, 2.0]], base) == base
    assert merged("model_stock", [base, base, base], base) == base
    # Two alike and one at the base: cosines 1, 0, 0.
    t = 3 * (1 / 3) / (1 + 2 / 3)
    assert merged("model_stock", [[4.0, 2.0], [4.0, 2.0], base], base) == pytest.approx([1 + t * 2.0, 2.0])


def test_small_task_vectors_have_angles_too() -> None:
    base, a, b = [0.0, 0.0], [1e-4, 0.0], [1e-4, 0.0]
    assert merged("model_stock", [a, b], base) == pytest.approx([1e-4, 0.0])
    # mergekit reads a product of norms of 1e-8 as 1e-6: a cosine of 0.01.
    assert merged("model_stock", [a, b], base, reading="mergekit") == pytest.approx([1e-4 * 0.02 / 1.01, 0.0])


def test_filter_wise() -> None:
    base = [[0.0, 0.0], [0.0, 0.0]]
    a, b = [[1.0, 0.0], [1.0, 0.0]], [[3.0, 0.0], [0.0, 1.0]]
    # The first rows are parallel (t = 1), the second at right angles (t = 0); as a whole the cosine is 3 / sqrt 20.
    assert merged("model_stock", [a, b], base, filter_wise=True) == [[2.0, 0.0], [0.0, 0.0]]
    cosine = 3 / math.sqrt(20)
    t = 2 * cosine / (1 + cosine)
    whole = merged("model_stock", [a, b], base)
    assert whole[0] == pytest.approx([2 * t, 0.0])
    assert whole[1] == pytest.approx([t / 2, t / 2])
    row = merged("model_stock", [[1.0, 0.0], [3.0, 0.0]], [0.0, 0.0], filter_wise=True)
    assert row == [2.0, 0.0]


@pytest.mark.parametrize("filter_wise", [False, True])
def test_not_a_number(filter_wise: bool) -> None:
    given = [[[1.0, math.nan], [1.0, 1.0]], [[1.0, 2.0], [3.0, 4.0]]]
    with pytest.raises(PoolError, match="input 1 has values that are NaN"):
        merged("model_stock", given, [[0.0, 0.0], [0.0, 0.0]], filter_wise=filter_wise)
