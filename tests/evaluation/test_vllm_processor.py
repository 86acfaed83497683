"""Products of tokens with the adapters that they have."""

import torch

from evomerge.evaluation.vllm_processor import grouped_products


def test_each_token_is_multiplied_with_its_own_adapter_and_one_without_with_none() -> None:
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [7.0, 8.0]])
    weights = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], [[2.0, 0.0], [0.0, 2.0], [2.0, -2.0]]])
    found = grouped_products(x, weights[:, None], torch.tensor([1, 0, -1, 1]), torch.float64)
    assert found.dtype == torch.float64
    assert found.tolist() == [[2.0, 4.0, -2.0], [3.0, 4.0, 7.0], [0.0, 0.0, 0.0], [14.0, 16.0, -2.0]]
