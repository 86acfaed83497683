from __future__ import annotations

import math

import pytest
from merge.carry_out import merged

from evomerge.errors import PoolError


def test_right_angles() -> None:
    half = math.sqrt(0.5)
    assert merged("slerp", [[1.0, 0.0], [0.0, 1.0]], t=0.5) == pytest.approx([half, half])
    third = merged("slerp", [[2.0, 0.0], [0.0, 4.0]], t=1 / 3)
    assert third == pytest.approx([2 * math.cos(math.pi / 6), 4 * math.sin(math.pi / 6)])


def test_sixty_degrees() -> None:
    # Both factors are sin 30 / sin 60.
    sixty = merged("slerp", [[1.0, 0.0], [0.5, math.sqrt(0.75)]], t=0.5)
    assert sixty == pytest.approx([1.5 / math.sqrt(3), 0.5])


def test_linear_where_there_is_no_angle() -> None:
    assert merged("slerp", [[1.0, 1.0], [3.0, 3.0]], t=0.25) == [1.5, 1.5]
    assert merged("slerp", [[1.0, 1.0], [-1.0, -1.0]], t=0.25) == [0.5, 0.5]
    assert merged("slerp", [[0.0, 0.0], [4.0, 2.0]], t=0.25) == [1.0, 0.5]
    assert merged("slerp", [[0.0, 0.0], [0.0, 0.0]], t=0.25) == [0.0, 0.0]
    assert merged("slerp", [[2.0], [-2.0]], t=0.25) == [1.0]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("method", ["slerp", "nuslerp", "multislerp", "karcher"])
def test_names_the_input_that_is_not_finite(method: str, bad: float) -> None:
    with pytest.raises(PoolError, match="input 2 has values that are NaN, infinite"):
        merged(method, [[1.0, 2.0], [1.0, bad]])
