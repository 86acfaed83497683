from __future__ import annotations

import pytest
import torch
from merge.carry_out import carry_out, merged, weights
from merge.mergekits import fine_tunes

BASE = [[1.0, 1.0, 1.0], [0.0, 0.0, 0.0], [2.0, 2.0, 2.0]]
A = [[3.0, 0.0, 1.0], [1.0, -2.0, 0.5], [2.0, 2.0, 5.0]]  # +2 -1  0 | +1   -2   +0.5 | 0 0 +3
B = [[0.0, 4.0, 1.0], [-4.0, -1.0, 0.0], [1.0, 2.5, 1.0]]  # -1 +3  0 | -4   -1    0   | -1 +0.5 -1
C = [[2.5, 2.0, 0.0], [2.0, 0.5, 0.25], [1.5, 2.0, 1.0]]  # +1.5 +1 -1 | +2 +0.5 +0.25 | -0.5 0 -1


def test_magmax_takes_the_largest_change() -> None:
    assert merged("magmax", [A, B, C], BASE) == [[3, 4, 0], [-4, -2, 0.5], [1, 2.5, 5]]
    halved = [[2, 2.5, 0.5], [-2, -1, 0.25], [1.5, 2.25, 3.5]]
    assert merged("magmax", [A, B, C], BASE, lambda_=0.5) == halved
    # B at half: -0.5 +1.5 0 | -2 -0.5 0 | -0.5 +0.25 -0.5; of -2 and +2 the positive counts.
    result = merged("magmax", [A, B, C], BASE, weights(1, 0.5, 1))
    assert result == [[3, 2.5, 0], [2, -2, 0.5], [1.5, 2.25, 5]]


def test_emr_takes_the_largest_change_of_the_elected_sign() -> None:
    # Sums: 2.5 3 -1 | -1 -2.5 0.75 | -1.5 0.5 1
    expected = [[3, 4, 0], [-4, -2, 0.5], [1, 2.5, 5]]
    assert merged("emr", [A, B, C], BASE) == expected
    # Without A: 0.5 4 -1 | -2 -0.5 0.25 | -1.5 0.5 -2, where the largest of the first element is negative.
    assert merged("emr", [B, C], BASE) == [[2.5, 4, 0], [-4, -1, 0.25], [1, 2.5, 1]]
    assert merged("emr", [B, C], BASE, weights(1, 0)) == B
    # Two that cancel: the sign is negative.
    assert merged("emr", [[2.0], [-2.0]], [0.0], lambda_=1.5) == [-3]


def public_magmax(tasks: list[torch.Tensor]) -> torch.Tensor:
    """The authors' rule, and fusion_bench's: fold the tensors, each taking over where it is at least as large."""
    found = tasks[0]
    for task in tasks[1:]:
        found = torch.where(task.abs() < found.abs(), found, task)
    return found


def public_emr(tasks: list[torch.Tensor]) -> torch.Tensor:
    """The authors' rule, and fusion_bench's: 1 where the mean is positive, else -1, times the largest that agrees."""
    sign = torch.stack(tasks).mean(0).gt(0).float() * 2 - 1
    agreeing = [torch.relu(task * sign) for task in tasks]
    return sign * torch.stack(agreeing).amax(0)


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_same_as_public_code(scale: float) -> None:
    """As fusion_bench 0.2.33 computes them; for EMR its unified vector, which it then masks and rescales by task."""
    base, inputs = fine_tunes()
    tasks = [x - base for x in inputs]
    for method, rule in (("magmax", public_magmax), ("emr", public_emr)):
        result = carry_out(method, inputs, base, None, {"lambda": scale})
        torch.testing.assert_close(result, base + scale * rule(tasks), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("method", ["magmax", "emr"])
def test_no_weights_and_no_lambda_give_the_base(method: str) -> None:
    for shortcut in (True, False):
        assert merged(method, [A, B], BASE, weights(0, 0), shortcut=shortcut) == BASE
        assert merged(method, [A, B], BASE, lambda_=0.0, shortcut=shortcut) == BASE
