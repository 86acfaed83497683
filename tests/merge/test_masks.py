from __future__ import annotations

import numpy as np
import pytest
import torch

from evomerge.merge.masks import drop_, mask_key, uniform_numpy, uniform_torch

CPU = torch.device("cpu")
KEY = mask_key(0, "sha256:abc", "model.norm.weight")


def splitmix(state: int) -> int:
    z = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


def test_published_values_of_splitmix64() -> None:
    # The first outputs for seed 1234567, from the reference implementation's test vectors.
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    golden = 0x9E3779B97F4A7C15
    assert [splitmix((1234567 + (i + 1) * golden) % 2**64) for i in range(4)] == published
    halves = [half >> 1 for number in published for half in (number % 2**32, number >> 32)]
    assert uniform_numpy(1234567, 0, 8).tolist() == halves


@pytest.mark.parametrize("key", [0, 1, 2**63, 2**64 - 1, KEY])
@pytest.mark.parametrize("start", [0, 1, 65535, 65536, 2**33 + 5])
def test_numpy_and_torch_give_the_same_numbers(key: int, start: int) -> None:
    ours = uniform_numpy(key, start, 1001)
    assert np.array_equal(ours, uniform_torch(key, start, 1001, CPU).numpy())
    assert int(ours.max()) < 2**31


def test_numbers_do_not_depend_on_where_a_block_starts() -> None:
    whole = uniform_numpy(KEY, 0, 200_000)  # more than one chunk
    for start, count in ((1, 10), (65_535, 3), (99_999, 100_001)):
        assert np.array_equal(uniform_numpy(KEY, start, count), whole[start : start + count])


def test_keys_depend_on_seed_model_and_tensor() -> None:
    given = [(0, "a", "t"), (1, "a", "t"), (0, "b", "t"), (0, "a", "u")]
    assert len({mask_key(*one) for one in given}) == 4
    assert all(0 <= mask_key(*one) < 2**64 for one in given)


@pytest.mark.parametrize("density", [0.1, 0.5, 0.9])
def test_density_and_independence(density: float) -> None:
    n = 400_000
    masks = []
    for tensor in ("a", "b"):
        task = torch.ones(n)
        drop_(task, mask_key(0, "model", tensor), density, 0)
        masks.append(task.numpy())
    deviation = (density * (1 - density) / n) ** 0.5
    for mask in masks:
        assert abs(mask.mean() - density) < 4 * deviation
        lag = np.corrcoef(mask[:-1], mask[1:])[0, 1]
        assert abs(lag) < 4 / n**0.5
    assert abs(np.corrcoef(*masks)[0, 1]) < 4 / n**0.5


def test_kept_values_are_untouched_and_the_others_zero() -> None:
    values = torch.tensor([1.5, -2.0, float("inf"), -0.0, 3e-40] * 20)
    task = values.clone()
    drop_(task, KEY, 0.5, 10)
    kept = torch.from_numpy(uniform_numpy(KEY, 10, 100) < 2**30)
    assert 20 < int(kept.sum()) < 80
    assert torch.equal(task, torch.where(kept, values, torch.zeros(())))


def test_densities_at_the_ends() -> None:
    task = torch.ones(1000)
    drop_(task, KEY, 1.0, 0)
    assert torch.equal(task, torch.ones(1000))
    drop_(task, KEY, 0.0, 0)
    assert torch.equal(task, torch.zeros(1000))
    task = torch.ones(1000)
    drop_(task, KEY, 1 - 1e-12, 0)  # rounds to a bound that still fits a signed word
    assert int(task.sum()) == 1000


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_same_mask_on_a_gpu() -> None:
    tasks = [torch.ones(100_001, device=device) for device in ("cpu", "cuda")]
    for task in tasks:
        drop_(task, KEY, 0.3, 7)
    assert torch.equal(tasks[0], tasks[1].cpu())
