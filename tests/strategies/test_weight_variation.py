"""Children of raw weights: the compiled loops against `child_of`, and their noise."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from evomerge.genomes.arrays import ArraySpec
from evomerge.strategies.variation.base import Settings
from evomerge.strategies.variation.choose import variation_of
from evomerge.strategies.variation.crossover import Angle, Cut, Interpolation, child_of
from evomerge.strategies.variation.weight_kernels import breed, fill_noise
from evomerge.strategies.variation.weights import _quantiles

KEY = np.uint64(0xFEDCBA9876543210)
NONE = np.empty(0, np.float32)


def bred(a: Any, b: Any, ranges: Any, draws: Any, path: str, angle: str, noise: Any = NONE, bound: float = 8.0) -> Any:
    """The child, and whether it is within the bound."""
    child = np.empty_like(a)
    where, curved, whole = np.array(ranges), path == "slerp", angle == "whole"
    inside = breed(a, b, where, np.array(draws), True, curved, whole, noise, KEY, np.float32(bound), child)
    return child, inside


@pytest.mark.parametrize("ends", [[1500], [700, 1500]], ids=str)
@pytest.mark.parametrize("angle", ["segment", "whole"])
@pytest.mark.parametrize("path", ["slerp", "linear"])
def test_children_are_those_of_child_of(path: Interpolation, angle: Angle, ends: list[int]) -> None:
    a, b = np.random.default_rng(0).standard_normal((2, 1500)).astype(np.float32)
    begins = [0, *ends[:-1]]
    for mixes, splits in (((0.3, 0.8), (0.4, 0.0)), ((0.0, 1.0), (0.9999, 0.5))):
        cuts = [Cut(s, e, s + int(x * (e - s)), m) for s, e, m, x in zip(begins, ends, mixes, splits, strict=False)]
        draws = [*mixes[: len(ends)], *splits[: len(ends)]]
        child, inside = bred(a, b, list(zip(begins, ends, strict=True)), draws, path, angle)
        np.testing.assert_allclose(child, child_of(a, b, cuts, path, angle), rtol=2e-6, atol=2e-6)
        assert inside


def test_noise_is_added_to_the_child() -> None:
    a, b = np.random.default_rng(0).standard_normal((2, 1001)).astype(np.float32)
    plain, _ = bred(a, b, [(0, 1001)], [0.3, 0.5], "slerp", "whole")
    noisy, _ = bred(a, b, [(0, 1001)], [0.3, 0.5], "slerp", "whole", _quantiles(0.01))
    noise = np.empty(1001, np.float32)
    fill_noise(noise, _quantiles(0.01), KEY)
    np.testing.assert_allclose(noisy - plain, noise, atol=5e-7)


def test_equal_opposite_and_zero_parents_take_the_line() -> None:
    a = np.random.default_rng(0).standard_normal(600).astype(np.float32)
    for b in (a.copy(), -a, np.zeros_like(a)):
        child, _ = bred(a, b, [(0, 600)], [0.25, 0.999], "slerp", "whole")
        np.testing.assert_allclose(child[:599], (0.75 * a + 0.25 * b)[:599], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("value", [1.5, -1.5, np.nan, np.inf])
def test_one_weight_out_of_bounds_is_reported(value: float) -> None:
    a = np.zeros(1001, np.float32)
    a[700] = value
    for bound, expected in ((1.0, False), (2.0, bool(abs(value) < 2))):
        assert bred(a, a, [(0, 1001)], [0.0, 0.9], "linear", "whole", _quantiles(0.01), bound)[1] is expected


def test_the_noise_is_normal() -> None:
    noise = np.empty(4_000_001, np.float32)
    fill_noise(noise, _quantiles(0.5), KEY)
    noise /= 0.5
    assert abs(noise.mean()) < 0.01
    assert abs(noise.std() - 1) < 0.005
    for beyond, share in ((1.0, 0.15866), (2.0, 0.02275), (3.0, 0.00135)):
        assert abs((noise > beyond).mean() / share - 1) < 0.15
        assert abs((noise < -beyond).mean() / share - 1) < 0.15
    for apart in (1, 2, 3, 4, 8):
        assert abs(np.corrcoef(noise[:-apart], noise[apart:])[0, 1]) < 0.01


def test_the_generator_is_splitmix64() -> None:
    """The first words for the seed 1234567, as its authors' C code gives them."""
    words = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    places = np.arange(4096, dtype=np.float32)
    found = np.empty(16, np.float32)
    fill_noise(found, places, np.uint64(1234567))
    assert found.tolist() == [(word >> shift) & 4095 for word in words for shift in (52, 40, 28, 16)]


def test_children_of_a_space_follow_its_chromosomes_and_bounds() -> None:
    rng = np.random.default_rng(3)
    names = [f"{kind}[{i}]" for i in range(50) for kind in ("a", "b")]  # interleaved
    spec = ArraySpec(names, 1.0)
    first, second = spec.genome(np.full(100, 0.5)), spec.genome(np.full(100, 0.9))
    vary = variation_of(spec, Settings(path="linear", mutation=0.0, chromosomes=(("a[[]*",),)))
    child = vary.child(first, second, rng)
    assert not isinstance(child.values[0], str)
    of_a, of_b = np.array(child.values[::2], float), np.array(child.values[1::2], float)
    for part in (of_a, of_b):
        assert len(np.unique(part)) <= 2  # one mix before its split, the rest of it after
        np.testing.assert_allclose(np.unique(part).sum() if len(np.unique(part)) == 2 else 1.4, 1.4, rtol=1e-5)
    assert set(np.unique(of_a)) != set(np.unique(of_b))
    noisy = variation_of(spec, Settings(mutation=0.5))
    values = np.array(noisy.child(first, second, rng).values, float)
    assert np.abs(values).max() == 1.0


def test_the_same_seed_makes_the_same_child() -> None:
    spec = ArraySpec([str(i) for i in range(500)], 8.0)
    first, second = (spec.genome(np.random.default_rng(i).standard_normal(500)) for i in (0, 1))
    vary = variation_of(spec, Settings())
    one, two, other = (vary.child(first, second, np.random.default_rng(seed)) for seed in (7, 7, 8))
    assert one == two
    assert one != other
    alone = vary.child(first, None, np.random.default_rng(7))
    assert 0.005 < np.std(np.array(alone.values, float) - np.array(first.values, float)) < 0.02
