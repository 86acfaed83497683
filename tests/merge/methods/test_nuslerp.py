from __future__ import annotations

import math

import pytest
from merge.carry_out import merged, weights

from evomerge.errors import InfeasibleError, PoolError

A, B = [[1.0, 0.0], [0.0, 2.0]], [[0.0, 1.0], [2.0, 0.0]]  # at right angles, whole as well as by rows and columns
HALF = math.sqrt(0.5)


def flat(rows: list[list[float]]) -> list[float]:
    return [x for row in rows for x in row]


def test_whole_tensors() -> None:
    assert flat(merged("nuslerp", [A, B])) == pytest.approx([HALF, HALF, 2 * HALF, 2 * HALF])
    # Weights 1 and 2 are t = 2/3: factors cos 60 and sin 60.
    low, high = 0.5, math.sqrt(0.75)
    assert flat(merged("nuslerp", [A, B], each=weights(1, 2))) == pytest.approx([low, high, 2 * high, 2 * low])
    assert merged("nuslerp", [A, B], each=weights(10, 20)) == merged("nuslerp", [A, B], each=weights(1, 2))


def test_rows_and_columns() -> None:
    # Last-dimension vectors: the first ones are equal, the second ones at right angles.
    a, b = [[3.0, 0.0], [1.0, 0.0]], [[3.0, 0.0], [0.0, 1.0]]
    by_last = merged("nuslerp", [a, b], nuslerp_flatten=False)
    assert flat(by_last) == pytest.approx([3.0, 0.0, HALF, HALF])
    # First-dimension vectors: (3, 1) and (3, 0) at an angle of atan(1/3); zero is at right angles to (0, 1).
    by_first = merged("nuslerp", [a, b], nuslerp_flatten=False, nuslerp_row_wise=True)
    factor = 0.5 / math.cos(math.atan(1 / 3) / 2)  # sin(x/2) / sin x
    assert flat(by_first) == pytest.approx([6 * factor, 0.0, factor, HALF])
    one = merged("nuslerp", [flat(a), flat(b)], nuslerp_flatten=False)
    assert one == pytest.approx(merged("nuslerp", [flat(a), flat(b)]))


def test_task_vectors() -> None:
    base = [[1.0, 1.0], [1.0, 1.0]]
    moved = [[[x + 1 for x in row] for row in rows] for rows in (A, B)]
    for settings in ({}, {"nuslerp_flatten": False}, {"nuslerp_flatten": False, "nuslerp_row_wise": True}):
        result = merged("nuslerp", moved, base, weights(1, 3), **settings)
        expected = merged("nuslerp", [A, B], None, weights(1, 3), **settings)
        assert flat(result) == pytest.approx([x + 1 for x in flat(expected)])


def test_collinear_and_zero_tensors() -> None:
    assert merged("nuslerp", [[1.0, 1.0], [3.0, 3.0]], each=weights(3, 1)) == [1.5, 1.5]
    assert merged("nuslerp", [[1.0], [-1.0]], each=weights(3, 1)) == [0.5]
    assert merged("nuslerp", [[0.0, 0.0], [4.0, 2.0]]) == pytest.approx([4 * HALF, 2 * HALF])
    assert merged("nuslerp", [[0.0], [0.0]]) == [0.0]


@pytest.mark.parametrize("numbers", [(0.0, 0.0), (1.0, -1.0)])
def test_weights_that_sum_to_zero(numbers: tuple[float, float]) -> None:
    with pytest.raises(InfeasibleError, match="sum to 0"):
        merged("nuslerp", [[1.0], [2.0]], each=weights(*numbers))


def test_not_a_number_in_a_row() -> None:
    with pytest.raises(PoolError, match="input 1 has values that are NaN"):
        merged("nuslerp", [[[1.0, 2.0], [math.nan, 0.0]], A], nuslerp_flatten=False)
