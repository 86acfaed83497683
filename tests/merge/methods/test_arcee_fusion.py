from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from merge.carry_out import carry_out, merged

from evomerge.errors import PoolError


def test_takes_what_stands_out() -> None:
    base = [[0.0] * 8]
    model = [[0.01, -0.01, 0.01, 0.02, -0.02, 0.01, 3.0, -1.0]]
    # One row: importance is proportional to the difference. Sorted .01 x4, .02 x2, 1, 3: quartiles (ranks 1, 3, 5)
    # .01, .01 and .02, so that the threshold is .01 + 1.5 * .01 = .025.
    assert merged("arcee_fusion", [model], base)[0] == pytest.approx([0.0] * 6 + [3.0, -1.0])


def test_rows_weigh_by_their_divergence() -> None:
    base = [[0.0, 0.0, 0.0, 0.0] for _ in range(4)]
    # Adding a constant to a row leaves its softmax alone: no divergence, no importance.
    model = [[9.0, 9.0, 9.0, 9.0], [0.125, 0.0, 0.0, 0.0], [0.0, 0.0, 0.125, 0.0], [0.0, 2.0, 0.0, 0.0]]
    result = merged("arcee_fusion", [model], base)
    # 13 of 16 importances are zero, quartiles all zero and so the threshold: everything is as important.
    assert result == model
    base[0] = [0.0, 0.0, 0.0, 1.0]
    model = [[1.0, 2.0, 3.0, 4.0], [2.0, 2.0, 2.0, 2.5], [-0.5, 0.5, 0.0, 0.4], [0.3, -0.3, 0.2, 0.1]]
    kl = []
    for row, origin in zip(model, base, strict=True):
        p, q = (np.exp(v) / np.exp(v).sum() for v in (np.array(row), np.array(origin)))
        kl.append(float((p * np.log(p / q)).sum()))
    importance = [[abs(x - y) * d for x, y in zip(r, o, strict=True)] for r, o, d in zip(model, base, kl, strict=True)]
    ordered = sorted(x for row in importance for x in row)
    threshold = ordered[7] + 1.5 * (ordered[11] - ordered[3])
    expected = [
        [x if i >= threshold else y for x, y, i in zip(r, o, s, strict=True)]
        for r, o, s in zip(model, base, importance, strict=True)
    ]
    result = merged("arcee_fusion", [model], base)
    assert expected not in (model, base)
    for row, wanted in zip(result, expected, strict=True):
        assert row == pytest.approx(wanted)


def test_large_tensors_are_not_sampled() -> None:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(1100, 1000, generator=generator)
    model = base + 0.1 * torch.randn(1100, 1000, generator=generator)
    state = torch.get_rng_state()
    results = [carry_out("arcee_fusion", [model], base) for _ in range(2)]
    assert torch.equal(*results)
    assert torch.equal(torch.get_rng_state(), state)
    taken = results[0] != base
    assert 0.05 < float(taken.float().mean()) < 0.2
    assert torch.equal(results[0][taken], model[taken])


def test_one_element_is_the_models() -> None:
    assert merged("arcee_fusion", [[2.0]], [1.0]) == [2.0]
    assert merged("arcee_fusion", [2.0], 1.0) == 2.0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_not_a_number(bad: float) -> None:
    with pytest.raises(PoolError, match="NaN or infinite"):
        merged("arcee_fusion", [[1.0, bad]], [1.0, 2.0])
