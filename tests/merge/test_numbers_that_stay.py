"""Statistics that a GPU keeps to itself: the numbers of the processor, found without the host."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from merge.carry_out import KEYS
from merge.test_cpu_statistics import random_tensor, ranks_of
from pretended_gpu import PretendedGpu

from evomerge.merge.kernels.sums import CHUNK
from evomerge.merge.methods.sce import largest, largest_there
from evomerge.merge.methods.slerp import arc_factors, arc_factors_there
from evomerge.merge.mixes import torch_statistics
from evomerge.merge.mixes.cpu_statistics import CpuStatistics
from evomerge.merge.mixes.mix import LARGEST, Cut, DeviceCut
from evomerge.merge.mixes.torch_mix import cut_
from evomerge.merge.mixes.torch_statistics import TensorStatistics


def on_host(cut: Cut | DeviceCut | None) -> Cut | None:
    """A cut as the processor has it."""
    if not isinstance(cut, DeviceCut):
        return cut
    low, low_end, high, high_start = cut.limits.tolist()
    assert cut.has_band == (high != LARGEST + 1)
    return Cut(low, low_end, LARGEST if high > LARGEST else high, high_start)


@pytest.mark.parametrize("large", [10**9, 5])
@pytest.mark.parametrize("count", [1, 700, 3 * CHUNK + 1000])
def test_cuts_and_shares(gpu: PretendedGpu, monkeypatch: pytest.MonkeyPatch, count: int, large: int) -> None:
    monkeypatch.setattr(torch_statistics, "LARGE", large)
    monkeypatch.setattr(torch_statistics, "_BIN_PART", CHUNK)
    rng = np.random.default_rng(count)
    base = random_tensor(rng, count)
    task = random_tensor(rng, count, base)
    task[: count // 8] = base[: count // 8].to(task.dtype)  # zeros
    here = CpuStatistics([task], base, (count,), KEYS)
    there = TensorStatistics([gpu.put(task)], gpu.put(base), (count,), KEYS)
    ranks = there.ranks(0)
    ends = [(0, 1), (0, count), (count // 3, count // 2 + 1), (0, max(1, count - 2)), ranks_of(rng, count)]
    for first, last in ends:
        expected = here.cut(0, first, last)
        gpu.reset()
        found = there.cut_from(ranks, 0, first, last, lambda number, size: there.bin(0, number, size))
        share = there.magnitude_kept(0, found, None) if found is not None else 1.0
        assert not gpu.reset().waits
        assert on_host(found) == expected
        assert float(share) == (here.magnitude_kept(0, expected, None) if expected is not None else 1.0)
        if found is not None:
            left, right = (x.float() - y.float() for x, y in ((task, base), (gpu.put(task), gpu.put(base))))
            cut_(left, expected, 0)
            cut_(right, found, 0)
            assert torch.equal(right.cpu(), left)


def test_splits_of_sums_anywhere(gpu: PretendedGpu) -> None:
    count = 2 * CHUNK + 700
    rng = np.random.default_rng(1)
    base = torch.from_numpy(rng.standard_normal(count)).float()
    task = torch.from_numpy(rng.standard_normal(count)).float()
    here = CpuStatistics([task], base, (count,), KEYS)
    there = TensorStatistics([gpu.put(task)], gpu.put(base), (count,), KEYS)
    pairs = ((0, 0), (1, 1), (511, 512), (700, 513), (CHUNK - 1, CHUNK), (CHUNK + 3, 5), (2 * CHUNK + 5, count))
    for one, other in pairs:
        cut = Cut(0x3E000000, one, 0x3F800000, other)
        limits = gpu.put(torch.tensor([cut.low, one, cut.high, other]))
        for density in (None, 0.4):
            expected = here.magnitude_kept(0, cut, density)
            assert float(there.magnitude_kept(0, DeviceCut(limits, True), density)) == expected


def test_the_largest_of_equals_are_the_earlier() -> None:
    values = torch.tensor([1.0, 3.0, 1.0, 0.0, 1.0, 3.0])
    for count in range(7):
        assert torch.equal(largest_there(values, torch.tensor(count)), largest(values, count))
    assert largest_there(values[:0], torch.tensor(0)).shape == (0,)


def test_factors_of_an_arc() -> None:
    for aa, ab, bb, t in itertools.product((0.0, 1.0, 4.0), (-3.9999, -0.5, 0.0, 1.0), (1e-20, 1.0, 4.0), (0.0, 0.3)):
        there = arc_factors_there(*(torch.tensor(x, dtype=torch.float64) for x in (aa, ab, bb)), t)
        assert [float(x) for x in there] == pytest.approx(arc_factors(aa, ab, bb, t), rel=1e-14)
