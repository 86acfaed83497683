from __future__ import annotations

import pytest
import torch

from evomerge.merge.methods import METHODS, Context, call_values
from evomerge.models.statistics import Statistic

NO_RIDGE = -30.0


def merged(
    inputs: list[torch.Tensor],
    grams: list[torch.Tensor | None],
    weight: tuple[float, ...] | None = None,
    axis: int = 1,
    **shared: float,
) -> torch.Tensor:
    method = METHODS["regmean"]
    values = call_values(method.spec, [{"weight": w} for w in weight or [1.0] * len(inputs)], shared)
    known = tuple(Statistic(own.float(), axis) if own is not None else None for own in grams)
    assert method.function is not None
    return method.function([x.float() for x in inputs], None, context=Context(0, (), statistics=known), **values)


def test_by_hand() -> None:
    one, other = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    grams = [torch.tensor([[2.0, 1.0], [1.0, 2.0]]), torch.eye(2)]
    # ([2, 1] + [0, 1]) ([[3, 1], [1, 3]])^-1 = [2, 2] [[3, -1], [-1, 3]] / 8
    assert merged([one, other], grams, alpha=1, log_ridge=NO_RIDGE).tolist() == [pytest.approx([0.5, 0.5])]
    # Each input alone: 2/3 and 1/3.
    found = merged([one, other], grams, alpha=0, log_ridge=NO_RIDGE)
    assert found.tolist() == [pytest.approx([2 / 3, 1 / 3])]
    # Twice the second: ([2, 1] + [0, 2]) ([[4, 1], [1, 4]])^-1 = [2, 3] [[4, -1], [-1, 4]] / 15
    found = merged([one, other], grams, (1.0, 2.0), alpha=1, log_ridge=NO_RIDGE)
    assert found.tolist() == [pytest.approx([5 / 15, 10 / 15])]


def test_diagonals_alone_are_alpha_zero() -> None:
    one, other = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    found = merged([one, other], [torch.tensor([2.0, 2.0]), torch.ones(2)], log_ridge=NO_RIDGE)
    assert found.tolist() == [pytest.approx([2 / 3, 1 / 3])]


def problem(samples: int, seed: int = 0) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Matrices ``(5, 4)`` and inputs ``(samples, 4)`` of three models."""
    generator = torch.Generator().manual_seed(seed)
    matrices = [torch.randn(5, 4, generator=generator, dtype=torch.float64) for _ in range(3)]
    return matrices, [torch.randn(samples, 4, generator=generator, dtype=torch.float64) for _ in range(3)]


def test_outputs_are_as_near_to_the_models_as_can_be() -> None:
    matrices, data = problem(50)
    matrices, weight = [m.float().double() for m in matrices], (1.0, 0.5, 2.0)
    grams = [(x.T @ x / len(x)).float().double() for x in data]
    found = merged(matrices, grams, weight, alpha=1, log_ridge=NO_RIDGE).double()
    gradient = sum(w * (found - m) @ g for m, g, w in zip(matrices, grams, weight, strict=True))
    assert torch.as_tensor(gradient).abs().max() < 1e-6
    sizes = [w * ((found - m) @ g).abs().max() for m, g, w in zip(matrices, grams, weight, strict=True)]
    assert min(sizes) > 0.1  # of which the gradient is the sum

    def cost(w: torch.Tensor) -> float:
        return sum(float(v * ((w - m) @ x.T).square().sum()) for m, x, v in zip(matrices, data, weight, strict=True))

    generator = torch.Generator().manual_seed(1)
    for _ in range(10):
        step = 0.01 * torch.randn(5, 4, generator=generator, dtype=torch.float64)
        assert cost(found + step) > cost(found)


def test_the_transposed_layers_of_gpt2_give_the_transposed_result() -> None:
    matrices, data = problem(50)
    grams: list[torch.Tensor | None] = [x.T @ x / len(x) for x in data]
    straight = merged(matrices, grams, alpha=0.95)
    turned = merged([m.T.contiguous() for m in matrices], grams, axis=0, alpha=0.95)
    torch.testing.assert_close(turned, straight.T, rtol=1e-6, atol=1e-7)
    square = [m[:4] for m in matrices]  # whose shape does not give it away
    straight, turned = merged(square, grams), merged([m.T.contiguous() for m in square], grams, axis=0)
    torch.testing.assert_close(turned, straight.T, rtol=1e-6, atol=1e-7)
    assert not torch.allclose(merged([m.T.contiguous() for m in square], grams), straight.T, atol=1e-2)


def test_where_inputs_never_occur_the_mean_is_left() -> None:
    matrices, data = problem(50)
    for x in data:
        x[:, 2] = 0
    grams: list[torch.Tensor | None] = [x.T @ x / len(x) for x in data]
    average = sum(matrices) / 3
    for ridge in (NO_RIDGE, -6.0):
        found = merged(matrices, grams, alpha=1, log_ridge=ridge).double()
        torch.testing.assert_close(found[:, 2], torch.as_tensor(average)[:, 2], rtol=1e-5, atol=1e-6)
    nothing: list[torch.Tensor | None] = [torch.zeros(4, 4)] * 3
    torch.testing.assert_close(merged(matrices, nothing).double(), torch.as_tensor(average), rtol=1e-5, atol=1e-6)


def test_few_samples_are_no_trouble() -> None:
    matrices, data = problem(1)
    grams: list[torch.Tensor | None] = [x.T @ x for x in data]
    for ridge in (NO_RIDGE, -8.0):
        found = merged(matrices, grams, alpha=1, log_ridge=ridge).double()
        assert torch.isfinite(found).all()
        for m, x in zip(matrices, data, strict=True):  # three samples, four inputs: all outputs can be met
            torch.testing.assert_close(found @ x[0], m @ x[0], rtol=1e-4, atol=1e-4)


def test_what_is_no_weight_of_a_linear_layer_is_the_mean() -> None:
    one, other = torch.tensor([1.0, 4.0]), torch.tensor([3.0, 0.0])
    assert merged([one, other], [None, None], (1.0, 3.0)).tolist() == pytest.approx([2.5, 1.0])
