from __future__ import annotations

import pytest
from merge.carry_out import merged, weights

from evomerge.errors import InfeasibleError

A, B, C = [[8.0, 0.0]], [[0.0, 8.0]], [[4.0, 4.0]]


def scored(*metrics: float) -> list[dict[str, float]]:
    return [{"metric": metric} for metric in metrics]


def test_shares_are_powers_of_metrics() -> None:
    assert merged("mwa", [A, B], None, scored(3, 1)) == [[6, 2]]
    assert merged("mwa", [A, B], None, scored(3, 1), penalty=2.0) == [[pytest.approx(7.2), pytest.approx(0.8)]]
    assert merged("mwa", [A, B], None, scored(1, 3), penalty=-1.0) == [[6, 2]]
    assert merged("mwa", [A, B, C], None, scored(1, 7, 2), penalty=0.0) == [[4, 4]]


def test_powers_beyond_what_a_float_holds() -> None:
    assert merged("mwa", [A, B], None, scored(1e200, 1e-200), penalty=8.0) == A
    assert merged("mwa", [A, B], None, scored(1e200, 1e-200), penalty=-8.0) == B


def test_weights_count_too_and_those_without_need_no_metric() -> None:
    given = [{"metric": 1.0, "weight": 3.0}, {"metric": 0.0, "weight": 0.0}, {"metric": 3.0, "weight": 1.0}]
    assert merged("mwa", [A, B, C], None, given) == [[6, 2]]
    with pytest.raises(InfeasibleError, match="metrics of 0 have no powers"):
        merged("mwa", [A, B], None, scored(1, 0))
    with pytest.raises(InfeasibleError, match="weights 0, 0 sum to 0"):
        merged("mwa", [A, B], None, weights(0, 0))
