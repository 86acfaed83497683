from __future__ import annotations

import pytest
from merge.carry_out import merged, weights

from evomerge.errors import InfeasibleError

A = [[8.0, 0.0], [1.0, -4.0]]
B = [[0.0, 8.0], [1.0, 4.0]]
C = [[0.0, 0.0], [1.0, 8.0]]


def test_the_average_moves_with_each_input() -> None:
    # Shares are 1/16, 3/16 and 3/4.
    assert merged("ema", [A, B, C], rate=0.25) == [[0.5, 1.5], [1, 6.5]]
    # 1/4, 1/4 and 1/2, which the order changes.
    assert merged("ema", [A, B, C]) == [[2, 2], [1, 4]]
    assert merged("ema", [C, B, A]) == [[4, 2], [1, 1]]


def test_unbiased_shares() -> None:
    # 1/7, 2/7 and 4/7.
    expected = [pytest.approx(row) for row in ([8 / 7, 16 / 7], [1, (-4 + 8 + 32) / 7])]
    assert merged("ema", [A, B, C], unbiased=True) == expected
    assert merged("ema", [A, B], rate=1.0, unbiased=True) == [[4, 4], [1, 0]]


def test_ends_are_inputs_as_they_are() -> None:
    for shortcut in (True, False):
        assert merged("ema", [A, B, C], rate=0.0, shortcut=shortcut) == C
        assert merged("ema", [A, B, C], rate=1.0, shortcut=shortcut) == A
        assert merged("ema", [A, B, C], None, weights(0, 2, 0), shortcut=shortcut) == B
        assert merged("ema", [A], shortcut=shortcut) == A


def test_weights() -> None:
    # The series is A and C, with 1/2 each times 3 and 1.
    assert merged("ema", [A, B, C], None, weights(3, 0, 1)) == [[6, 0], [1, -1]]
    with pytest.raises(InfeasibleError, match="weights 0, 0 sum to 0"):
        merged("ema", [A, B], None, weights(0, 0))
