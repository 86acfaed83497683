from __future__ import annotations

import pytest
import torch

from evomerge.merge.methods import METHODS, Context, call_values
from evomerge.models.statistics import Statistic

# Of two experts: the first model chooses the first three times in four, the other both alike.
ONE, OTHER = [[0.75, 0.25], [0.5, 0.5]], [[0.5, 0.5], [0.9, 0.1]]
NO_FLOOR = -30.0


def merged(
    inputs: tuple[torch.Tensor, torch.Tensor],
    axis: int,
    weight: tuple[float, float] = (1.0, 1.0),
    known: tuple[list[list[float]] | None, ...] = (ONE, OTHER),
    **shared: float | str,
) -> torch.Tensor:
    method = METHODS["usage"]
    values = call_values(method.spec, [{"weight": w} for w in weight], {"log_floor": NO_FLOOR, **shared})
    statistics = tuple(Statistic(torch.tensor(own), axis) if own is not None else None for own in known)
    assert method.function is not None
    return method.function(list(inputs), None, context=Context(0, (), statistics=statistics), **values)


def full(value: float) -> torch.Tensor:
    return torch.full((2, 3), float(value))


def test_an_expert_by_itself_by_hand() -> None:
    # The first: 0.75 and 0.5, so that (0.75 * 1 + 0.5 * 6) / 1.25 = 3; the second: 0.25 and 0.5.
    assert merged((full(1), full(6)), 0).flatten().tolist() == pytest.approx([3.0] * 6)
    assert merged((full(1), full(7)), 1).flatten().tolist() == pytest.approx([5.0] * 6)
    # By the router's weights 0.5 and 0.9; by model weights 2 and 1: 1.5 and 0.5; squared 9 to 4.
    assert merged((full(0), full(14)), 0, counts="weights").flatten().tolist() == pytest.approx([9.0] * 6)
    assert merged((full(0), full(8)), 0, (2, 1)).flatten().tolist() == pytest.approx([2.0] * 6)
    assert merged((full(0), full(13)), 0, power=2).flatten().tolist() == pytest.approx([4.0] * 6)


def test_all_experts_in_one_tensor_by_hand() -> None:
    first, second = torch.zeros(2, 3, 4), torch.stack([torch.full((3, 4), 5.0), torch.full((3, 4), 3.0)])
    found = merged((first, second), -1)
    assert found[0].flatten().tolist() == pytest.approx([2.0] * 12)  # 5 * 0.5 / 1.25
    assert found[1].flatten().tolist() == pytest.approx([2.0] * 12)  # 3 * 0.5 / 0.75
    rows = merged((torch.zeros(2, 4), torch.tensor([[5.0] * 4, [3.0] * 4])), -1)  # a router
    assert rows.flatten().tolist() == pytest.approx([2.0] * 8)


def test_what_nobody_chooses_and_what_has_no_frequencies_is_the_mean() -> None:
    never = [[0.0, 1.0], [0.0, 1.0]]
    assert merged((full(1), full(4)), 0, (2, 1), (never, never)).flatten().tolist() == pytest.approx([2.0] * 6)
    assert merged((full(1), full(4)), 0, (2, 1), (None, OTHER)).flatten().tolist() == pytest.approx([2.0] * 6)
    # The floor is in units of an even share: 2 * 0.75 + 1 to 2 * 0.5 + 1.
    assert merged((full(0), full(9)), 0, log_floor=0).flatten().tolist() == pytest.approx([4.0] * 6)
