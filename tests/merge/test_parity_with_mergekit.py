"""Against mergekit itself: whole tiny models through its command's code, and tensors of several shapes by its API."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from merge.carry_out import carry_out
from merge.papers_base import fusion_importance
from safetensors.torch import load_file, save_file
from tiny_models import TinyModel

from evomerge.merge.execution.engine import merge_slice
from evomerge.merge.methods import METHODS
from evomerge.merge.mixes.torch_statistics import TensorStatistics
from evomerge.merge.planning.plan import make_plan
from evomerge.mergekit.forms import FORMS
from evomerge.models.opening import open_pool
from evomerge.models.pool import Pool
from evomerge.recipes.slices import Input, SliceRecipe, parameters

pytestmark = pytest.mark.slow

mergekit_config = pytest.importorskip("mergekit.config")
SIZES = {"hidden_size": 64, "intermediate_size": 160, "vocab_size": 300, "num_hidden_layers": 3}


@dataclass(frozen=True)
class Case:
    """A merge that both are to carry out.

    Attributes:
        method: its name in both.
        each: parameters of each model.
        shared: the others.
        ours: what is to be said to us only.
        base: whether there is a base.
    """

    method: str
    each: list[dict[str, Any]]
    shared: dict[str, Any] = field(default_factory=dict)
    ours: dict[str, Any] = field(default_factory=dict)
    base: bool = False


MERGEKIT = {"reading": "mergekit"}
WEIGHTS: list[dict[str, Any]] = [{"weight": 0.3}, {"weight": 0.9}]
THINNED: list[dict[str, Any]] = [{"weight": 0.6, "density": 0.53}, {"weight": 0.3, "density": 0.81}]
CASES: Mapping[str, Case] = {
    "linear": Case("linear", WEIGHTS),
    "linear as given": Case("linear", [{"weight": -0.4}, {"weight": 1.1}], {"normalize": False}),
    "slerp": Case("slerp", [{}, {}], {"t": 0.35}),
    "task arithmetic": Case("task_arithmetic", [{"weight": 0.7}, {"weight": 0.45}], {"lambda": 1.2}, base=True),
    "task arithmetic, normalised": Case(
        "task_arithmetic", [{"weight": 0.7}, {"weight": -0.2}], {"normalize": True}, base=True
    ),
    "ties": Case("ties", [{"weight": 0.6, "density": 0.53}, {"weight": 0.3, "density": 0.81}], base=True),
    "ties as given": Case(
        "ties",
        [{"weight": 0.6, "density": 0.2}, {"weight": 0.8, "density": 1.0}],
        {"lambda": 0.8, "normalize": False},
        base=True,
    ),
    "ties with a negative weight": Case(
        "ties", [{"weight": 0.6, "density": 0.7}, {"weight": -0.25, "density": 0.4}], base=True
    ),
    "ties of one": Case("ties", [{"weight": 0.6, "density": 0.3}, {"weight": 0.0, "density": 0.4}], base=True),
    "nuslerp": Case("nuslerp", WEIGHTS),
    "nuslerp of rows": Case("nuslerp", WEIGHTS, {"nuslerp_flatten": False}),
    "nuslerp of task vectors": Case("nuslerp", WEIGHTS, base=True),
    "nuslerp of columns of task vectors": Case(
        "nuslerp", WEIGHTS, {"nuslerp_flatten": False, "nuslerp_row_wise": True}, base=True
    ),
    "multislerp": Case("multislerp", WEIGHTS, ours=MERGEKIT),
    "multislerp of task vectors": Case("multislerp", WEIGHTS, {"normalize_weights": False}, MERGEKIT, base=True),
    "karcher": Case("karcher", [{}, {}]),
    "passthrough": Case("passthrough", [{"scale": 0.7}]),
    "model stock": Case("model_stock", [{}, {}], ours=MERGEKIT, base=True),
    "model stock of rows": Case("model_stock", [{}, {}], {"filter_wise": True}, MERGEKIT, base=True),
    "nearswap": Case("nearswap", [{}], {"t": 0.003}, base=True),
    "arcee fusion": Case("arcee_fusion", [{}], base=True),
    "ties, rescaled": Case("ties", THINNED, {"rescale": True}, base=True),
    "breadcrumbs": Case("breadcrumbs", THINNED, base=True),
    "breadcrumbs with ties": Case("breadcrumbs_ties", THINNED, {"normalize": True}, base=True),
    "ram": Case("ram", [{}, {}], base=True),
    "ram of large changes": Case("ram", [{}, {}], {"epsilon": 5e-4}, base=True),
    "ramplus": Case("ramplus_tl", [{}, {}], {"epsilon": 5e-4, "r": 0.5, "alpha": 1.5}, base=True),
    "sce": Case("sce", [{}, {}], ours=MERGEKIT, base=True),
}


def run_mergekit(config: dict[str, Any], out: Path) -> dict[str, torch.Tensor]:
    from mergekit.merge import MergeOptions, run_merge

    parsed = mergekit_config.MergeConfiguration.model_validate(yaml.safe_load(yaml.safe_dump(config)))
    run_merge(parsed, str(out), MergeOptions(device="cpu", quiet=True, copy_tokenizer=False, write_model_card=False))
    tensors: dict[str, torch.Tensor] = {}
    for file in out.glob("*.safetensors"):
        tensors |= load_file(file)
    return tensors


def ulps(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Distance in units in the last place between two bfloat16 tensors."""

    def ordered(x: torch.Tensor) -> torch.Tensor:
        bits = x.view(torch.int16).int()
        return torch.where(bits < 0, -(bits & 0x7FFF), bits)

    return (ordered(a) - ordered(b)).abs()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", CASES)
def test_same_models(name: str, dtype: str, tiny_model: TinyModel, tmp_path: Path) -> None:
    case = CASES[name]
    folders = fine_tunes(tiny_model, dtype)
    pool = open_pool(folders, base="base", dtype=dtype)
    models = "ab"[: len(case.each)]
    inputs = tuple(Input(model, None, parameters(given)) for model, given in zip(models, case.each, strict=True))
    base = Input("base") if case.base else None
    shared = parameters({**case.shared, **case.ours})
    recipe = pool.info.recipe(SliceRecipe(s, case.method, inputs, shared, base) for s in pool.info.slices)
    ours = {n: t for entry in make_plan(recipe, pool).slices for n, t in merge_slice(entry, pool).items()}

    config: dict[str, Any] = {
        "merge_method": case.method,
        "models": [{"model": folders[n], "parameters": given} for n, given in zip(models, case.each, strict=True)],
        "parameters": case.shared,
        "dtype": "float32",
        "out_dtype": dtype,
    }
    if case.method == "slerp":
        config["base_model"] = folders["a"]
    elif case.base:
        config["base_model"] = folders["base"]
    theirs = run_mergekit(config, tmp_path / "mergekit")

    assert ours.keys() == theirs.keys()
    different = total = 0
    for tensor, expected in theirs.items():
        result = ours[tensor]
        assert result.dtype == expected.dtype == getattr(torch, dtype)
        sure = certain(case, pool, tensor)
        largest = max(float(pool.read(model, tensor).abs().max()) for model in models)
        if dtype == "float32":
            torch.testing.assert_close(result[sure], expected[sure], rtol=1e-5, atol=3e-7 * largest)
            continue
        distance = ulps(result[sure], expected[sure])
        # Where terms cancel, what is left is as far off as float32 rounds the terms: many units of a small result.
        rounding = (result[sure].float() - expected[sure].float()).abs() <= 1e-6 * largest
        assert bool(((distance <= 1) | rounding).all()), tensor
        different, total = different + int((distance > 0).sum()), total + distance.numel()
    # A weighted mean of two bfloat16 numbers is often half way between two others; rounding of its terms then decides.
    assert different <= (0.04 if case.method == "linear" else 0.002) * total


def fine_tunes(tiny_model: TinyModel, stored: str) -> dict[str, str]:
    """A base and two models near it, as fine-tuning leaves them: a few units in the last place of bfloat16 away."""
    folders = {name: tiny_model(name, "llama", 0, "float32", **SIZES) for name in ("base", "a", "b")}
    for seed, name in enumerate(("a", "b")):
        path = folders[name] / "model.safetensors"
        generator = torch.Generator().manual_seed(seed)
        tensors = {
            key: tensor + 0.02 * tensor.std() * torch.randn(tensor.shape, generator=generator)
            for key, tensor in load_file(path).items()
        }
        save_file(tensors, path, {"format": "pt"})
    for folder in folders.values():
        path = folder / "model.safetensors"
        save_file({k: t.to(getattr(torch, stored)) for k, t in load_file(path).items()}, path, {"format": "pt"})
    return {name: str(folder) for name, folder in folders.items()}


def certain(case: Case, pool: Pool, name: str) -> torch.Tensor:
    """The elements whose fate does not hang on rounding.

    Of equal magnitudes TIES and Breadcrumbs could as well keep others: which ones mergekit keeps is up to a sort that
    is not stable and differs from one processor to another. Arcee Fusion's divergences are tiny differences, which
    float32 gives to a percent or so.
    """
    sure = torch.ones(pool.layout.shapes[name], dtype=torch.bool)
    base = pool.read("base", name)
    for model, given in zip("ab", case.each, strict=False):
        own = pool.read(model, name)
        if case.method in ("ties", "breadcrumbs", "breadcrumbs_ties"):
            count = own.numel()
            keep = max(1, int(given.get("density", 1.0) * count))
            first = 0 if case.method == "ties" else min(int(0.01 * count), count - keep)
            cut = TensorStatistics([own.view(-1)], base.view(-1), (count,)).cut(0, first, first + keep)
            if cut is not None:
                bits = (own.float() - base.float()).view(torch.int32).bitwise_and(0x7FFFFFFF)
                sure &= (bits != cut.low) | (cut.low_end >= count)
                sure &= (bits != cut.high) | (cut.high_start <= 0)
        elif case.method == "arcee_fusion":
            importance, threshold = fusion_importance(own.double().numpy(), base.double().numpy())
            sure &= torch.from_numpy(abs(importance - threshold) > 0.05 * threshold)
    return sure


TENSORS: Mapping[str, Case] = {
    **{name: case for name, case in CASES.items() if case.method not in ("ties", "arcee_fusion")},
    "breadcrumbs of three": Case(
        "breadcrumbs", [{**given, "gamma": 0.2} for given in (*THINNED, {"weight": -0.2, "density": 0.7})], base=True
    ),
    "sce of what differs most": Case("sce", [{}, {}, {}], {"select_topk": 0.4}, MERGEKIT, base=True),
    "linear of three": Case("linear", [*WEIGHTS, {"weight": 0.5}]),
    "ties of three": Case(
        "ties", [{"weight": w, "density": d} for w, d in ((0.6, 0.4), (1, 0.7), (0.3, 1))], base=True
    ),
    "multislerp of three": Case("multislerp", [*WEIGHTS, {"weight": 0.5}], ours=MERGEKIT),
    "karcher of four": Case("karcher", [{}, {}, {}, {}]),
    "karcher, one step": Case("karcher", [{}, {}, {}], {"max_iter": 1}),
    "karcher, a long last step": Case("karcher", [{}, {}, {}], {"tol": 0.01}),
    "model stock of four": Case("model_stock", [{}, {}, {}, {}], ours=MERGEKIT, base=True),
    "nearswap of most": Case("nearswap", [{}], {"t": 0.5}, base=True),
}


@pytest.mark.parametrize("name", TENSORS)
def test_same_tensors(name: str) -> None:
    from mergekit.merge_methods.api import merge_tensors

    case = TENSORS[name]
    generator = torch.Generator().manual_seed(1)
    for shape in ((1,), (50,), (12, 20), (4, 5, 6)):
        base = torch.randn(shape, generator=generator)
        inputs = [base + torch.randn(shape, generator=generator) for _ in case.each]
        if case.method == "nuslerp":
            inputs[0][..., -1:] = base[..., -1:]  # zeros in the task vector, and a vector of zeros of some
        below = base if case.base else None
        result = carry_out(case.method, inputs, below, case.each, {**case.shared, **case.ours})
        each = {key: [given[key] for given in case.each] for key in case.each[0]}
        given = [base, *inputs] if case.base else inputs
        index = 0 if case.base or case.method == "slerp" else None
        settings = {key: value for key, value in case.shared.items() if key in known_to_mergekit(case.method)}
        expected = merge_tensors(given, case.method, parameters={**settings, **each}, base_index=index)
        torch.testing.assert_close(result, expected, rtol=1e-5, atol=2e-6)


def known_to_mergekit(method: str) -> set[str]:
    from mergekit.merge_methods.registry import get

    return {parameter.name for parameter in get(method).spec.parameters}


@pytest.mark.parametrize("method", [name for name in METHODS if name in FORMS])
def test_parameters_have_mergekits_names_and_defaults(method: str) -> None:
    """Recipes are exchanged with mergekit; what it does not have is listed here."""
    from mergekit.merge_methods.base import MISSING
    from mergekit.merge_methods.registry import get

    spec = METHODS[method].spec
    theirs = {parameter.name: parameter for parameter in get(method).spec.parameters}
    ours = {parameter.name: parameter for parameter in spec.parameters}
    own = {"reading", "rescale_by", "scope"} | ({"weight"} if method == "karcher" else set())
    assert ours.keys() - theirs.keys() <= own
    for name in ours.keys() & theirs.keys():
        if theirs[name].default not in (MISSING, None):
            assert ours[name].default == theirs[name].default, name
