from __future__ import annotations

import pytest
import torch

from evomerge.merge.methods import METHODS, Context, call_values
from evomerge.models.statistics import Statistic


def merged(second: list[list[float]], **shared: float | bool) -> list[float]:
    method = METHODS["hessian"]
    values = call_values(method.spec, [{"weight": 1.0}, {"weight": 1.0}], {"log_floor": -30.0, **shared})
    known = tuple(Statistic(torch.tensor(own), mean=1.0) for own in second)
    tensors = [torch.tensor([1.0, 2.0, 3.0]), torch.tensor([3.0, 4.0, 7.0])]
    assert method.function is not None
    return method.function(tensors, None, context=Context(0, (), statistics=known), **values).tolist()


def test_by_hand() -> None:
    # Alike: the mean; curved downwards on one side: the other model's; three to one: (3*3 + 1*7) / 4.
    assert merged([[1, -2, 3], [1, 5, 1]]) == pytest.approx([2, 4, 4])
    # Downwards on both sides: nothing is known, the mean.
    assert merged([[-1, -2, -3], [-1, -5, -1]]) == pytest.approx([2, 3, 5])
    # With a floor of 1 in units of the mean: 4 to 2, and 1 to 6.
    assert merged([[1, -2, 3], [1, 5, 1]], log_floor=0) == pytest.approx([2, (1 * 2 + 6 * 4) / 7, (4 * 3 + 2 * 7) / 6])
