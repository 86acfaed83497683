from __future__ import annotations

import math

import torch
from merge.carry_out import carry_out, merged


def test_moves_by_t_at_most() -> None:
    base, model = [1.0, 1.0, 1.0, 1.0, 1.0], [1.25, 0.75, 5.0, -5.0, 1.0]
    assert merged("nearswap", [model], base, t=0.5) == [1.25, 0.75, 1.5, 0.5, 1.0]
    assert merged("nearswap", [model], base, t=0.25) == [1.25, 0.75, 1.25, 0.75, 1.0]
    assert merged("nearswap", [model], base, t=0.0) == base
    assert merged("nearswap", [model], base, t=100.0) == model


def test_near_values_are_the_models_exactly() -> None:
    base, model = torch.tensor([1.0, 1e8]), torch.tensor([1e-8, 1.0])
    assert torch.equal(carry_out("nearswap", [model], base, None, {"t": 1e9}), model)


def test_not_a_number_stays_where_it_is() -> None:
    result = merged("nearswap", [[math.nan, 2.0]], [1.0, 1.0], t=0.5)
    assert math.isnan(result[0])
    assert result[1] == 1.5
