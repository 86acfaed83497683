from __future__ import annotations

import pytest
from merge.carry_out import merged, weights

BASE = [[1.0, 1.0, 1.0]]
A, B = [[4.0, 1.0, 3.0]], [[2.0, -3.0, -1.0]]  # changes of 3, 0, 2 and 1, -4, -2


def test_larger_changes_count_more() -> None:
    # (9 + 1) / 4, 16 / 4 and none, for the two are as large.
    assert merged("delta_guided", [A, B], BASE) == [[pytest.approx(3.5), -3, 1]]
    assert merged("delta_guided", [A, B], BASE, power=0) == [[3, -1, 1]]  # their mean
    assert merged("delta_guided", [A, B], BASE, power=2) == [[pytest.approx(1 + 28 / 10), -3, 1]]
    assert merged("delta_guided", [A, B], BASE, lambda_=0.5) == [[pytest.approx(2.25), -1, 1]]


def test_weights_are_of_the_changes() -> None:
    # 6 and 1: 37 / 7.
    found = merged("delta_guided", [A, B], BASE, weights(2, 1))
    assert found[0][0] == pytest.approx(1 + 37 / 7)
    assert merged("delta_guided", [A, B], BASE, weights(0, 0)) == BASE


def test_small_changes_and_high_powers_stay_finite() -> None:
    small = [[1.0 + 2**-20, 1.0, 1.0]]
    assert merged("delta_guided", [small, B], BASE, power=4) == [[2, -3, -1]]
    assert merged("delta_guided", [small, BASE], BASE, power=4) == small  # what nothing moved stays
