"""A shared model and the tasks' parts, written and read back."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from evomerge.errors import OutputError, PoolError, RecipeError
from evomerge.export.switch_parts import declared_part, packed, part_files, unpacked
from evomerge.export.switch_reader import load_task, open_task, write_task
from evomerge.export.switch_writer import write_all_tasks
from evomerge.export.writer import write_model
from evomerge.merge.execution.engine import merge_slice
from evomerge.merge.methods import specs
from evomerge.merge.methods.low_rank import Factors
from evomerge.merge.methods.switches import TensorSwitch
from evomerge.merge.planning.plan import make_plan
from evomerge.merge.resident.model import Resident
from evomerge.models.opening import open_pool, pool_of_recipe
from evomerge.models.pool import Pool
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.switches import shared_recipe, switch_of, task_recipe
from evomerge.recipes.yaml_reader import dump_recipe, load_recipe
from search_spaces.switched import SwitchedSpace

Llamas = Callable[..., dict[str, Path]]

CASES: dict[str, dict[str, Any]] = {
    "emr": {"switch": "emr_switch", "method": "emr"},
    "tall": {"switch": "tall_switch", "method": "task_arithmetic"},
    "twin": {"switch": "twin_switch", "method": "ties", "switch_parameters": {"rank": 0.2}},
    "no rank": {"switch": "twin_switch", "switch_parameters": {"rank": 0.0}},
    "no factor": {"switch": "emr_switch", "switch_parameters": {"rescale": False}},
}


def opened(llamas: Llamas, **kind: Any) -> Pool:
    return open_pool({name: str(folder) for name, folder in llamas(**kind).items()}, "base")


def recipe_of(pool: Pool, seed: int = 0, **options: Any) -> Recipe:
    space = SwitchedSpace(pool.info, specs(), **options)
    low, high = space.spec.bounds
    draw = torch.rand(len(low), generator=torch.Generator().manual_seed(seed), dtype=torch.float64).numpy()
    return space.decode(space.spec.genome(list(low + draw * (high - low))))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.mark.parametrize(
    ("case", "kind"),
    [
        ("emr", {"tied": True, "layers": 1}),
        ("tall", {"dtype": torch.bfloat16, "layers": 2}),
        ("twin", {"dtype": torch.bfloat16, "layers": 2}),
        ("no rank", {"layers": 1}),
        ("no factor", {"layers": 1}),
    ],
    ids=str,
)
def test_a_folder_gives_the_bits_of_each_task_back(llamas: Llamas, tmp_path: Path, case: str, kind: Any) -> None:
    pool = opened(llamas, **kind)
    recipe = recipe_of(pool, **CASES[case])
    sizes = write_all_tasks(recipe, pool, tmp_path / "all", max_shard_bytes=20_000)
    write_model(shared_recipe(recipe), pool, tmp_path / "shared")
    assert equal(weights(tmp_path / "all"), weights(tmp_path / "shared"))
    found = []
    for task in ("a", "c"):
        write_model(task_recipe(recipe, task), pool, tmp_path / task)
        write_task(tmp_path / "all", task, tmp_path / f"{task} again")
        assert equal(weights(tmp_path / task), weights(tmp_path / f"{task} again"))
        assert (tmp_path / f"{task} again" / "config.json").read_text() == (tmp_path / task / "config.json").read_text()
        assert sizes.parts[task] == (tmp_path / "all" / "switches" / f"{task}.safetensors").stat().st_size
        found.append(weights(tmp_path / task))
    differ = not equal(found[0], found[1])
    assert differ == (case != "no rank")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "a again")
    model = load_task(tmp_path / "all", "a")
    assert equal(dict(model.state_dict()), dict(again.state_dict()))
    assert len(model.tokenizer) == 48


def test_masks_take_a_bit_for_an_element(llamas: Llamas, tmp_path: Path) -> None:
    pool = opened(llamas, layers=1)
    sizes = write_all_tasks(recipe_of(pool, **CASES["tall"]), pool, tmp_path / "all")
    count = sum(tensor.numel() for tensor in weights(tmp_path / "all").values())
    file = tmp_path / "all" / "switches" / "a.safetensors"
    with safe_open(file, "pt") as opened_file:
        bits = sum(opened_file.get_tensor(name).nbytes for name in opened_file.keys())  # noqa: SIM118 - no mapping
        assert opened_file.metadata() == {
            "format": "pt",
            "evomerge_switch": "1",
            "task": "a",
            "method": "tall_switch",
        }
    assert bits == count // 8  # all tensors have a multiple of eight
    assert sizes.shared > 30 * bits


@pytest.mark.parametrize("case", ["emr", "tall", "twin"])
def test_the_resident_model_is_what_is_written(llamas: Llamas, tmp_path: Path, case: str) -> None:
    pool = opened(llamas, dtype=torch.bfloat16, layers=2)
    recipe = recipe_of(pool, **CASES[case])
    resident = Resident(pool)
    for task in ("b", "a"):
        resident.apply(make_plan(task_recipe(recipe, task), pool))
        own = {name: p.detach().clone() for name, p in resident.model.module.named_parameters()}
        write_model(task_recipe(recipe, task), pool, tmp_path / task)
        assert equal(own, weights(tmp_path / task))


def test_the_other_tasks_slices_are_computed_and_the_shared_ones_kept(llamas: Llamas) -> None:
    pool = opened(llamas, layers=2)
    recipe = recipe_of(pool, **CASES["tall"])
    resident = Resident(pool)
    stages = resident._stages
    merged: list[str] = []
    inner = stages._merge

    def watched(entry: Any, made: Any) -> Any:
        merged.append(str(entry.slice))
        return inner(entry, made)

    stages._merge = watched  # type: ignore[method-assign]
    first = resident.apply(make_plan(task_recipe(recipe, "a"), pool))
    assert first.computed == len(merged) == len(recipe.slices)
    second = resident.apply(make_plan(task_recipe(recipe, "b"), pool))
    assert (second.computed, len(merged)) == (len(recipe.slices), len(recipe.slices))
    third = resident.apply(make_plan(task_recipe(recipe, "a"), pool))
    assert (third.computed, third.memory) == (0, len(recipe.slices))


def test_slices_that_are_equal_have_no_part(llamas: Llamas, tmp_path: Path) -> None:
    folders = dict(llamas(layers=1))
    for name in ("a", "b"):
        copy = shutil.copytree(folders[name], tmp_path / name)
        tensors = load_file(copy / "model.safetensors")
        tensors |= {
            k: v for k, v in load_file(folders["base"] / "model.safetensors").items() if "embed" in k or "mlp" in k
        }
        from safetensors.torch import save_file

        save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
        folders[name] = copy
    pool = open_pool({name: str(folders[name]) for name in ("base", "a", "b")}, "base")
    recipe = recipe_of(pool, **CASES["emr"])
    assert {str(e.slice) for e in recipe.slices if e.method == "passthrough"} == {"embed", "layers.0.mlp"}
    write_all_tasks(recipe, pool, tmp_path / "all")
    with safe_open(tmp_path / "all" / "switches" / "b.safetensors", "pt") as file:
        assert not any("embed" in name or "mlp" in name for name in file.keys())  # noqa: SIM118 - no mapping
    write_task(tmp_path / "all", "b", tmp_path / "again")
    write_model(task_recipe(recipe, "b"), pool, tmp_path / "direct")
    assert equal(weights(tmp_path / "again"), weights(tmp_path / "direct"))


def test_twin_needs_no_base_and_masks_do(llamas: Llamas, tmp_path: Path) -> None:
    pool = opened(llamas, layers=1)
    for case in ("twin", "tall"):
        recipe = recipe_of(pool, **CASES[case])
        write_all_tasks(recipe, pool, tmp_path / case)
        file = tmp_path / case / "switches" / "evomerge_recipe.yaml"
        file.write_text(file.read_text().replace(str(llamas(layers=1)["base"]), "gone"))
    write_task(tmp_path / "twin", "a", tmp_path / "a")
    with pytest.raises(PoolError, match="gone"):
        write_task(tmp_path / "tall", "a", tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_mistakes_are_named(llamas: Llamas, tmp_path: Path) -> None:
    pool = opened(llamas, layers=1)
    recipe = recipe_of(pool, **CASES["emr"])
    with pytest.raises(RecipeError, match="the recipe has no task 'd'"):
        task_recipe(recipe, "d")
    with pytest.raises(RecipeError, match="has no switch: it is one model"):
        write_all_tasks(shared_recipe(recipe), pool, tmp_path / "none")
    write_all_tasks(recipe, pool, tmp_path / "all")
    with pytest.raises(OutputError, match="is not empty"):
        write_all_tasks(recipe, pool, tmp_path / "all")
    with pytest.raises(RecipeError, match=r"all has no task 'aa'.*did you mean 'a'|all has no task 'aa'"):
        open_task(tmp_path / "all", "aa")
    with pytest.raises(RecipeError, match="holds no tasks"):
        open_task(llamas(layers=1)["a"], "a")
    part = tmp_path / "all" / "switches" / "a.safetensors"
    shutil.copy(tmp_path / "all" / "switches" / "b.safetensors", part)
    with pytest.raises(PoolError, match="no part of task 'a'"):
        open_task(tmp_path / "all", "a")
    part.write_bytes(part.read_bytes()[:1000])
    with pytest.raises(PoolError, match="cannot be read"):
        open_task(tmp_path / "all", "a")
    part.unlink()
    with pytest.raises(PoolError, match="is missing"):
        open_task(tmp_path / "all", "a")


def test_cards_say_what_the_model_is(llamas: Llamas, tmp_path: Path) -> None:
    pool = opened(llamas, layers=1)
    recipe = recipe_of(pool, **CASES["emr"])
    write_all_tasks(recipe, pool, tmp_path / "all")
    card = (tmp_path / "all" / "README.md").read_text()
    assert "shared model of the tasks a, b, c; `switches` holds a mask of signs" in card
    assert "The base, base, must be where" in card
    write_task(tmp_path / "all", "c", tmp_path / "c")
    assert "This is the model of one task, c, out of a shared model" in (tmp_path / "c" / "README.md").read_text()
    write_model(recipe, pool, tmp_path / "plain")
    assert "`evomerge merge --task NAME` writes one" in (tmp_path / "plain" / "README.md").read_text()
    assert equal(weights(tmp_path / "plain"), weights(tmp_path / "all"))
    assert load_recipe((tmp_path / "c" / "evomerge_recipe.yaml").read_text()) == task_recipe(recipe, "c")


def test_a_recipe_with_a_switch_survives_yaml(llamas: Llamas) -> None:
    pool = opened(llamas, layers=1)
    for options in (CASES["emr"], CASES["tall"], CASES["twin"]):
        recipe = recipe_of(pool, **options)
        again = load_recipe(dump_recipe(recipe))
        assert again == recipe
        assert switch_of(again) == switch_of(recipe)
        own = task_recipe(again, "b")
        assert len({recipe.hash, own.hash, task_recipe(again, "a").hash, shared_recipe(recipe).hash}) == 4
        plan = make_plan(own, pool_of_recipe(own))
        assert merge_slice(plan.slices[0], pool)


@pytest.mark.parametrize("shape", [(3, 3), (5,), (), (2, 0)], ids=str)
def test_packed_parts_are_as_declared_and_unpacked(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(1)
    mask = torch.rand(shape, generator=generator) < 0.5
    for factor in (None, 1.25):
        tensors = packed("x", TensorSwitch(mask, factor), torch.float32)
        method, values = ("tall_switch", {"selectivity": (0.4, 0.4)})
        if factor is not None:
            method, values = "emr_switch", {"rescale": (True, True)}
        declared = declared_part("x", method, values, shape, torch.float32)
        assert {d.name: (d.dtype, d.shape) for d in declared} == {
            name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()
        }
        found = unpacked("x", tensors, shape)
        assert found.mask is not None
        assert torch.equal(found.mask, mask)
        assert found.factor == factor
    assert unpacked("y", {}, shape) == TensorSwitch()
    factors = Factors(torch.ones(3, 1), torch.ones(1, 3))
    assert unpacked("x", packed("x", TensorSwitch(low_rank=factors), torch.float32), (3, 3)).low_rank == factors


def test_bits_are_in_order_the_first_the_highest() -> None:
    mask = torch.tensor([[True, False, False], [True, True, False], [False, False, True]])
    assert packed("x", TensorSwitch(mask), torch.float32)["x|mask"].tolist() == [0b10011000, 0b10000000]


def test_file_names_are_the_tasks_where_these_are_names() -> None:
    assert part_files(["math", "Math", "a/b", "..", "v1.2"]) == {
        "math": "math.safetensors",
        "Math": "-1.safetensors",
        "a/b": "-2.safetensors",
        "..": "-3.safetensors",
        "v1.2": "v1.2.safetensors",
    }
