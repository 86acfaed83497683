from __future__ import annotations

import numpy as np
import pytest
import torch
from merge.carry_out import KEYS, carry_out, merged
from merge.mergekits import fine_tunes
from merge.papers_sparse import probabilities

from evomerge.errors import PoolError
from evomerge.merge.methods import blocks
from evomerge.merge.mixes.magnitude_order import by_magnitude
from evomerge.merge.mixes.masks import mask_key, uniform
from evomerge.recipes.method_spec import Scalar

sparsify = pytest.importorskip("mergekit.sparsify")


def left(tasks: torch.Tensor, *, density: float, epsilon: float, key: int = KEYS[0], **shared: Scalar) -> torch.Tensor:
    """What is left of a task vector on a base of zeros."""
    each: list[dict[str, Scalar]] = [{"density": density, "epsilon": epsilon}]
    return carry_out("della_linear", [tasks], torch.zeros_like(tasks), each, shared, keys=[key])


def shuffled_rows(rows: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of the magnitudes one to `width` in any order and of any sign, and their ranks."""
    generator = torch.Generator().manual_seed(1)
    order = torch.rand(rows, width, generator=generator).argsort(1)
    signs = torch.randint(0, 2, (rows, width), generator=generator) * 2 - 1
    return (order + 1) * signs.float(), width - 1 - order


def frequencies(kept: torch.Tensor, ranks: torch.Tensor) -> torch.Tensor:
    """How often the elements of each rank stayed."""
    width = ranks.shape[1]
    totals = torch.zeros(width).scatter_add_(0, ranks.reshape(-1), kept.float().reshape(-1))
    return totals / ranks.shape[0]


def test_a_hand_computed_row() -> None:
    # By falling magnitude the columns are 1, 3, 0, 2, with chances 0.7, 0.6, 0.4 and 0.3.
    task = torch.tensor([[2.0, -4.0, 1.0, 3.0]])
    chances = torch.tensor([[0.5 - 0.2 / 3, 0.7, 0.3, 0.5 + 0.2 / 3]])
    seen = torch.zeros(1, 4, dtype=torch.bool)
    for seed in range(40):
        key = mask_key(seed, "model", "tensor")
        kept = uniform(key, 0, 4, torch.device("cpu")) < chances.double() * 2**31
        seen |= kept
        expected = torch.where(kept, task / chances, 0)
        torch.testing.assert_close(left(task, density=0.5, epsilon=0.2, key=key), expected)
        raw = left(task, density=0.5, epsilon=0.2, key=key, rescale=False)
        assert torch.equal(raw, torch.where(kept, task, 0))
    assert seen.all()


def test_chances_are_linear_in_the_rank_and_mergekits() -> None:
    tasks, ranks = shuffled_rows(20_000, 5)
    expected = torch.tensor([0.8, 0.7, 0.6, 0.5, 0.4])
    ours = frequencies(left(tasks, density=0.6, epsilon=0.2) != 0, ranks)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = frequencies(sparsify.della_magprune(tasks, 0.6, 0.2) != 0, ranks)
    deviation = (expected * (1 - expected) / 20_000).sqrt()
    assert ((ours - expected).abs() < 4 * deviation).all()
    assert ((theirs - expected).abs() < 4 * deviation).all()


def test_what_is_left_is_right_on_average() -> None:
    tasks, ranks = shuffled_rows(20_000, 5)
    rescaled = left(tasks, density=0.5, epsilon=0.3) / tasks
    # The mean of Bernoulli(p) / p is one, its variance (1 - p) / p.
    chances = torch.tensor([0.8, 0.65, 0.5, 0.35, 0.2])
    deviation = ((1 - chances) / chances / 20_000).sqrt()
    assert ((frequencies(rescaled, ranks) - 1).abs() < 4 * deviation).all()


def test_rescaling_by_magnitude_is_mergekits() -> None:
    tasks, _ = shuffled_rows(30, 50)
    raw = left(tasks, density=0.5, epsilon=0.1, rescale=False)
    ours = left(tasks, density=0.5, epsilon=0.1, rescale_by="magnitude")
    theirs = sparsify.rescaled_masked_tensor(tasks, raw != 0, sparsify.RescaleNorm.l1)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(ours.abs().sum(), tasks.abs().sum())


@pytest.mark.parametrize("density", [0.05, 0.3, 0.95])
def test_without_epsilon_it_drops_what_dare_drops(density: float) -> None:
    base, inputs = fine_tunes(count=2)
    each: list[dict[str, Scalar]] = [{"weight": w, "density": density} for w in (0.7, 0.4)]
    flat: list[dict[str, Scalar]] = [{**given, "epsilon": 0.0} for given in each]
    for ours, plain in (("della_linear", "dare_linear"), ("della", "dare_ties")):
        for shared in ({"normalize": False}, {"normalize": False, "rescale_by": "magnitude"}):
            dare = carry_out(plain, inputs, base, each, shared)
            della = carry_out(ours, inputs, base, flat, shared)
            torch.testing.assert_close(della, dare, rtol=1e-6, atol=1e-6)
            assert torch.equal(della == base, dare == base)


def test_epsilon_is_reduced_to_what_the_density_allows() -> None:
    tasks, ranks = shuffled_rows(20_000, 3)
    high = frequencies(left(tasks, density=0.9, epsilon=0.4) != 0, ranks)
    assert high[0] == 1
    assert abs(high[2] - 0.8) < 0.015
    low = frequencies(left(tasks, density=0.1, epsilon=0.4) != 0, ranks)
    assert low[2] == 0
    assert abs(low[0] - 0.2) < 0.015
    assert torch.equal(left(tasks, density=1.0, epsilon=0.4), tasks)
    assert not left(tasks, density=0.0, epsilon=0.4).any()
    assert torch.isfinite(left(tasks, density=1e-12, epsilon=0.4)).all()


def test_rows_of_one_element_have_the_density() -> None:
    tasks = torch.ones(20_000, 1)
    assert abs(float((left(tasks, density=0.3, epsilon=0.2) != 0).float().mean()) - 0.3) < 0.015


def test_rows_of_vectors_and_of_more_dimensions() -> None:
    generator = torch.Generator().manual_seed(3)
    tasks = torch.randn(240, generator=generator)
    for shape, alike in (((240,), (1, 240)), ((6, 8, 5), (6, 40)), ((3, 4, 4, 5), (3, 80))):
        result = left(tasks.view(shape), density=0.5, epsilon=0.3)
        assert result.shape == shape
        assert torch.equal(result.view(-1), left(tasks.view(alike), density=0.5, epsilon=0.3).view(-1))
        chances = torch.from_numpy(probabilities(tasks.view(shape).double().numpy(), 0.5, 0.3))
        kept = uniform(KEYS[0], 0, 240, tasks.device).view(shape) < chances * 2**31
        assert torch.equal(result != 0, kept)


def test_ranks_fall_and_equal_magnitudes_keep_their_order() -> None:
    rows = torch.tensor([[1.0, -2.0, 2.0, 0.0, -0.0, 3e-42, -3e-42, 1.0], [0.0] * 8])
    assert by_magnitude(rows).tolist() == [[1, 2, 0, 7, 5, 6, 3, 4], list(range(8))]
    generator = torch.Generator().manual_seed(4)
    tasks = torch.randn(50, 64, generator=generator).bfloat16().float()
    expected = np.argsort(-np.abs(tasks.numpy()), axis=1, kind="stable")
    assert np.array_equal(by_magnitude(tasks).numpy(), expected)


@pytest.mark.parametrize("rescale_by", ["probability", "magnitude"])
def test_same_bits_for_any_block(rescale_by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    base, inputs = fine_tunes((200, 500))
    each: list[dict[str, Scalar]] = [{"weight": w, "density": d} for w, d in ((0.7, 0.4), (0.2, 0.5), (-0.3, 0.8))]
    results = []
    for size in (1 << 20, 1 << 16, 700):
        monkeypatch.setattr(blocks, "_CPU_BLOCK", size)
        results.append(carry_out("della", inputs, base, each, {"rescale_by": rescale_by}))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_signs_are_elected_and_means_taken() -> None:
    each: list[dict[str, Scalar]] = [{"weight": 3.0}, {"weight": 1.0}]
    assert merged("della", [[2.0, 1.0], [-2.0, 3.0]], [0.0, 0.0], each) == [2.0, 1.5]
    assert merged("della_linear", [[2.0, 1.0], [-2.0, 3.0]], [0.0, 0.0], each) == [4.0, 6.0]


def test_sums_of_magnitudes_that_are_not_finite_are_refused() -> None:
    tasks = torch.tensor([1.0, float("inf"), 2.0])
    with pytest.raises(PoolError, match="NaN or infinite"):
        left(tasks, density=0.5, epsilon=0.1, rescale_by="magnitude")


@pytest.mark.parametrize("method", ["della", "della_linear"])
def test_as_a_mix_by_ranks_it_has_the_same_bits(method: str) -> None:
    for shape, dtype in (((3, 517), torch.float32), ((1201,), torch.bfloat16), ((2, 3, 4), torch.float16), ((), None)):
        base, *inputs = (torch.randn(shape, generator=torch.Generator().manual_seed(i)).to(dtype) for i in range(4))
        each: list[dict[str, Scalar]] = [
            {"weight": 0.7, "density": 0.5, "epsilon": 0.2},
            {"weight": -0.4, "density": 0.1, "epsilon": 0.1},
            {"weight": 0.3, "density": 1.0},
        ]
        for shared in ({}, {"rescale": False, "lambda": 0.5}, {"normalize": False}, {"rescale_by": "magnitude"}):
            by_rows = carry_out(method, inputs, base, each, shared)
            by_ranks = carry_out(method, inputs, base, each, shared, ranked=True)
            assert torch.equal(by_ranks, by_rows), (shape, shared)
            assert torch.equal(carry_out(method, inputs, base, each, shared, ranked=True, block=100), by_rows)
