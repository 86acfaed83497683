"""Hostile weights and parameters: an error that names the tensor, or the documented result; never a silent NaN."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from evomerge.cli.main import main
from evomerge.errors import EvomergeError, InfeasibleError, RecipeError
from evomerge.export.writer import write_model
from evomerge.merge.execution.engine import merge_slice
from evomerge.merge.execution.tensor_merge import merge_tensor
from evomerge.merge.methods import METHODS, Method
from evomerge.merge.planning.plan import make_plan
from evomerge.models.opening import open_pool
from evomerge.models.pool import Pool
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.slices import Input, SliceId, SliceRecipe, parameters
from evomerge.recipes.yaml_reader import dump_recipe

OF_WEIGHTS = {name: method for name, method in METHODS.items() if method.spec.statistics is None}
"""Methods that read no statistics of data: nobody has made any for these models."""

Llamas = Callable[..., dict[str, Path]]
Change = Callable[[torch.Tensor], object]
BAD = "model.layers.0.mlp.up_proj.weight"
SLICE = SliceId("mlp", 0)
# Whatever lies farther than t away moves an element by t, also what is infinitely far.
SURVIVES_INFINITY = {"nearswap"}


def has_base(method: Method) -> bool:
    return method.spec.base != "none"


def recipe_of(pool: Pool, method: str, values: Mapping[str, tuple[Any, Any] | float] | None = None) -> Recipe:
    """Both sources, the last one only where a method takes one; `values` are set where the method has them."""
    spec = OF_WEIGHTS[method].spec
    names = list(pool.info.sources)[-min(2, spec.max_inputs or 2) :]
    given = {p: values[p.name] for p in spec.parameters if values is not None and p.name in values}
    each = {p.name: v if isinstance(v, tuple) else (v, v) for p, v in given.items() if p.per_input}
    shared = parameters({p.name: v for p, v in given.items() if not p.per_input and not isinstance(v, tuple)})
    inputs = tuple(
        Input(name, None, parameters({key: value[i] for key, value in each.items()})) for i, name in enumerate(names)
    )
    base = Input("base") if has_base(OF_WEIGHTS[method]) else None
    return pool.info.recipe(SliceRecipe(entry, method, inputs, shared, base) for entry in pool.info.slices)


def merged(pool: Pool, method: str, values: Mapping[str, tuple[Any, Any] | float] | None = None) -> torch.Tensor:
    return merge_slice(make_plan(recipe_of(pool, method, values), pool).by_slice[SLICE], pool)[BAD]


@pytest.fixture
def altered(llamas: Llamas, tmp_path: Path) -> Callable[..., Pool]:
    """Opens base, a and b with their `BAD` tensor changed in place."""

    def open_altered(dtype: str = "auto", **changes: Change) -> Pool:
        folders = {name: folder for name, folder in llamas().items() if name != "c"}
        for name, change in changes.items():
            shutil.copytree(folders[name], tmp_path / name)
            folders[name] = tmp_path / name
            tensors = load_file(tmp_path / name / "model.safetensors")
            change(tensors[BAD])
            save_file(tensors, tmp_path / name / "model.safetensors", {"format": "pt"})
        return open_pool({name: str(folder) for name, folder in folders.items()}, "base", dtype=dtype)

    return open_altered


def put(value: float) -> Change:
    def change(tensor: torch.Tensor) -> None:
        tensor[3, 5] = value

    return change


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_source_that_is_not_finite(value: float, altered: Callable[..., Pool]) -> None:
    pool = altered(b=put(value))
    for method in OF_WEIGHTS:
        if method in SURVIVES_INFINITY and value == value:
            assert torch.isfinite(merged(pool, method)).all()
            continue
        with pytest.raises(EvomergeError, match=rf"tensor '{BAD}': .*(NaN|infinite)") as caught:
            merged(pool, method, {"scale": 0.5})
        assert not re.search(r"\binput \d", str(caught.value))  # a name, which says where to look


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_base_that_is_not_finite(value: float, altered: Callable[..., Pool]) -> None:
    pool = altered(base=put(value))
    for method in filter(lambda name: has_base(OF_WEIGHTS[name]), OF_WEIGHTS):
        with pytest.raises(EvomergeError, match=rf"tensor '{BAD}': .*(NaN|infinite)"):
            merged(pool, method)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_copy_of_what_is_not_finite_is_refused(dtype: str, altered: Callable[..., Pool], tmp_path: Path) -> None:
    pool = altered(dtype, b=put(torch.nan if dtype == "float32" else 70_000.0))
    recipe = pool.info.linear({"b": 1.0})
    with pytest.raises(EvomergeError, match=rf"tensor '{BAD}': .*beyond the range of {dtype}"):
        merge_slice(make_plan(recipe, pool).by_slice[SLICE], pool)
    with pytest.raises(EvomergeError, match=BAD):
        write_model(recipe, pool, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_zero_tensors_everywhere_stay_zero(altered: Callable[..., Pool]) -> None:
    pool = altered(base=torch.Tensor.zero_, a=torch.Tensor.zero_, b=torch.Tensor.zero_)
    for method in OF_WEIGHTS:
        result = merged(pool, method)
        assert torch.equal(result, torch.zeros_like(result)), method


@pytest.mark.parametrize("zero", ["a", "b", "base"])
def test_one_zero_tensor(zero: str, altered: Callable[..., Pool]) -> None:
    pool = altered(**{zero: torch.Tensor.zero_})
    for method in OF_WEIGHTS:
        assert torch.isfinite(merged(pool, method)).all(), method


def test_models_that_are_the_base_give_the_base(altered: Callable[..., Pool]) -> None:
    own = torch.linspace(-1, 1, 48 * 32).view(48, 32)
    pool = altered(**dict.fromkeys(("base", "a", "b"), lambda tensor: tensor.copy_(own)))
    for method in OF_WEIGHTS:
        torch.testing.assert_close(merged(pool, method), own, rtol=1e-6, atol=1e-7, msg=method)


def test_opposite_models(altered: Callable[..., Pool]) -> None:
    own = torch.linspace(-1, 1, 48 * 32).view(48, 32)
    changes = {
        "base": torch.Tensor.zero_,
        "a": lambda tensor: tensor.copy_(own),
        "b": lambda tensor: tensor.copy_(own).neg_(),
    }
    pool = altered(**changes)
    for method in OF_WEIGHTS:
        assert torch.isfinite(merged(pool, method)).all(), method


def test_weights_that_sum_to_zero(altered: Callable[..., Pool]) -> None:
    pool = altered()
    refused: dict[str, str] = {}
    for method in OF_WEIGHTS:
        try:
            assert torch.isfinite(merged(pool, method, {"weight": (1.0, -1.0)})).all(), method
        except (InfeasibleError, RecipeError) as error:  # some take no negative weights
            refused[method] = str(error)
    assert {"linear", "nuslerp"} <= refused.keys()
    assert all("slice embed" in text for text in refused.values())
    with pytest.raises(InfeasibleError):
        merged(pool, "linear", {"weight": (0.0, 0.0)})


def test_densities_of_zero_leave_the_base(altered: Callable[..., Pool]) -> None:
    pool = altered()
    base = pool.read("base", BAD)
    for method, entry in OF_WEIGHTS.items():
        known = {p.name for p in entry.spec.parameters}
        if "density" not in known:
            continue
        for rescale_by in ("probability", "magnitude") if "rescale_by" in known else ("",):
            # The smallest density that masks know is half of 2**-31.
            for density in (0.0, 1e-12):
                values: dict[str, Any] = {"density": density, "epsilon": 0.0}
                if rescale_by:
                    values["rescale_by"] = rescale_by
                result = merged(pool, method, values)
                kept = int((result != base).sum())
                assert torch.isfinite(result).all(), method
                # Of 1536 elements one of each input at most; of `pcb` also others with the largest score.
                assert kept <= (8 if method == "pcb" else 2), (method, density, kept)


@pytest.mark.parametrize("method", sorted(OF_WEIGHTS))
def test_results_beyond_the_range_of_float16(method: str, altered: Callable[..., Pool]) -> None:
    large = dict.fromkeys(("a", "b"), put(6e4))
    pool = altered("float16", **large)
    values = {"weight": 3.0, "lambda": 3.0, "normalize": False, "scale": 3.0}
    grows = any(p.name in values and p.name != "normalize" for p in OF_WEIGHTS[method].spec.parameters)
    # Means, also of singular values, stay within their inputs whatever the weights; `pcb` clips a single large element.
    means = ("ema", "mwa", "karcher", "multislerp", "nuslerp", "pcb", "iso_c", "iso_cts", "doge")
    if not grows or method in means:
        assert torch.isfinite(merged(pool, method, values)).all()
    else:
        with pytest.raises(EvomergeError, match=rf"tensor '{BAD}': .*float16"):
            merged(pool, method, values)


@pytest.mark.parametrize("shape", [(1,), (), (1, 1), (0, 4)])
def test_tensors_of_one_element_and_of_none(shape: tuple[int, ...]) -> None:
    for method in OF_WEIGHTS.values():
        count = min(2, method.spec.max_inputs or 2)
        inputs = [torch.full(shape, value) for value in (1.5, -2.0)][:count]
        base = torch.full(shape, 0.5) if has_base(method) else None
        values = {
            "lambda_" if p.name == "lambda" else p.name: (p.default,) * count if p.per_input else p.default
            for p in method.spec.parameters
        }
        out = torch.full(shape, torch.nan)
        merge_tensor(method, inputs, base, values, range(count), out=out)
        assert torch.isfinite(out).all(), method.spec.name


def test_the_command_names_the_tensor_in_one_line(
    altered: Callable[..., Pool], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pool = altered(b=put(torch.nan))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(dump_recipe(recipe_of(pool, "ties", {"density": 0.5})))
    capsys.readouterr()
    assert main(["merge", str(recipe), str(tmp_path / "out")]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("evomerge: error: ")
    assert BAD in lines[0]
    assert [path for path in tmp_path.iterdir() if "out" in path.name] == []
