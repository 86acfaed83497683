from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from merge.random_mixes import DTYPES, KEYS, Case, random_case, unaligned

from evomerge.merge.kernels.mixing import BLOCK
from evomerge.merge.kernels.triple32 import ROUNDS
from evomerge.merge.mixes import cpu_mix
from evomerge.merge.mixes.cpu_mix import mix_
from evomerge.merge.mixes.masks import uniform
from evomerge.merge.mixes.mix import Cut, Mix, Term, copy_of
from evomerge.merge.mixes.torch_mix import mix_block

SIZES = (0, 1, 2, 7, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 5, 65_535, 65_536, 65_537)
MANY = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """Tests set the number of threads as they like."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def by_torch(case: Case, offset: int = 0) -> torch.Tensor:
    base = case.base if case.mix.differences else None
    return mix_block(case.mix, case.inputs, base, KEYS, offset).to(case.dtype)


def by_kernel(case: Case, shift: int = 0) -> tuple[bool, torch.Tensor]:
    """The kernel's result, in memory that starts `shift` elements after a page; whether all of it is finite."""
    count = case.base.numel()
    out = unaligned(torch.full((count,), 7, dtype=case.dtype), shift)
    base = case.base if case.mix.differences else None
    return mix_(out, case.mix, case.inputs, base, KEYS), out


@MANY
@given(seed=st.integers(0, 2**32), count=st.sampled_from(SIZES), shift=st.sampled_from([0, 0, 1, 3]))
def test_the_same_bits_as_torch(seed: int, count: int, shift: int) -> None:
    case = random_case(np.random.default_rng(seed), count)
    copies = [x.clone() for x in (*case.inputs, case.base)]
    finite, out = by_kernel(case, shift)
    assert finite
    assert torch.equal(out, by_torch(case))  # but for the sign of zeros
    assert all(torch.equal(x, copy) for x, copy in zip((*case.inputs, case.base), copies, strict=True))


@pytest.mark.slow
@MANY
@given(
    seed=st.integers(0, 2**32),
    count=st.integers(1, 5 * BLOCK),
    ends=st.lists(st.integers(0, 5 * BLOCK), max_size=4),
    stream=st.booleans(),
)
@example(seed=3, count=5 * BLOCK, ends=[16, 17, 32, 33], stream=True)
def test_the_same_bits_however_the_work_is_split(seed: int, count: int, ends: list[int], stream: bool) -> None:
    case = random_case(np.random.default_rng(seed), count)
    bounds = sorted({0, count, *(end for end in ends if end < count)})

    def split(run: Callable[[int, int], int], count: int) -> list[int]:
        return [run(*part) for part in itertools.pairwise(bounds)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu_mix, "in_parts", split)
        patch.setattr(cpu_mix, "_STREAM", 0 if stream else 1 << 40)
        finite, out = by_kernel(case)
    assert finite
    assert torch.equal(out, by_torch(case))


@pytest.mark.slow
@MANY
@given(seed=st.integers(0, 2**32), size=st.integers(1, 3 * BLOCK), stream=st.booleans())
def test_the_same_bits_in_pieces(seed: int, size: int, stream: bool) -> None:
    count = 3 * BLOCK + 7
    case = random_case(np.random.default_rng(seed), count)
    whole = by_torch(case)
    memory = torch.empty(size, dtype=case.dtype)
    base = case.base if case.mix.differences else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu_mix, "_STREAM", 0 if stream else 1 << 40)
        for begin in range(0, count, size):
            piece = memory[: min(size, count - begin)]
            assert mix_(piece, case.mix, case.inputs, base, KEYS, begin)
            assert torch.equal(piece, whole[begin : begin + size])


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_same_bits_on_any_number_of_threads(dtype: torch.dtype) -> None:
    for seed in range(3):
        case = replace(random_case(np.random.default_rng(seed), 600_001), dtype=dtype)  # enough to write past the cache
        results = []
        for number in (1, 2, 3, 7):
            torch.set_num_threads(number)
            results.append(by_kernel(case))
        assert torch.equal(results[0][1], by_torch(case))
        for finite, out in results:
            assert finite
            assert torch.equal(out, results[0][1])


def recorded(parts: list[tuple[int, int]], begin: int, end: int) -> int:
    parts.append((begin, end))
    return 0


def test_threads_share_all_of_a_tensor() -> None:
    for count, number in itertools.product((1, 65_536, 65_537, 200_000, 10**6), (1, 2, 3, 5, 64)):
        torch.set_num_threads(number)
        parts: list[tuple[int, int]] = []
        cpu_mix.in_parts(functools.partial(recorded, parts), count)
        parts.sort()
        assert len(parts) <= number
        assert (parts[0][0], parts[-1][1]) == (0, count)
        assert all(a[1] == b[0] and b[0] % 65_536 == 0 and a[0] < a[1] for a, b in itertools.pairwise(parts))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_half_is_read_as_torch_reads_it(dtype: torch.dtype) -> None:
    halves = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    out = torch.empty(2**16)
    assert not mix_(out, copy_of(0, 1), [halves], None, KEYS)  # some are not finite
    expected = halves.float()
    assert torch.equal(out.isnan(), expected.isnan())
    numbers = ~expected.isnan()
    assert torch.equal(out[numbers].view(torch.int32), expected[numbers].view(torch.int32))
    assert mix_(out[:1], copy_of(0, 1), [torch.zeros(1, dtype=dtype)], None, KEYS)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("stream", [False, True])
def test_every_half_is_rounded_to_as_torch_rounds(
    dtype: torch.dtype, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_mix, "_STREAM", 0 if stream else 1 << 40)
    halves = torch.arange(0, 2**15, dtype=torch.int32).to(torch.int16).view(dtype).float()
    halves = halves[halves.isfinite()]
    between = (halves[1:].double() + halves[:-1].double()).div(2).float()
    largest = torch.tensor([torch.finfo(torch.float32).max, 65_519.99, 65_520.0, 65_536.0, 1e5, 3.3961e38])
    exact = torch.cat([halves, between, largest])
    bits = exact.view(torch.int32)
    near = [bits, bits + 1, (bits - 1).clamp(min=0)]
    sizes = torch.cat(near).view(torch.float32)
    sizes = sizes[sizes.isfinite()]
    numbers = torch.cat([sizes, -sizes, torch.tensor([1e-40, 1e-45, 0.0, -0.0])])
    out = torch.empty(numbers.numel(), dtype=dtype)
    expected = numbers.to(dtype)
    assert not mix_(out, copy_of(0, 1), [numbers], None, KEYS)
    assert torch.equal(out.view(torch.int16), expected.view(torch.int16))
    fits = expected.isfinite()
    assert mix_(out[: int(fits.sum())], copy_of(0, 1), [numbers[fits].contiguous()], None, KEYS)
    for number in numbers[~fits].tolist():
        assert not mix_(out[:1], copy_of(0, 1), [torch.tensor([number])], None, KEYS), number


NOT_FINITE = {
    torch.float32: (0x7F800000, 0xFF800000, 0x7F800001, 0xFF800001, 0x7FC00000, 0x7FFFFFFF, 0xFFFFFFFF),
    torch.bfloat16: (0x7F80, 0xFF80, 0x7F81, 0xFF81, 0x7FC0, 0x7FFF, 0xFFFF),
    torch.float16: (0x7C00, 0xFC00, 0x7C01, 0xFC01, 0x7E00, 0x7FFF, 0xFFFF),
}
FORMS = {
    "sum": Mix((Term(1.0), Term(0.5))),
    "mean": Mix((Term(1.0), Term(-0.5)), divisor=0.5),
    "differences": Mix((Term(1.0), Term(0.5)), differences=True),
    "cut": Mix((Term(1.0, Cut(1, 100)), Term(0.5, Cut(0x3F000000, 600))), differences=True),
    "elect": Mix((Term(1.0), Term(0.5)), differences=True, elect=True),
    "votes": Mix((Term(1.0, Cut(1, 100)), Term(0.5)), differences=True, elect=True, normalize=True),
    "plain votes": Mix((Term(1.0), Term(0.5)), elect=True, normalize=True, scale=0.5),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("stored", DTYPES)
def test_what_is_not_finite_is_reported(form: str, stored: torch.dtype) -> None:
    word = torch.int32 if stored == torch.float32 else torch.int16
    width = 32 if stored == torch.float32 else 16
    rng = np.random.default_rng(1)
    count = BLOCK + 100
    other = torch.from_numpy(rng.integers(-8, 9, count) / 8).float()
    for pattern, place, where, dtype in itertools.product(
        NOT_FINITE[stored], (0, BLOCK - 1, count - 1), ("input", "other input", "base"), DTYPES
    ):
        spoilt = torch.from_numpy(rng.integers(-8, 9, count) / 8).to(stored)
        spoilt.view(word)[place] = pattern - 2**width if pattern >> (width - 1) else pattern
        tensors = {"input": other, "other input": other, "base": other} | {where: spoilt}
        mix = FORMS[form]
        if where == "base" and not mix.differences:
            continue
        case = Case(mix, (tensors["input"], tensors["other input"]), tensors["base"], dtype)
        assert not by_kernel(case)[0], (hex(pattern), place, where, dtype)
        assert not bool(torch.isfinite(by_torch(case)).all()), (hex(pattern), place, where, dtype)


def test_sums_beyond_a_dtype_are_reported() -> None:
    large = torch.full((BLOCK,), 40_000.0)
    for dtype, finite in ((torch.float32, True), (torch.bfloat16, True), (torch.float16, False)):
        out = torch.empty(BLOCK, dtype=dtype)
        assert mix_(out, Mix((Term(1.0), Term(1.0))), [large, large], None, KEYS) == finite
    huge = torch.full((BLOCK,), 2e38)
    assert not mix_(torch.empty(BLOCK), Mix((Term(1.0), Term(1.0))), [huge, huge], None, KEYS)
    assert not mix_(torch.empty(BLOCK), Mix((Term(1.0),), divisor=1e-30), [huge], None, KEYS)
    # The largest float32 is beyond bfloat16 once rounded.
    top = torch.full((BLOCK,), torch.finfo(torch.float32).max)
    assert mix_(torch.empty(BLOCK), copy_of(0, 1), [top], None, KEYS)
    assert not mix_(torch.empty(BLOCK, dtype=torch.bfloat16), copy_of(0, 1), [top], None, KEYS)


def test_inputs_of_weight_zero_are_not_looked_at() -> None:
    good, bad = torch.ones(10), torch.full((10,), torch.nan)
    out = torch.empty(10)
    assert mix_(out, Mix((Term(0.0), Term(2.0))), [bad, good], None, KEYS)
    assert out.tolist() == [2.0] * 10
    assert mix_(out, Mix((Term(0.0),), differences=True), [bad], good, KEYS)
    assert out.tolist() == [1.0] * 10
    assert mix_(out, Mix((Term(0.0),)), [bad], None, KEYS)
    assert out.tolist() == [0.0] * 10


def test_a_base_alone_is_reported_too() -> None:
    nothing = Mix((Term(0.0),), differences=True)
    base = torch.tensor([1.0, torch.inf])
    assert not mix_(torch.empty(2), nothing, [torch.zeros(2)], base, KEYS)
    base = torch.tensor([1.0, 1e6])
    assert mix_(torch.empty(2), nothing, [torch.zeros(2)], base, KEYS)
    assert not mix_(torch.empty(2, dtype=torch.float16), nothing, [torch.zeros(2)], base, KEYS)


@dataclass(frozen=True)
class Shifted:
    """A tensor as if it were the elements from `start` of one that is too large for any machine."""

    tensor: torch.Tensor
    start: int

    @property
    def dtype(self) -> torch.dtype:
        return self.tensor.dtype

    def data_ptr(self) -> int:
        return self.tensor.data_ptr() - self.start * self.tensor.itemsize


def beyond(case: Case, start: int) -> Case:
    """The same cuts further on."""

    def moved(cut: Cut | None) -> Cut | None:
        return cut and cut._replace(low_end=cut.low_end + start, high_start=cut.high_start + start)

    terms = tuple(term._replace(cut=moved(term.cut)) for term in case.mix.terms)
    return replace(case, mix=case.mix._replace(terms=terms))


@pytest.mark.parametrize("start", [2**31 - 300, 2**32 - 700, 2**32, 3 * 2**32 - 1])
def test_elements_beyond_two_to_the_32(start: int) -> None:
    for seed in range(25):
        case = beyond(random_case(np.random.default_rng(seed), 2 * BLOCK + 3), start)
        if not any(term.weight for term in case.mix.terms):
            continue
        out = torch.empty(case.base.numel(), dtype=case.dtype)
        base = Shifted(case.base, start) if case.mix.differences else None
        inputs: Sequence[object] = [Shifted(x, start) for x in case.inputs]
        assert mix_(out, case.mix, inputs, base, KEYS, start)  # type: ignore[arg-type]
        assert torch.equal(out, by_torch(case, start))


@pytest.mark.parametrize("start", [0, 511, 2**31 - 7, 2**32 - 300, 2**32, 2**33 + 5, 5 * 2**32 + 2**31])
def test_masks_of_the_kernel_are_those_of_torch(start: int) -> None:
    count, values = 300, torch.arange(1.0, 301.0)
    for key in KEYS:
        numbers = uniform(key, start, count, torch.device("cpu"))
        for bound in (0, 1, 2**29, 2**30 + 1, 2**31 - 1, int(numbers[17]), int(numbers[17]) + 1):
            kept, mix = torch.empty(count), Mix((Term(1.0, density=bound / 2**31),))
            assert mix_(kept, mix, [Shifted(values, start)], None, [key], start)  # type: ignore[list-item]
            assert torch.equal(kept, torch.where(numbers < bound, values, 0.0)), (key, bound)


def test_density_one_keeps_every_element() -> None:
    # The key with which the first element's number is the largest there is: the hash backwards.
    word = 2**32 - 1
    x = _unfolded(word, 14)
    for shift, factor in reversed(ROUNDS):
        x = _unfolded(x * pow(factor, -1, 2**32) % 2**32, shift)
    assert int(uniform(x, 0, 1, torch.device("cpu"))) == 2**31 - 1
    for differences in (False, True):
        out, mix = torch.empty(3), Mix((Term(1.0, density=1.0),), differences=differences)
        assert mix_(out, mix, [torch.tensor([5.0, 6.0, 7.0])], torch.zeros(3) if differences else None, [x])
        assert out.tolist() == [5.0, 6.0, 7.0]


def _unfolded(x: int, shift: int) -> int:
    """What ``x ^ (x >> shift)`` makes a word of."""
    result = x
    for _ in range(32 // shift + 1):
        result = x ^ (result >> shift)
    return result


def test_differences_need_a_base() -> None:
    out = torch.empty(3)
    assert mix_(out, Mix((Term(2.0),), differences=True), [torch.ones(3)], None, KEYS)
    assert out.tolist() == [2.0] * 3  # as by torch operations
