from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from merge.random_mixes import DTYPES, KEYS, random_tensor, unaligned

from evomerge.errors import EvomergeError
from evomerge.merge.execution import noted_statistics
from evomerge.merge.execution.noted_statistics import NotedStatistics
from evomerge.merge.execution.notes import Notes
from evomerge.merge.mixes import torch_statistics
from evomerge.merge.mixes.backend import Backend
from evomerge.merge.mixes.cpu_statistics import CpuStatistics, exact_sum
from evomerge.merge.mixes.masks import drop_
from evomerge.merge.mixes.mix import Cut, cut_between
from evomerge.merge.mixes.torch_mix import cut_
from evomerge.merge.mixes.torch_statistics import TensorStatistics

MANY = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
SIZES = (1, 2, 3, 511, 512, 513, 65_535, 65_537)


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """Tests set the number of threads as they like."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def both(inputs: list[torch.Tensor], base: torch.Tensor) -> tuple[CpuStatistics, TensorStatistics]:
    shape = (base.numel(),)
    return CpuStatistics(inputs, base, shape, KEYS), TensorStatistics(inputs, base, shape, KEYS)


def ranks_of(rng: np.random.Generator, count: int) -> tuple[int, int]:
    first = int(rng.choice([0, 0, rng.integers(count)]))
    last = int(rng.choice([count, count + 3, first + 1, rng.integers(first + 1, count + 1)]))
    return first, last


def by_sorting(task: torch.Tensor, first: int, last: int) -> Cut | None:
    """What `Statistics.cut` is to return."""
    magnitudes = task.view(torch.int32).bitwise_and(0x7FFFFFFF).numpy()
    order = np.argsort(-magnitudes.astype(np.int64), kind="stable")
    return cut_between(first, last, len(task), lambda rank: (int(magnitudes[order[rank]]), int(order[rank]) + 1))


@MANY
@given(seed=st.integers(0, 2**32), count=st.sampled_from(SIZES), large=st.sampled_from([0, 3, 100, 1 << 25]))
def test_cuts_are_those_of_a_sort(seed: int, count: int, large: int) -> None:
    rng = np.random.default_rng(seed)
    base = random_tensor(rng, count)
    inputs = [random_tensor(rng, count, base) for _ in range(2)]
    fast, plain = both(inputs, base)
    for index in range(2):
        ranks, order = fast.ranks(index), fast.order(index)
        assert order is not None
        assert sorted(order.tolist()) == list(range(count))
        for _ in range(4):
            first, last = ranks_of(rng, count)
            expected = by_sorting(inputs[index].float() - base.float(), first, last)
            assert fast.cut(index, first, last) == expected
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(torch_statistics, "LARGE", large)
                assert plain.cut(index, first, last) == expected
            assert fast.cut_from(ranks, index, first, last) == expected
            assert fast.cut_from_order(order, index, first, last) == expected


def float64_gram(tensors: list[torch.Tensor]) -> np.ndarray:
    flat = [tensor.double().numpy() for tensor in tensors]
    return np.array([[a @ b for b in flat] for a in flat])


@MANY
@given(seed=st.integers(0, 2**32), count=st.sampled_from(SIZES))
def test_sums_are_those_of_float64_and_the_same_bits_on_every_device(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    base = random_tensor(rng, count)
    inputs = [random_tensor(rng, count, base) for _ in range(int(rng.integers(1, 5)))]
    fast, plain = both(inputs, base)
    for differences in (False, True):
        exact = float64_gram([x.float() - base.float() if differences else x.float() for x in inputs])
        scale = np.sqrt(np.outer(exact.diagonal(), exact.diagonal())) + 1e-30
        assert np.abs((fast.gram(differences) - exact) / scale).max() < 1e-5
        assert np.array_equal(fast.gram(differences), fast.gram(differences).T)
        assert np.array_equal(plain.gram(differences), fast.gram(differences))
    first, last = ranks_of(rng, count)
    cuts = (None, fast.cut(0, first, last), Cut(0x3E000000, int(rng.integers(count)), 0x3F800000, count // 3))
    task = inputs[0].float() - base.float()
    for cut, density in itertools.product(cuts, (None, 0.0, 0.4, 1.0)):
        left = task.clone()
        if cut is not None:
            cut_(left, cut, 0)
        if density is not None:
            drop_(left, KEYS[0], density, 0)
        whole = float(task.double().abs().sum())
        expected = float(left.double().abs().sum()) / whole if whole else 1.0
        found = fast.magnitude_kept(0, cut, density)
        assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)
        assert plain.magnitude_kept(0, cut, density) == found


@pytest.mark.parametrize("width", [1, 7, 300, 2**16, 2**16 + 3])
def test_ranks_in_rows(width: int) -> None:
    rng = np.random.default_rng(width)
    rows = 3 if width > 300 else 41
    base = random_tensor(rng, rows * width)
    task = random_tensor(rng, rows * width, base)
    found = TensorStatistics([task], base, (rows, width)).row_ranks(0)
    ranks = found.numpy().astype(np.uint16 if width <= 2**16 else np.uint32).reshape(rows, width)
    assert found.element_size() == (2 if width <= 2**16 else 4)
    magnitudes = (task.float() - base.float()).abs().numpy().reshape(rows, width)
    for row, expected in zip(ranks, magnitudes, strict=True):
        assert np.array_equal(np.argsort(row), np.argsort(-expected, kind="stable"))


@pytest.mark.parametrize("place", [0, 511, 70_000])
def test_what_is_not_finite_on_a_device(place: int) -> None:
    base, bad = torch.randn(70_001), torch.randn(70_001)
    for number in (torch.nan, torch.inf):
        bad[place] = number
        found = TensorStatistics([bad], base, (70_001,), KEYS)
        assert np.isnan(found.gram()).all()  # methods say which input it is
        assert np.isnan(found.gram(True)).all()
        assert np.isnan(found.magnitude_kept(0, None, None))
        with pytest.raises(EvomergeError, match="NaN or infinite"):
            found.cut(0, 0, 5)


def test_hand_computed() -> None:
    base = torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0], dtype=torch.bfloat16)
    one = torch.tensor([3.0, -1.0, 1.5, 1.0, 3.0])  # task vector 2, -2, 0.5, 0, 2
    two = torch.tensor([1.0, 2.0, 1.0, 1.0, 1.0], dtype=torch.float16)  # 0, 1, 0, 0, 0
    found = CpuStatistics([one, two], base, (5,), KEYS)
    assert found.gram(True).tolist() == [[12.25, -2.0], [-2.0, 1.0]]
    assert found.gram().tolist() == [[22.25, 6.5], [6.5, 8.0]]
    order = found.order(0)
    assert order is not None
    assert order.tolist() == [0, 1, 4, 2, 3]
    cut = found.cut(0, 1, 3)  # the second and third of three equal ones
    assert cut is not None
    bits = int(torch.tensor(2.0).view(torch.int32))
    assert (cut.low, cut.low_end, cut.high, cut.high_start) == (bits, 5, bits, 1)
    assert found.magnitude_kept(0, cut, None) == 4 / 6.5
    assert found.magnitude_kept(1, found.cut(1, 0, 1), None) == 1.0
    assert found.cut(1, 0, 2) is None  # all but zeros


def test_no_difference_at_all() -> None:
    for dtype, count in itertools.product(DTYPES, (1, 600, 70_000)):
        tensor = torch.randn(count).to(dtype)
        fast, plain = both([tensor.clone()], tensor)
        assert fast.gram(True).tolist() == [[0.0]]
        assert fast.cut(0, 0, 1) is None
        for last in (1, count // 2, count):
            if last:
                assert fast.cut(0, 0, last) == plain.cut(0, 0, last)
        if count > 1:
            assert fast.cut(0, 1, 2) == plain.cut(0, 1, 2)
        order = fast.order(0)
        assert order is not None
        assert np.array_equal(order, np.arange(count))
        assert fast.magnitude_kept(0, None, 0.3) == 1.0


def test_the_same_bits_on_any_number_of_threads() -> None:
    rng = np.random.default_rng(4)
    count = 300_001
    base = random_tensor(rng, count)
    inputs = [random_tensor(rng, count, base) for _ in range(3)]
    found = CpuStatistics(inputs, base, (count,), KEYS)
    results = []
    for number in (1, 2, 3, 5):
        torch.set_num_threads(number)
        cuts = [found.cut(i, first, last) for i in range(3) for first, last in ((0, 9), (5, 200_000), (99, count))]
        sums = [found.magnitude_kept(i, cuts[1], density) for i in range(3) for density in (None, 0.2)]
        results.append((found.gram().tolist(), found.gram(True).tolist(), cuts, sums))
    assert all(result == results[0] for result in results)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("spoilt", ["input", "base"])
def test_what_is_not_finite_is_an_error(dtype: torch.dtype, spoilt: str) -> None:
    for number, place, count in itertools.product(
        (torch.nan, -torch.nan, torch.inf, -torch.inf), (0, 511, 512, 599), (600, 70_000)
    ):
        good, bad = unaligned(torch.randn(count).to(dtype), 1), unaligned(torch.randn(count).to(dtype), 1)
        bad[place] = number
        given_ = (bad, good) if spoilt == "input" else (good, bad)
        found = CpuStatistics([given_[0]], given_[1], (count,), KEYS)
        for ask in (
            lambda found=found: found.gram(True),
            lambda found=found: found.ranks(0),
            lambda found=found: found.cut(0, 0, 5),
            lambda found=found: found.order(0),
            lambda found=found: found.magnitude_kept(0, None, None),
            lambda found=found: found.magnitude_kept(0, None, 0.0),
        ):
            with pytest.raises(EvomergeError, match="NaN or infinite"):
                ask()
        if spoilt == "input":
            with pytest.raises(EvomergeError, match="NaN or infinite"):
                found.gram()


def test_sums_are_rounded_once() -> None:
    parts = np.array([1e16, 1.0, -1e16, 1.0])
    assert exact_sum(parts) == exact_sum(parts[::-1]) == 2.0
    assert exact_sum(np.zeros(0)) == 0.0
    for bad in (np.nan, np.inf):
        with pytest.raises(EvomergeError):
            exact_sum(np.array([1.0, bad]))


@pytest.mark.parametrize("budget", [0, 3000, 5000, 10**9])
def test_notes_change_nothing(budget: int) -> None:
    rng = np.random.default_rng(5)
    count = 1000
    base = random_tensor(rng, count)
    inputs = [random_tensor(rng, count, base) for _ in range(3)]
    notes = Notes(budget)
    expected = TensorStatistics(inputs, base, (count,), KEYS)
    for turn in range(4):
        names = [("model", i) for i in range(3)] + [("base", 0)]
        found = NotedStatistics(inputs, base, (count,), KEYS, names, notes)
        assert (found.shape, found.count, found.has_base) == ((count,), count, True)
        for index in range(3):
            # The same ones again, and one of this turn.
            for first, last in ((0, 100), (50, 900), (turn, 500 + turn)):
                assert found.cut(index, first, last) == expected.cut(index, first, last)
        cut = expected.cut(0, 50, 900)
        for index, density in itertools.product(range(3), (None, 0.5, 0.25)):
            share = expected.magnitude_kept(index, cut, density)
            assert found.magnitude_kept(index, cut, density) == pytest.approx(share, rel=1e-9)
        for differences in (False, True):
            np.testing.assert_allclose(found.gram(differences), expected.gram(differences), rtol=1e-4, atol=1e-6)
        assert notes.used <= budget
    assert notes.used == min(budget // 4000, 3) * 4000


def test_notes_of_other_tensors_keys_and_bases_are_other_notes() -> None:
    count, notes = 200, Notes(10**6)
    a, b, base, other = (torch.randn(count, generator=torch.Generator().manual_seed(i)) for i in range(4))

    def asked(inputs: list[torch.Tensor], below: torch.Tensor, names: list[str], keys: tuple[int, ...]) -> None:
        found = NotedStatistics(inputs, below, (count,), keys, names, notes)
        fresh = TensorStatistics(inputs, below, (count,), keys)
        np.testing.assert_allclose(found.gram(True), fresh.gram(True), rtol=1e-5)
        np.testing.assert_allclose(found.gram(), fresh.gram(), rtol=1e-5)
        for index in range(len(inputs)):
            assert found.cut(index, 0, 50) == fresh.cut(index, 0, 50)
            assert found.magnitude_kept(index, None, 0.5) == pytest.approx(fresh.magnitude_kept(index, None, 0.5))

    for _ in range(2):
        asked([a, b], base, ["a", "b", "base"], (1, 2))
        asked([b, a], base, ["b", "a", "base"], (1, 2))
        asked([a, b], other, ["a", "b", "other"], (1, 2))
        asked([a], b, ["a", "b"], (3,))
        asked([b], a, ["b", "a"], (3,))


def test_large_notes_outlive_any_number_of_small_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evomerge.merge.execution.notes._MOST_NOTES", 10)
    notes, calls = Notes(100), []

    def find() -> str:
        calls.append(1)
        return "order"

    for turn in range(200):
        found = notes.large("key", 60, find)
        assert found == (None if turn == 0 else "order")
        assert notes.small(turn, lambda turn=turn: turn) == turn
        assert notes.large("another", 60, find) is None
    assert (len(calls), notes.used) == (1, 60)


def test_a_note_that_cannot_be_found_takes_no_room() -> None:
    notes = Notes(100)

    def fails() -> str:
        raise EvomergeError("no", "", "")

    for _ in range(5):
        try:
            assert notes.large("key", 60, fails) is None
        except EvomergeError:
            assert notes.used == 0
    assert notes.large("key", 60, lambda: "found") == "found"


@pytest.mark.parametrize("budget", [0, 5000, 10**6])
def test_a_device_looks_at_a_bin_once(budget: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(6)
    count = 3000
    base = random_tensor(rng, count)
    inputs = [random_tensor(rng, count, base) for _ in range(2)]
    names, notes = ["a", "b", "base"], Notes(budget)
    passes: list[tuple[int, int]] = []
    bin_of = TensorStatistics.bin

    def counted(found: TensorStatistics, index: int, number: int, size: int) -> torch_statistics.Bin:
        if number:  # that of zeros and the like may be half of a tensor: it is not kept
            passes.append((index, number))
        return bin_of(found, index, number, size)

    monkeypatch.setattr(TensorStatistics, "bin", counted)
    monkeypatch.setattr(noted_statistics, "backend_of", lambda device, dtypes: Backend.TORCH)
    for _ in range(3):
        for index, last in itertools.product(range(2), range(1, count, 37)):
            found = NotedStatistics(inputs, base, (count,), KEYS, names, notes)
            expected = by_sorting(inputs[index].float() - base.float(), last // 2, last)
            assert found.cut(index, last // 2, last) == expected
    assert notes.used <= budget
    assert (len(set(passes)) == len(passes)) == (budget == 10**6)
    row_ranks = NotedStatistics(inputs, base, (30, 100), KEYS, names, notes).row_ranks(0)
    assert torch.equal(row_ranks, TensorStatistics(inputs, base, (30, 100)).row_ranks(0))


def test_notes_on_a_device() -> None:
    notes, calls = Notes(0, 100), list[str]()

    def find(name: str) -> str:
        calls.append(name)
        return name

    for name in ("a", "b", "a", "b", "c"):
        assert notes.on_device(name, 50 if name != "b" else 60, lambda name=name: find(name)) == name
    assert calls == ["a", "b", "b", "c"]
    assert (notes.device_used, notes.used) == (100, 0)
    notes.clear()
    assert notes.on_device("a", 60, lambda: find("a")) == "a"
    assert (notes.device_used, notes.device_budget, calls[-1]) == (0, 50, "a")
    assert len(calls) == 5
