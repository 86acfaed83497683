"""The kernels for GPUs against those of the CPU, bit for bit: by Triton's interpreter, or on a GPU if there is one."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from merge.carry_out import KEYS as METHOD_KEYS
from merge.random_mixes import DTYPES, KEYS, Case, random_case
from merge.test_cpu_mix import FORMS, NOT_FINITE

from evomerge.errors import EvomergeError, EvomergeWarning
from evomerge.merge.execution import noted_statistics, tensor_merge
from evomerge.merge.kernels.sums import CHUNK
from evomerge.merge.methods import METHODS, call_values
from evomerge.merge.mixes import backend, cpu_mix, cpu_statistics
from evomerge.merge.mixes.backend import Backend, backend_of
from evomerge.merge.mixes.cpu_mix import cut_row
from evomerge.merge.mixes.masks import uniform
from evomerge.merge.mixes.mix import LARGEST, Cut, DeviceCut, Mix, Term
from evomerge.merge.mixes.torch_mix import mix_block
from evomerge.recipes.method_spec import Scalar

pytest.importorskip("triton", reason="needs Triton, which the dev extra installs on Linux")

import triton
import triton.language as tl

from evomerge.merge.kernels import triton_mixing
from evomerge.merge.kernels.triton_mixing import BLOCK, setting
from evomerge.merge.mixes import triton_mix
from evomerge.merge.mixes.triton_statistics import TritonStatistics

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SIZES = (0, 1, 7, BLOCK - 1, BLOCK, 2 * BLOCK + 77)
MIXED = FORMS | {
    "three": Mix((Term(0.5), Term(0.25), Term(-1.0)), divisor=-1 / 3),
    "scaled differences": Mix((Term(1.0), Term(0.5)), differences=True, scale=-0.3),
    "masks": Mix((Term(2.0, density=0.5), Term(0.5, density=0.3)), differences=True),
    "elected masks": Mix(
        (Term(2.0, density=0.5, vote=1.0), Term(-0.5), Term(0.7, density=0.1, vote=-1.0)),
        differences=True,
        elect=True,
        normalize=True,
        scale=0.7,
    ),
    "one elected": Mix((Term(0.7, Cut(0x3C000000, 40)),), True, True, True),
    "five elected": Mix(tuple(Term(w) for w in (0.5, -0.5, 0.3, 0.7, 0.1)), True, True, True),
    "middle": Mix((Term(1.0, Cut(0x3C000000, 40, 0x3F000000, 300)), Term(0.0), Term(0.5)), differences=True),
    "everything": Mix(
        (Term(0.5, Cut(0x3C000000, 1500, 0x3F000000, 300), 0.7, 2.0), Term(0.3, None, 0.5), Term(-0.1, Cut(1, 1))),
        True,
        True,
        True,
    ),
}


@pytest.fixture
def on_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine takes its tensors to be on a GPU with Triton."""
    patched(monkeypatch, Backend.TRITON)


def patched(patch: pytest.MonkeyPatch, chosen: Backend | None) -> None:
    """The engine goes by a backend, or by that of the device."""
    for module in (tensor_merge, noted_statistics):
        patch.setattr(module, "backend_of", backend_of if chosen is None else lambda device, dtypes: chosen)


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.cpu().view(torch.int32 if tensor.dtype == torch.float32 else torch.int16)


def both(case: Case, begin: int = 0, count: int | None = None) -> tuple[bool, torch.Tensor, bool, torch.Tensor]:
    """What the CPU's kernel makes of it, and what Triton's does: whether that is finite, and the result."""
    size = case.base.numel() - begin if count is None else count
    base = case.base if case.mix.differences else None
    expected = torch.full((size,), 7, dtype=case.dtype)
    result = expected.to(DEVICE)
    finite = cpu_mix.mix_(expected, case.mix, case.inputs, base, KEYS, begin)
    there = [x.to(DEVICE) for x in case.inputs]
    known = triton_mix.mix_(result, case.mix, there, base.to(DEVICE) if base is not None else None, KEYS, begin)
    assert known.shape == ()
    return finite, expected, bool(known), result


def case_of(form: str, count: int, stored: tuple[torch.dtype, ...], dtype: torch.dtype, seed: int = 0) -> Case:
    """A mix of tensors of which many elements are equal, some tiny and some zeros of either sign."""
    rng = np.random.default_rng(seed)
    values = rng.choice([-0.0, 0.0, 1e-7, -1e-39, 0.5, -0.5, 1 / 3, -1.25], (len(MIXED[form].terms) + 1, count))
    values += rng.integers(-8, 9, values.shape) / 64 * (rng.random(values.shape) < 0.5)
    base, *inputs = (torch.from_numpy(x).to(stored[i % len(stored)]) for i, x in enumerate(values))
    return Case(MIXED[form], tuple(inputs), base, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("form", MIXED)
def test_the_same_bits_as_on_the_cpu(form: str, dtype: torch.dtype) -> None:
    for count in SIZES:
        finite, expected, known, result = both(case_of(form, count, (dtype,), dtype))
        assert (finite, known) == (True, True)
        assert torch.equal(bits(result), bits(expected)), count


@pytest.mark.parametrize("form", [form for form, mix in MIXED.items() if any(term.cut for term in mix.terms)])
def test_numbers_that_only_the_device_knows(form: str) -> None:
    def there(term: Term, weight: bool, cut: bool) -> Term:
        limits = torch.tensor(cut_row(term.cut), device=DEVICE)
        own = DeviceCut(limits, term.cut is not None and term.cut.high != LARGEST)
        known = torch.tensor(term.weight, dtype=torch.float64, device=DEVICE)
        vote = float(term.weight) if term.vote is None else term.vote
        return term._replace(
            weight=known if weight and term.weight else term.weight,
            vote=vote,
            cut=own if cut and term.cut else term.cut,
        )

    case = case_of(form, 2 * BLOCK + 77, (torch.bfloat16,), torch.bfloat16)
    expected = both(case)[3]
    base = case.base.to(DEVICE) if case.mix.differences else None
    inputs = [x.to(DEVICE) for x in case.inputs]
    for weight, cut, some in ((True, False, 9), (False, True, 9), (True, True, 9), (True, True, 1)):
        terms = tuple(there(t, weight, cut) if i < some else t for i, t in enumerate(case.mix.terms))
        mix, result = case.mix._replace(terms=terms), torch.empty_like(expected)
        assert triton_mix.mix_(result, mix, inputs, base, KEYS)
        assert torch.equal(bits(result), bits(expected))
        assert torch.equal(bits(mix_block(mix, inputs, base, KEYS, 0).to(case.dtype)), bits(expected))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sources_of_every_dtype_at_once(dtype: torch.dtype) -> None:
    for form in ("three", "elected masks", "everything"):
        finite, expected, known, result = both(case_of(form, BLOCK + 5, DTYPES, dtype))
        assert (finite, known) == (True, True)
        assert torch.equal(bits(result), bits(expected))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(60))
def test_random_mixes(seed: int) -> None:
    rng = np.random.default_rng(seed)
    case = random_case(rng, int(rng.choice([1, 2, 511, *SIZES, 5 * BLOCK + 1])))
    finite, expected, known, result = both(case)
    assert finite == known
    assert torch.equal(bits(result), bits(expected))


def test_pieces_of_a_tensor() -> None:
    count = 2 * BLOCK + 77
    for form, dtype in itertools.product(("mean", "everything"), (torch.float32, torch.bfloat16)):
        case = case_of(form, count, (dtype,), dtype)
        for begin, size in ((1, count - 1), (BLOCK, BLOCK), (BLOCK - 3, 7), (count - 1, 1), (40, 0)):
            _, expected, known, result = both(case, begin, size)
            assert known
            assert torch.equal(bits(result), bits(expected)), (begin, size)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("stored", DTYPES, ids=str)
def test_what_is_not_finite_is_reported_and_stays_where_it_is(form: str, stored: torch.dtype) -> None:
    width = 32 if stored == torch.float32 else 16
    count = BLOCK + 100
    patterns = (NOT_FINITE[stored][i] for i in (0, 1, 4, 6))
    for pattern, (place, where) in zip(patterns, ((0, 0), (count - 1, 1), (BLOCK - 1, 2), (5, 0)), strict=True):
        case = case_of(form, count, (stored,), stored)
        tensors = [*case.inputs, case.base]
        if where == 2 and not case.mix.differences:
            continue
        tensors[where] = tensors[where].clone()
        bits(tensors[where])[place] = pattern - 2**width if pattern >> (width - 1) else pattern
        finite, expected, known, result = both(replace(case, inputs=tuple(tensors[:-1]), base=tensors[-1]))
        assert (finite, known) == (False, False), (hex(pattern), place, where)
        others = torch.arange(count) != place
        assert torch.equal(bits(result)[others], bits(expected)[others])


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sums_beyond_a_dtype_are_reported(dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    rest = torch.zeros(BLOCK)
    for number in (largest, -largest, largest * (1 + 2.0**-13), 65_519.99, 65_520.0, 3.3961e38, 1e-40, 2.0**-25):
        values = torch.cat([torch.tensor([number], dtype=torch.float32), rest])
        case = Case(Mix((Term(1.0),)), (values,), values, dtype)
        finite, expected, known, result = both(case)
        assert finite == known, number
        assert torch.equal(bits(result), bits(expected)), number


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_half_is_read_and_rounded_to_as_on_the_cpu(dtype: torch.dtype) -> None:
    halves = torch.arange(0, 2**15, dtype=torch.int32).to(torch.int16).view(dtype).float()
    halves = halves[halves.isfinite()]
    between = (halves[1:].double() + halves[:-1].double()).div(2).float().view(torch.int32)
    numbers = torch.cat([between - 1, between, between + 1]).view(torch.float32)
    read = Case(Mix((Term(-1.0),)), (halves.to(dtype),), halves, torch.float32)
    rounded = Case(Mix((Term(-1.0),)), (numbers,), numbers, dtype)
    for case in (read, rounded):
        finite, expected, known, result = both(case)
        assert (finite, known) == (True, True)
        assert torch.equal(bits(result), bits(expected))


@triton.jit
def numbers_of(out: Any, start: Any, lower: Any, upper: Any, BLOCK: tl.constexpr) -> None:
    lane = tl.arange(0, BLOCK)
    tl.store(out + lane, triton_mixing._numbers(triton_mixing._long(start), lane, lower, upper))


@pytest.mark.parametrize("start", [0, 2**31 - BLOCK, 2**31, 2**32 - BLOCK, 2**32, 5 * 2**32 + 2**31 + BLOCK])
def test_random_numbers_are_those_of_every_other_device(start: int) -> None:
    for key in KEYS:
        out = torch.empty(BLOCK, dtype=torch.int32, device=DEVICE)
        numbers_of[(1,)](out, setting(start), setting(key & 0xFFFFFFFF), setting(key >> 32), BLOCK)
        assert torch.equal(out.cpu(), uniform(key, start, BLOCK, torch.device("cpu")))


FUSED: dict[str, list[dict[str, Scalar]]] = {
    "linear": [{}, {"normalize": False}],
    "passthrough": [{}],
    "task_arithmetic": [{"lambda": 0.7}, {"normalize": True}],
    "slerp": [{"t": 0.3}],
    "nuslerp": [{}],
    "multislerp": [{}],
    "karcher": [{}],
    "model_stock": [{}],
    "ties": [{}, {"rescale": True, "lambda": 0.7}, {"normalize": False}],
    "dare_linear": [{}, {"rescale_by": "magnitude"}],
    "dare_ties": [{}, {"normalize": True, "rescale": False}],
    "breadcrumbs": [{}, {"rescale": True}],
    "breadcrumbs_ties": [{}],
    "della": [{}, {"rescale": False, "lambda": 0.7}, {"rescale_by": "magnitude"}],
    "della_linear": [{}, {"normalize": True}],
    "sce": [{}],
}
"""Methods and what they are tried with besides weights, densities and their defaults."""


def merged(
    name: str, shared: dict[str, Scalar], inputs: list[torch.Tensor], base: torch.Tensor, out: torch.Tensor
) -> None:
    method = METHODS[name]
    count = min(len(inputs), method.spec.max_inputs or len(inputs))
    each: list[dict[str, Scalar]] = [
        {"weight": 0.7, "density": 0.5, "gamma": 0.1, "epsilon": 0.2},
        {"weight": 0.4, "density": 0.31, "gamma": 0.02, "epsilon": 0.3},
        {"weight": -0.2, "density": 1.0},
    ]
    if name == "passthrough":
        count = 1
    values = call_values(method.spec, each[:count], shared)
    below = None if method.spec.base == "none" else base
    tensor_merge.merge_tensor(method, inputs[:count], below, values, METHOD_KEYS[:count], out=out)


@pytest.mark.parametrize("name", FUSED)
def test_methods_have_the_bits_of_the_cpu(name: str, on_gpus: None) -> None:
    rng = np.random.default_rng(3)
    for shape, dtype in itertools.product(((3, 517), (1201,), (2, 3, 4), (0, 4)), DTYPES):
        base = torch.from_numpy(rng.normal(0, 1, shape)).to(dtype)
        inputs = [(base.float() + torch.from_numpy(rng.integers(-3, 4, shape) / 64)).to(dtype) for _ in range(3)]
        for shared in FUSED[name]:
            expected, result = torch.empty(shape, dtype=dtype), torch.empty(shape, dtype=dtype, device=DEVICE)
            with pytest.MonkeyPatch.context() as patch:
                patched(patch, None)
                merged(name, shared, inputs, base, expected)
            merged(name, shared, [x.to(DEVICE) for x in inputs], base.to(DEVICE), result)
            assert torch.equal(bits(result), bits(expected)), (shape, dtype, shared)
            with pytest.MonkeyPatch.context() as patch:
                patched(patch, Backend.TORCH)
                merged(name, shared, [x.to(DEVICE) for x in inputs], base.to(DEVICE), result)
            assert torch.equal(result.cpu(), expected), (shape, dtype, shared)  # but for the sign of zeros


def test_rows_of_more_elements_than_a_short_word_counts(on_gpus: None) -> None:
    rng = np.random.default_rng(4)
    count = 2**16 + 77
    base, *inputs = (torch.from_numpy(rng.integers(-99, 99, count) / 64).bfloat16() for _ in range(3))
    expected, result = torch.empty(count), torch.empty(count, device=DEVICE)
    with pytest.MonkeyPatch.context() as patch:
        patched(patch, None)
        merged("della", {}, inputs, base, expected)
    merged("della", {}, [x.to(DEVICE) for x in inputs], base.to(DEVICE), result)
    assert torch.equal(bits(result), bits(expected))


@pytest.mark.parametrize("name", ["linear", "ties", "dare_linear", "della", "slerp"])
def test_what_is_not_finite_is_an_error(name: str, on_gpus: None) -> None:
    base, *inputs = (torch.randn(2, 700, generator=torch.Generator().manual_seed(i)) for i in range(3))
    for bad in (torch.nan, torch.inf):
        inputs[1][1, 3:60] = bad  # masks drop some of them
        with pytest.raises(EvomergeError, match="NaN"):
            merged(name, {}, [x.to(DEVICE) for x in inputs], base.to(DEVICE), torch.empty(2, 700, device=DEVICE))


def test_an_example_is_compared_before_the_kernels_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    assert triton_mix.agrees_with_torch(DEVICE)
    exact, by_torch = triton_mix.least_vote, triton_mix.mix_block
    with monkeypatch.context() as patch:
        patch.setattr(triton_mix, "least_vote", lambda votes: exact(votes) + 10.0)
        assert not triton_mix.agrees_with_torch(DEVICE)

    def flushed(*given: Any) -> torch.Tensor:
        result = by_torch(*given)
        return result.masked_fill_(result.abs() < 2.0**-126, 0)

    monkeypatch.setattr(triton_mix, "mix_block", flushed)
    assert not triton_mix.agrees_with_torch(DEVICE)


@pytest.fixture
def with_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """A device of a machine with CUDA, of which nothing is known yet."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    backend._has_triton.cache_clear()
    yield torch.device("cuda", 0)
    backend._has_triton.cache_clear()


def test_the_backend_of_a_device(with_a_gpu: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[torch.device] = []
    monkeypatch.setattr(triton_mix, "agrees_with_torch", lambda device: asked.append(device) or True)
    assert backend_of(torch.device("cpu"), DTYPES) is Backend.CPU
    assert backend_of(torch.device("cpu"), [torch.float64]) is Backend.TORCH
    assert backend_of(torch.device("meta"), DTYPES) is Backend.TORCH
    assert asked == []
    for _ in range(3):
        assert backend_of(with_a_gpu, DTYPES) is Backend.TRITON
    assert backend_of(with_a_gpu, [torch.float32, torch.int32]) is Backend.TORCH
    assert asked == [with_a_gpu]


def test_without_triton_torch_operations_are_used(with_a_gpu: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert backend_of(with_a_gpu, DTYPES) is Backend.TORCH


@pytest.mark.parametrize("fault", [False, RuntimeError("Failed to find C compiler.\nPlease specify via CC")])
def test_kernels_that_do_not_work_are_not_used_and_said_once(
    fault: bool | Exception, with_a_gpu: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tried(device: torch.device) -> bool:
        if isinstance(fault, Exception):
            raise fault
        return fault

    monkeypatch.setattr(triton_mix, "agrees_with_torch", tried)
    with pytest.warns(EvomergeWarning, match=r"C compiler|is not that of torch") as said:
        assert {backend_of(with_a_gpu, DTYPES) for _ in range(3)} == {Backend.TORCH}
    assert len(said) == 1
    assert "\n" not in str(said[0].message)


def test_memory_that_ends_while_kernels_are_tried_is_no_fault_of_theirs(
    with_a_gpu: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults: list[Exception] = [torch.OutOfMemoryError("CUDA out of memory")]

    def tried(device: torch.device) -> bool:
        if faults:
            raise faults.pop()
        return True

    monkeypatch.setattr(triton_mix, "agrees_with_torch", tried)
    with pytest.raises(torch.OutOfMemoryError):
        backend_of(with_a_gpu, DTYPES)
    assert backend_of(with_a_gpu, DTYPES) is Backend.TRITON


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sums_of_magnitudes_are_those_of_the_cpu(dtype: torch.dtype) -> None:
    count = CHUNK + 700
    rng = np.random.default_rng(2)
    base, task = (torch.from_numpy(rng.standard_normal(count)).to(dtype) for _ in range(2))
    here = cpu_statistics.CpuStatistics([task], base, (count,), KEYS)
    there = TritonStatistics([task.to(DEVICE)], base.to(DEVICE), (count,), KEYS)
    cuts = [
        None,
        *(Cut(0x3E000000, low_end, 0x3F800000, high_start) for low_end, high_start in ((700, 513), (CHUNK + 3, 0))),
    ]
    for cut, density in zip((*cuts, here.cut(0, 0, 999)), (0.3, None, 0.4, None), strict=True):
        assert float(there.magnitude_kept(0, cut, density)) == here.magnitude_kept(0, cut, density)
    assert float(TritonStatistics([task], task, (count,), KEYS).magnitude_kept(0, None, 0.5)) == 1.0
