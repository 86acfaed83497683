from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from merge.papers import mask_number

from evomerge.merge.mixes.masks import drop_, drop_each_, kept_below, kept_up_to, mask_key, uniform

CPU = torch.device("cpu")
KEY = mask_key(0, "sha256:abc", "model.norm.weight")


def masks_of(densities: dict[int, float], count: int) -> list[np.ndarray]:
    """Masks of ones and zeros, by key."""
    masks = []
    for key, density in densities.items():
        task = torch.ones(count)
        drop_(task, key, density, 0)
        masks.append(task.numpy())
    return masks


@pytest.mark.parametrize("key", [0, 1, 2**31, 2**32 - 1, 2**32, 2**63, 2**64 - 1, KEY])
@pytest.mark.parametrize("start", [0, 65_535, 2**31 - 7, 2**32 - 7, 2**33 + 5])
def test_the_documented_hash(key: int, start: int) -> None:
    numbers = uniform(key, start, 20, CPU)
    assert numbers.tolist() == [mask_number(key, start + e) for e in range(20)]
    assert numbers.dtype == torch.int32


def test_triple32_without_a_key() -> None:
    # Written as its author does: shifts, then products modulo 2**32.
    x = np.arange(1000, dtype=np.uint32)
    for shift, factor in ((17, 0xED5AD4BB), (11, 0xAC4C1B51), (15, 0x31848BAB)):
        x ^= x >> np.uint32(shift)
        x *= np.uint32(factor)
    x ^= x >> np.uint32(14)
    assert np.array_equal(uniform(0, 0, 1000, CPU).numpy(), (x >> np.uint32(1)).astype(np.int32))


def test_numbers_do_not_depend_on_where_a_block_starts() -> None:
    whole = uniform(KEY, 0, 200_000, CPU)
    for start, count in ((1, 10), (65_535, 3), (99_999, 100_001)):
        assert torch.equal(uniform(KEY, start, count, CPU), whole[start : start + count])


def test_keys_depend_on_seed_model_and_tensor() -> None:
    given = [(0, "a", "t"), (1, "a", "t"), (0, "b", "t"), (0, "a", "u")]
    assert len({mask_key(*one) for one in given}) == 4
    assert all(0 <= mask_key(*one) < 2**64 for one in given)


@pytest.mark.parametrize("density", [0.1, 0.5, 0.9])
def test_density_and_independence(density: float) -> None:
    n = 400_000
    masks = masks_of({mask_key(0, "model", tensor): density for tensor in ("a", "b")}, n)
    deviation = (density * (1 - density) / n) ** 0.5
    for mask in masks:
        assert abs(mask.mean() - density) < 4 * deviation
        for distance in (1, 2, 64, 4096):
            lag = np.corrcoef(mask[:-distance], mask[distance:])[0, 1]
            assert abs(lag) < 4 / n**0.5
    assert abs(np.corrcoef(*masks)[0, 1]) < 4 / n**0.5


def test_masks_of_other_seeds_and_of_neighbouring_keys_are_unrelated() -> None:
    n = 200_000
    keys = [*(mask_key(seed, "model", "tensor") for seed in range(6)), KEY, KEY + 1, KEY + 2]
    masks = masks_of(dict.fromkeys(keys, 0.5), n)
    for i, a in enumerate(masks):
        for b in masks[:i]:
            assert abs(np.corrcoef(a, b)[0, 1]) < 4.5 / n**0.5


def test_numbers_are_uniform() -> None:
    n, bins = 1_000_000, 256
    counts = np.bincount(uniform(KEY, 0, n, CPU).numpy() >> 23, minlength=bins)
    chi_squared = float(((counts - n / bins) ** 2 / (n / bins)).sum())
    assert abs(chi_squared - (bins - 1)) < 4 * math.sqrt(2 * (bins - 1))


def test_kept_values_are_untouched_and_the_others_zero() -> None:
    values = torch.tensor([1.5, -2.0, float("inf"), -0.0, 3e-40] * 20)
    kept = uniform(KEY, 10, 100, CPU) < 2**30
    assert 20 < int(kept.sum()) < 80
    expected = torch.where(kept, values, torch.zeros(()))
    for drop in (
        lambda task: drop_(task, KEY, 0.5, 10),
        lambda task: drop_each_(task, KEY, torch.full((100,), 2**30 - 1, dtype=torch.int32), 10),
    ):
        task = values.clone()
        drop(task)
        assert torch.equal(task, expected)


def test_densities_at_the_ends() -> None:
    task = torch.ones(1000)
    drop_(task, KEY, 1.0, 0)
    assert torch.equal(task, torch.ones(1000))
    drop_(task, KEY, 0.0, 0)
    assert torch.equal(task, torch.zeros(1000))
    task = torch.ones(1000)
    drop_(task, KEY, 1 - 1e-12, 0)  # rounds to a bound that still fits a signed word
    assert int(task.sum()) == 1000


def test_bounds_of_probabilities() -> None:
    given = np.array([-0.5, 0.0, 2.0**-32, 2.0**-31, 0.25, 0.5, 1 - 2.0**-31, 1 - 2.0**-40, 1.0, 1.5])
    bounds = kept_up_to(torch.from_numpy(given))
    assert bounds.dtype == torch.int32
    most = 2**31 - 1
    assert bounds.tolist() == [-1, -1, -1, 0, 2**29 - 1, 2**30 - 1, most - 1, most - 1, most, most]
    for density in (1e-9, 0.1, 0.3, 1 / 3, 0.9999):
        assert kept_up_to(torch.tensor([density], dtype=torch.float64)).tolist() == [kept_below(density) - 1]


def test_each_element_has_its_own_probability() -> None:
    n = 300_000
    chances = np.tile([0.0, 0.2, 0.7, 1.0], n // 4)
    task = torch.ones(n)
    drop_each_(task, KEY, kept_up_to(torch.from_numpy(chances)), 0)
    shares = task.view(-1, 4).mean(0)
    assert shares[0] == 0
    assert shares[3] == 1
    for share, chance in zip(shares[1:3].tolist(), (0.2, 0.7), strict=True):
        assert abs(share - chance) < 4 * math.sqrt(chance * (1 - chance) / (n / 4))


def test_each_element_does_not_depend_on_blocks() -> None:
    bounds = kept_up_to(torch.from_numpy(np.linspace(0, 1, 10_000)))
    whole = torch.ones(10_000)
    drop_each_(whole, KEY, bounds, 0)
    for start, stop in ((0, 1), (1, 4000), (4000, 9999), (9999, 10_000)):
        part = torch.ones(stop - start)
        drop_each_(part, KEY, bounds[start:stop], start)
        assert torch.equal(part, whole[start:stop])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_same_mask_on_a_gpu() -> None:
    tasks = [torch.ones(100_001, device=device) for device in ("cpu", "cuda")]
    for task in tasks:
        drop_(task, KEY, 0.3, 2**32 - 50_000)
    assert torch.equal(tasks[0], tasks[1].cpu())
    bounds = kept_up_to(torch.from_numpy(np.linspace(0, 1, 100_001)))
    tasks = [torch.ones(100_001, device=device) for device in ("cpu", "cuda")]
    for task in tasks:
        drop_each_(task, KEY, bounds.to(task.device), 7)
    assert torch.equal(tasks[0], tasks[1].cpu())
