from __future__ import annotations

import pytest
import torch

from evomerge.merge.methods import METHODS, Context, call_values
from evomerge.models.statistics import Statistic

BASE = [[1.0, 1.0, 1.0], [0.0, 0.0, 0.0], [2.0, 2.0, 2.0]]
REASONS = [[2.0, 1.0, 1.0], [0.0, 1.0, 0.0], [2.0, 2.0, 0.0]]
DOMAIN = [[1.0, 3.0, 1.5], [1.0, 0.0, 2.0], [2.0, 1.0, 2.0]]
SQUARES = [[1.0, 1.0, 0.0], [2.0, 1.0, 1.0], [1.0, 1.0, 0.5]]
SAID = [[-1.0, -4.0, -1.0], [-1.0, -1.0, 0.5], [0.0, -2.0, -3.0]]


def merged(
    squares: list[list[float]] | None,
    said: list[list[float]] | None,
    weight: tuple[float, ...] = (1.0, 1.0),
    log_lambda: float = 0.0,
) -> list[list[float]]:
    method = METHODS["rcp"]
    values = call_values(method.spec, [{"weight": w} for w in weight], {"log_lambda": log_lambda})

    def known(own: list[list[float]] | None) -> Statistic | None:
        return Statistic(torch.tensor(own).reshape(-1)) if own is not None else None

    assert method.function is not None
    context = Context(statistics=(known(squares), known(SQUARES), known(said), known(said)))
    inputs, base = [torch.tensor(REASONS), torch.tensor(DOMAIN)], torch.tensor(BASE)
    found: list[list[float]] = method.function(inputs, base, context=context, **values).tolist()
    return found


def test_by_hand() -> None:
    # Squared distances (1, 4, .25), (1, 1, 4), (0, 1, 4); costs (1, 4, 0), (2, 1, 4), (0, 1, 2); with what is said at
    # most 0 are all of the first row, the second of the second, all of the third.
    added = [[2, 3, 1.5], [0, 1, 0], [2, 1, 0]]
    assert merged(SQUARES, SAID) == [pytest.approx(row) for row in added]
    # Ten times as much: where the distance or the square is 0, and nowhere else.
    kept = [[2, 1, 1.5], [0, 1, 0], [2, 2, 0]]
    assert merged(SQUARES, SAID, log_lambda=1.0) == [pytest.approx(row) for row in kept]
    # Nothing: what is said alone, and none against.
    assert merged(SQUARES, SAID, log_lambda=-30.0)[1] == pytest.approx([1, 1, 0])
    # Half of the domain's changes, twice the other's.
    found = merged(SQUARES, SAID, weight=(2.0, 0.5))
    assert found == [pytest.approx(row) for row in [[3, 2, 1.25], [0, 2, 0], [2, 1.5, -2]]]


def test_without_statistics_nothing_speaks_against_a_change() -> None:
    assert merged(None, None) == [pytest.approx(row) for row in [[2, 3, 1.5], [1, 1, 2], [2, 1, 0]]]


def test_an_input_of_weight_zero_leaves_the_next_as_the_first() -> None:
    assert merged(SQUARES, SAID, weight=(0.0, 0.5)) == [
        pytest.approx(row) for row in [[1, 2, 1.25], [0.5, 0, 1], [2, 1.5, 2]]
    ]
    assert merged(SQUARES, SAID, weight=(0.0, 0.0)) == BASE
