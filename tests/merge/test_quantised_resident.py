"""A resident model whose linear layers are quantised: what it computes, how it moves, and what it takes."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from merge.path_models import IDS, open_sources, path_recipe, random_path
from torch import nn

from evomerge.errors import ConfigError
from evomerge.evaluation.engine_settings import QUANTISE
from evomerge.merge.cache.shared_cache import SharedCache
from evomerge.merge.execution.sources import Placement
from evomerge.merge.planning.plan import make_plan
from evomerge.merge.planning.slice_plan import Plan
from evomerge.merge.resident.codecs import Fp8, Int8, codec_of
from evomerge.merge.resident.model import Resident
from evomerge.merge.resident.quantised_linear import QuantisedLinear
from evomerge.merge.resident.resident_memory import quantised_bytes
from evomerge.models.architecture.stacks import find_layers
from evomerge.models.opening import open_pool
from evomerge.models.pool import Pool

CPU = torch.device("cpu")
needs_library = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed (evomerge[quantise])"
)
EVERY = ["int8", "fp8", pytest.param("nf4", marks=needs_library)]


NF4 = [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334]
NF4 += [-0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224]
NF4 += [0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0]


def int8(weight: torch.Tensor) -> torch.Tensor:
    """By definition, element by element."""
    rows = []
    for row in weight.float():
        largest = np.float32(row.abs().max())
        codes = np.round(row.numpy() * (np.float32(127) * (np.float32(1) / largest)))
        rows.append(torch.from_numpy(codes * (largest / np.float32(127))))
    return torch.stack(rows).to(weight.dtype)


def fp8(weight: torch.Tensor) -> torch.Tensor:
    """From a table of all such numbers; ties, which have an even mantissa, do not occur."""
    table = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    table = table[~table.isnan()]
    wide = weight.float()
    largest = wide.abs().amax(1, keepdim=True)
    nearest = (wide.mul(448 / largest)[..., None] - table).abs().argmin(-1)
    return (table[nearest] * (largest / 448)).to(weight.dtype)


def nf4(weight: torch.Tensor) -> torch.Tensor:
    """From the table of QLoRA's appendix E, by blocks of 64 weights in a row, wherever rows of the matrix end."""
    flat = weight.float().flatten()
    blocks = torch.cat([flat, flat.new_zeros(-len(flat) % 64)]).view(-1, 64)
    largest = blocks.abs().amax(1, keepdim=True)
    nearest = ((blocks / largest)[..., None] - torch.tensor(NF4)).abs().argmin(-1)
    return (torch.tensor(NF4)[nearest] * largest).flatten()[: len(flat)].view(weight.shape).to(weight.dtype)


REFERENCES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"int8": int8, "fp8": fp8, "nf4": nf4}


@pytest.fixture
def pool(tiny_model: Any) -> Pool:
    return open_pool({name: str(tiny_model(name, "qwen2", seed)) for seed, name in enumerate("abc")}, base="a")


def resident_of(pool: Pool, quantise: str | None = None, **more: Any) -> Resident:
    return Resident(pool, "cpu", placement=Placement(0, 0, 0), quantise=quantise, **{"cache": 0, **more})


def mean(pool: Pool, **weights: float) -> Plan:
    return make_plan(pool.info.linear(weights), pool)


@torch.no_grad()
def logits(resident: Resident) -> torch.Tensor:
    answer: torch.Tensor = resident.model.module(IDS).logits
    return answer.clone()


def linears(resident: Resident) -> list[QuantisedLinear]:
    return [part for part in resident.model.module.modules() if isinstance(part, QuantisedLinear)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(24, 96), (3, 50), (3, 7)], ids=str)
@pytest.mark.parametrize("name", EVERY)
def test_codecs_are_their_definitions(name: str, shape: tuple[int, int], dtype: torch.dtype) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    codec = codec_of(name, CPU)
    memory = [torch.empty(shape, dtype=kind) for shape, kind in codec.shapes(weight.shape)]
    codec.write(weight, *memory)
    found = codec.read(*memory, weight.shape, dtype)
    assert found.dtype == dtype
    rounding = 0.0 if name != "nf4" else torch.finfo(dtype).eps if dtype != torch.float32 else 1e-7
    torch.testing.assert_close(found, REFERENCES[name](weight), rtol=rounding, atol=0)
    again = [torch.full_like(tensor, 7) for tensor in memory]
    codec.write(weight, *again)
    assert all(torch.equal(one, other) for one, other in zip(memory, again, strict=True))


@needs_library
def test_int8_is_that_of_bitsandbytes() -> None:
    from bitsandbytes import functional

    weight = torch.randn(32, 64, generator=torch.Generator().manual_seed(1)).half()
    codes, largest, _ = functional.int8_vectorwise_quant(weight)
    (shape, dtype), (rows, kind) = Int8().shapes(weight.shape)
    own, scales = torch.empty(shape, dtype=dtype), torch.empty(rows, dtype=kind)
    Int8().write(weight, own, scales)
    assert torch.equal(own, codes)
    torch.testing.assert_close(scales[:, 0] * 127, largest, rtol=1e-6, atol=0)


def test_errors_are_within_their_bounds() -> None:
    weight = torch.randn(16, 640, generator=torch.Generator().manual_seed(2))
    weight[3] = 0  # a row without a scale
    largest = weight.abs().amax(1, keepdim=True)
    assert ((int8(weight[:3]) - weight[:3]).abs() <= largest[:3] / 127 / 2 * (1 + 1e-5)).all()
    for codec, bound in ((Int8(), largest / 254), (Fp8(), (weight.abs() / 16).maximum(largest / 448 * 2**-10))):
        memory = [torch.empty(shape, dtype=kind) for shape, kind in codec.shapes(weight.shape)]
        codec.write(weight, *memory)
        error = (codec.read(*memory, weight.shape, weight.dtype) - weight).abs()
        assert (error <= bound * (1 + 1e-5)).all()
        assert not error[3].any()
        assert error.max() > bound.max() / 4  # the bound says something


@pytest.mark.parametrize("name", EVERY)
def test_computes_what_the_dequantised_merge_computes(pool: Pool, name: str) -> None:
    held, plain = resident_of(pool, name), resident_of(pool)
    for weights in ({"a": 0.5, "b": 0.5}, {"b": 1.0}, {"a": 0.2, "c": 0.9}):
        held.apply(mean(pool, **weights))
        plain.apply(mean(pool, **weights))
        full = logits(plain)
        with torch.no_grad():
            for part in find_layers(plain.model.module)[1].modules():
                if type(part) is nn.Linear:
                    part.weight.data = REFERENCES[name](part.weight)
        assert torch.equal(logits(held), logits(plain))
        assert not torch.equal(logits(held), full)
        plain.forget()


@needs_library
def test_nf4_is_what_transformers_loads(pool: Pool) -> None:
    import transformers

    held = resident_of(pool, "nf4")
    held.apply(mean(pool, b=1.0))
    settings = transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(
        str(pool.folder("b")), quantization_config=settings, dtype=torch.float32
    )
    own = {name: part for name, part in held.model.module.named_modules() if isinstance(part, QuantisedLinear)}
    theirs = {name: part for name, part in loaded.named_modules() if hasattr(part, "quant_state")}
    assert own.keys() == theirs.keys()
    for name, part in theirs.items():
        assert torch.equal(own[name].weight.view(-1), part.weight.data.view(-1))
        assert torch.equal(own[name].scales, part.weight.quant_state.absmax)


@pytest.mark.parametrize("name", EVERY)
def test_a_candidate_is_itself_whatever_came_before(pool: Pool, name: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    plans = [mean(pool, **dict(zip("abc", rng.dirichlet(np.ones(3)), strict=True))) for _ in range(2)]
    plans += [mean(pool, c=1.0), plans[0]]
    alone = []
    for plan in plans:
        fresh = resident_of(pool, name)
        fresh.apply(plan)
        alone.append(logits(fresh))
    shared = SharedCache(tmp_path / "shared", 10**8, keep_all=True)
    for resident in (resident_of(pool, name), resident_of(pool, name, cache=10**7, shared=shared)):
        for plan, expected in zip(plans, alone, strict=True):
            resident.apply(plan)
            assert torch.equal(logits(resident), expected)
    other = resident_of(pool, name, shared=shared)
    found = other.apply(plans[1])
    assert found.shared
    assert torch.equal(logits(other), alone[1])
    plain = resident_of(pool, shared=shared)  # which takes none of them for its own
    plain.apply(plans[1])
    assert torch.equal(logits(plain), exact(pool, plans[1]))


def exact(pool: Pool, plan: Plan) -> torch.Tensor:
    resident = resident_of(pool)
    resident.apply(plan)
    return logits(resident)


def test_unchanged_slices_are_not_touched(pool: Pool) -> None:
    resident = resident_of(pool, "int8")
    recipe = pool.info.linear({"a": 0.5, "b": 0.5})
    resident.apply(make_plan(recipe, pool))
    before = [(part.weight.data_ptr(), part.weight.clone()) for part in linears(resident)]
    assert resident.apply(make_plan(recipe, pool)).computed == 0
    after = [(part.weight.data_ptr(), part.weight) for part in linears(resident)]
    assert all(a[0] == b[0] and torch.equal(a[1], b[1]) for a, b in zip(before, after, strict=True))
    assert {part.weight.dtype for part in linears(resident)} == {torch.int8}


@pytest.mark.parametrize("name", EVERY)
def test_full_precision_in_between_has_the_bits_of_an_ordinary_model(pool: Pool, name: str) -> None:
    resident = resident_of(pool, name, cache=10**7)
    first, second = mean(pool, a=0.5, b=0.5), mean(pool, b=1.0)
    resident.apply(first)
    quantised = logits(resident)
    resident.full = True
    for plan in (first, second):
        resident.apply(plan)
        assert torch.equal(logits(resident), exact(pool, plan))
    resident.full = False
    resident.apply(first)
    assert torch.equal(logits(resident), quantised)


@pytest.mark.parametrize("kind", ["llama", "gpt_neox", "gemma2"])
def test_paths_point_at_quantised_layers(kind: str, tmp_path: Path) -> None:
    pool, rng = open_sources(tmp_path, kind), np.random.default_rng(0)
    resident = resident_of(pool, "int8", cache=10**7)
    for depth in (1, 9, 4):
        plan = make_plan(path_recipe(pool, random_path(rng, depth)), pool)
        fresh = resident_of(pool, "int8")
        fresh.apply(plan)
        resident.apply(plan)
        assert torch.equal(logits(resident), logits(fresh))
        full = exact(pool, plan)
        assert 0 < (logits(fresh) - full).abs().max() < 0.1 * full.abs().max()


@pytest.mark.parametrize("name", EVERY)
def test_memory_is_what_was_counted(tiny_model: Any, name: str) -> None:
    folder = tiny_model("wide", hidden_size=64, intermediate_size=128, num_hidden_layers=3)
    pool = open_pool({"wide": str(folder)})
    resident = resident_of(pool, name)
    held = sum(parameter.nbytes for parameter in resident.model.module.parameters())
    assert held == quantised_bytes(pool, name)
    each = {"int8": 1.0 + 4 / 64, "fp8": 1.0 + 4 / 64, "nf4": 0.5 + 4 / 64}[name]
    weights = 3 * (64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 128)
    rest = 4 * (2 * 40 * 64 + 7 * 64)
    # down_proj has rows of 128 weights.
    less = 0.0 if name == "nf4" else 3 * 64 * 128 * 4 / 128
    assert held == weights * each - less + rest


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("name", EVERY)
def test_a_gpu_holds_what_a_processor_holds(pool: Pool, name: str) -> None:
    here = resident_of(pool, name)
    there = Resident(pool, "cuda", placement=Placement(0, 0, 0), cache=0, quantise=name)
    for plan in (mean(pool, a=0.5, b=0.5), mean(pool, c=1.0)):
        here.apply(plan)
        there.apply(plan)
        for own, other in zip(linears(here), linears(there), strict=True):
            assert own.weight.dtype == other.weight.dtype
            # Divisions may round in another way, which turns a few codes to their neighbours.
            same = torch.isclose(own.dequantised(), other.dequantised().cpu(), rtol=1e-5, atol=1e-6)
            assert same.float().mean() > 0.99


def test_refusals(tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"evaluator.quantise is 'int4'.*did you mean 'int8'"):
        codec_of("int4", CPU)
    assert all(codec_of(name, CPU) for name in QUANTISE if name != "nf4")
    pool = open_pool({"a": str(tiny_model("a", "gpt2"))})
    with pytest.raises(ConfigError, match=r"the layers of GPT2LMHeadModel have no torch.nn.Linear"):
        resident_of(pool, "int8")
    monkeypatch.setattr(Int8, "read", lambda self, codes, scales, shape, dtype: codes.to(dtype).flip(1))
    with pytest.raises(ConfigError, match=r"int8, which does not work on cpu \(a matrix comes back with an error of"):
        codec_of("int8", CPU)
    monkeypatch.setattr(Fp8, "write", lambda *_: torch.empty(0).to("meta").item())
    with pytest.raises(ConfigError, match=r"evaluator.quantise is fp8, which does not work on cpu .*quantise=int8"):
        codec_of("fp8", CPU)
