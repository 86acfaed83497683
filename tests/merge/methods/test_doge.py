from __future__ import annotations

import pytest
import torch
from merge.carry_out import carry_out, merged, near

ZERO = [[0.0, 0.0], [0.0, 0.0]]


def test_without_steps_the_largest_elements_are_brought_to_a_norm_and_summed() -> None:
    # Norms 5 and 13, of which half of the elements stay.
    a, b = [[3.0, 4.0], [0.0, 0.0]], [[0.0, 5.0], [12.0, 0.0]]
    result = merged("doge", [a, b], ZERO, iterations=0, eta=1.0, density=0.5)
    assert result == near([[3 / 5, 4 / 5 + 5 / 13], [12 / 13, 0.0]])
    fewer = merged("doge", [a, b], ZERO, iterations=0, eta=2.0, density=0.25, lambda_=3.0)
    assert fewer == near([[0.0, 6 * 4 / 5], [6 * 12 / 13, 0.0]])


def test_the_first_step_goes_against_the_sign_of_the_gradient() -> None:
    # Both lack in their first row: <tau_j, tau_j - sum> > 0, so that the change is towards them, by the rate.
    a, b = [[2.0, 1.0], [0.0, 0.0]], [[1.0, 3.0], [0.0, 0.0]]
    result = merged("doge", [a, b], ZERO, iterations=1, eta=0.1, density=1.0, rate=0.01, subspace=9)
    first, second = 0.1 / 5**0.5, 0.1 / 10**0.5
    row = [first * (2 + 0.01) + second * (1 + 0.01), first * (1 + 0.01) + second * (3 + 0.01)]
    assert result == near([row, [0.0, 0.0]])
    # The first direction of the first half of the left vectors is the first row: nothing of it changes.
    shared = merged("doge", [a, b], ZERO, iterations=1, eta=0.1, density=1.0, rate=0.01, subspace=2)
    assert shared == near([[first * 2 + second, first + second * 3], [0.0, 0.0]])


def test_models_that_do_not_count() -> None:
    a = [[3.0, 4.0], [0.0, 0.0]]
    for given in ([a], [a, ZERO]):
        assert merged("doge", given, ZERO, eta=1.0, density=1.0) == near([[0.6, 0.8], [0.0, 0.0]])
    assert merged("doge", [ZERO, ZERO], ZERO) == ZERO
    assert merged("doge", [[3.0], [5.0]], [1.0]) == [1.0]  # no matrix


@pytest.mark.parametrize("shape", [(9, 20), (20, 9)])
def test_same_as_public_code(shape: tuple[int, int]) -> None:
    """The loss of fusion_bench 0.2.33 (`doge_ta/doge_ta.py`) as it is written, its gradient, and torch's Adam.

    The threshold there is one element too low, and that of the whole model.
    """
    generator = torch.Generator().manual_seed(3)
    tasks = [torch.randn(shape, generator=generator) for _ in range(2)]
    wide, eta, side = [task.double() for task in tasks], 0.5, min(shape)
    scales = torch.tensor([eta / float(task.norm()) for task in wide], dtype=torch.float64).view(-1, 1, 1)
    left = torch.cat([torch.linalg.svd(task, full_matrices=False)[0][:, : side // 2] for task in wide], 1)
    u = torch.linalg.svd(left, full_matrices=False)[0][:, : side // 3]
    delta = torch.nn.Parameter(torch.zeros(shape, dtype=torch.float64))
    steps = torch.optim.Adam([delta], lr=1e-2)
    for _ in range(30):
        steps.zero_grad()
        total = (torch.stack(wide) * scales).sum(0)
        change = (delta[None] * scales).sum(0)
        sum((-task * total - task * change + task * task).sum(1).pow(2).sum() for task in wide).backward()  # type: ignore[union-attr]
        assert delta.grad is not None
        delta.grad -= u @ u.T @ delta.grad
        steps.step()
    expected = torch.zeros(shape, dtype=torch.float64)
    for task, scale in zip(wide, scales.view(-1), strict=True):
        least = task.abs().view(-1).topk(int(0.4 * task.numel())).values[-1]
        expected += scale * (task + delta.detach()) * (task.abs() >= least)
    shared = {"iterations": 30, "rate": 1e-2, "eta": eta, "density": 0.4, "subspace": 3}
    ours = carry_out("doge", tasks, torch.zeros(shape), None, shared)
    torch.testing.assert_close(ours, expected.float(), rtol=1e-5, atol=1e-5)
