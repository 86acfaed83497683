"""What the stock `mergekit-yaml` command writes from our file is what `write_model` writes."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from mergekit_run import assert_close, run_mergekit
from safetensors.torch import load_file
from transformers import AutoConfig

from evomerge.export.writer import write_model
from evomerge.merge.methods import specs
from evomerge.mergekit.forms import FORMS
from evomerge.mergekit.writer import to_mergekit
from evomerge.models.opening import open_pool
from evomerge.models.pool import Pool
from evomerge.recipes.method_spec import Scalar
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.slices import Input, SliceId, SliceRecipe, parameters

pytestmark = pytest.mark.slow

Llamas = Callable[..., dict[str, Path]]
Merged = tuple[Recipe, Pool, Path]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def random_recipe(pool: Pool, method: str, rng: random.Random) -> Recipe:
    """Other parameters for every slice, some inputs without weight, some slices plain copies."""
    spec = specs()[method]
    names = ("base", "a") if method == "slerp" else ("a", "b", "c")

    def entry(slice_: SliceId) -> SliceRecipe:
        copied = rng.choice(names)
        if rng.random() < 0.1:
            return SliceRecipe(slice_, "linear", (Input(copied, None, (("weight", 1.0),)),))

        def value(name: str, kind: str) -> Scalar:
            if kind == "boolean":
                return name != "rescale" and rng.random() < 0.5
            if name == "density" and method.startswith("dare"):
                return 1.0
            return rng.uniform(0.0 if name == "t" else 0.2, 1.0)

        def draw(*, per_input: bool) -> Mapping[str, Scalar]:
            own = {p.name: value(p.name, p.kind) for p in spec.parameters if p.per_input == per_input}
            return {**own, **({} if per_input else FORMS[method].readings)}

        inputs = tuple(Input(name, None, parameters(draw(per_input=True))) for name in names)
        base = Input("base") if spec.base == "required" else None
        return SliceRecipe(slice_, method, inputs, parameters(draw(per_input=False)), base)

    return pool.info.recipe(entry(slice_) for slice_ in pool.layout.slices)


def ulps(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Distance in units of the last place of two bfloat16 tensors: how many representable numbers lie between."""

    def ordered(tensor: torch.Tensor) -> torch.Tensor:
        bits = tensor.view(torch.int16).to(torch.int32)
        return torch.where(bits < 0, -(bits & 0x7FFF), bits)

    return (ordered(a) - ordered(b)).abs()


def chosen_freely(recipe: Recipe, pool: Pool, name: str) -> torch.Tensor:
    """Elements that TIES may keep or drop: their task vector has just the magnitude at which trimming stops.

    mergekit keeps those of them that an unstable sort puts first; differences of bfloat16 numbers are often equal.
    """
    base = pool.read("base", name).float()
    free = torch.zeros(base.shape, dtype=torch.bool)
    entry = next(e for e in recipe.slices if e.slice == pool.layout.slice_of(name))
    for source in entry.inputs if entry.method == "ties" else ():
        size = (pool.read(source.model, name).float() - base).abs()
        keep = max(1, int(float(dict(source.parameters)["density"]) * size.numel()))
        free |= size == size.flatten().sort(descending=True).values[keep - 1]
    return free


CASES = [(method, dtype) for method in ("linear", "slerp", "task_arithmetic", "ties") for dtype in DTYPES]
CASES += [("dare_linear", "float32"), ("dare_ties", "float32")]  # at density 1: below it their masks are random


@pytest.fixture(scope="module")
def merged(llamas: Llamas, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Merged]:
    """By case, the recipe, the pool, and a folder with the models that both programs made: `ours` and `theirs`."""
    done, runs = {}, {}
    for method, dtype in CASES:
        # Twelve layers once: "layers.1" is part of "layers.11".
        layers = 12 if (method, dtype) == ("ties", "bfloat16") else 3
        folders = llamas(layers=layers, dtype=DTYPES[dtype], tied=method == "linear")
        pool = open_pool({name: str(folder) for name, folder in folders.items()}, "base")
        recipe = random_recipe(pool, method, random.Random(f"{method} {dtype}"))
        folder = tmp_path_factory.mktemp(f"{method}-{dtype}")
        done[method, dtype] = recipe, pool, folder
        write_model(recipe, pool, folder / "ours")
        (folder / "mergekit.yaml").write_text(to_mergekit(recipe, pool.layout))
        runs[folder / "mergekit.yaml"] = folder / "theirs"
    run_mergekit(runs)
    return done


@pytest.mark.parametrize(("method", "dtype"), CASES)
def test_mergekit_writes_our_tensors(merged: dict[tuple[str, str], Merged], method: str, dtype: str) -> None:
    recipe, pool, folder = merged[method, dtype]
    ours, theirs = (load_file(folder / which / "model.safetensors") for which in ("ours", "theirs"))
    assert set(ours) == set(theirs)
    differing = free_elements = elements = 0
    for name, mine in ours.items():
        other = theirs[name]
        assert mine.dtype == other.dtype == DTYPES[dtype], name
        assert mine.shape == other.shape, name
        if dtype == "float32":
            assert_close(mine, other, name)
            continue
        free = chosen_freely(recipe, pool, name)
        distance = torch.where(free, 0, ulps(mine, other))
        assert int(distance.max()) <= 1, name
        differing += int((distance > 0).sum())
        free_elements += int(free.sum())
        elements += distance.numel()
    assert differing < 0.001 * elements or dtype == "float32"
    assert free_elements < 0.02 * elements or dtype == "float32"


@pytest.mark.parametrize(("method", "dtype"), CASES)
def test_mergekit_takes_the_same_configuration(merged: dict[tuple[str, str], Merged], method: str, dtype: str) -> None:
    _, _, folder = merged[method, dtype]
    configs = [AutoConfig.from_pretrained(folder / which).to_dict() for which in ("ours", "theirs")]
    for config in configs:
        del config["_name_or_path"]  # where it was read from
    assert configs[0] == configs[1]
    assert (folder / "ours" / "tokenizer.json").read_bytes() == (folder / "theirs" / "tokenizer.json").read_bytes()
