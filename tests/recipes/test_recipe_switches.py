from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from evomerge.errors import RecipeError
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.slices import Input, ModelRef, SliceId, SliceRecipe, parameters
from evomerge.recipes.switches import shared_recipe, switch_of, task_recipe, with_dtype, with_switch
from evomerge.recipes.yaml_reader import dump_recipe, load_recipe

NAMES = ("base", "math", "code")
SLICES = (SliceId("embed"), SliceId("attn", 0), SliceId("mlp", 0), SliceId("norm", 0))


def plain(names: tuple[str, ...] = NAMES, **changes: Any) -> Recipe:
    models = tuple((name, ModelRef(f"org/{name}", "1a2b")) for name in names)
    inputs = tuple(Input(name, None, parameters({"weight": 0.5})) for name in names[1:])
    slices = tuple(SliceRecipe(slice_, "task_arithmetic", inputs, (), Input(names[0])) for slice_ in SLICES)
    return replace(Recipe(models, slices, "bfloat16", names[0]), **changes)


def switched(method: str = "tall_switch") -> Recipe:
    return with_switch(plain(), method, {"math": {"selectivity": 0.3}, "code": {}}, "base", (SLICES[0],))


def test_one_task_is_chosen_by_leaving_the_others_out() -> None:
    recipe = switched()
    own = task_recipe(recipe, "math")
    assert [(entry.method, [source.model for source in entry.inputs]) for entry in own.slices] == [
        ("passthrough", ["shared"]),
        *[("tall_switch", ["shared", "math"])] * 3,
    ]
    assert dict(own.slices[1].inputs[1].parameters) == {"selectivity": 0.3}
    assert shared_recipe(recipe) == shared_recipe(own) == plain()
    switch = switch_of(recipe)
    assert switch is not None
    assert (switch.shared, switch.tasks) == ("shared", ("math", "code"))
    assert switch_of(plain()) is None
    assert task_recipe(own, "math") == own
    assert load_recipe(dump_recipe(own)) == own


def test_tasks_are_different_recipes_over_the_same_shared_one() -> None:
    recipe = switched()
    hashes = {each.hash for each in (recipe, task_recipe(recipe, "math"), task_recipe(recipe, "code"), plain())}
    assert len(hashes) == 4


def test_a_dtype_is_that_of_the_shared_model_too() -> None:
    recipe = with_dtype(switched(), "float32")
    assert (recipe.dtype, shared_recipe(recipe).dtype) == ("float32", "float32")
    assert with_dtype(plain(), "float16").dtype == "float16"


def test_the_shared_model_gets_a_name_that_is_free() -> None:
    recipe = with_switch(plain(("base", "shared", "shared-0")), "twin_switch", {"shared": {}, "shared-0": {}}, "base")
    switch = switch_of(recipe)
    assert switch is not None
    assert (switch.shared, switch.tasks) == ("shared-1", ("shared", "shared-0"))
    assert {entry.base for entry in recipe.slices} == {None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "tal_switch"}, "the switch is 'tal_switch'.*tall_switch"),
        ({"base": None}, "tall_switch takes differences from a base, and the recipe has none"),
        ({"tasks": {"maths": {}}}, "has a task 'maths'.*math"),
        ({"tasks": {}}, "switch has no tasks"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"method": "tall_switch", "tasks": {"math": {}, "code": {}}, "base": "base", **changes}
    with pytest.raises(RecipeError, match=message):
        switch_of(with_switch(plain(), **given))


def test_unknown_tasks_and_recipes_without_a_switch_are_named() -> None:
    with pytest.raises(RecipeError, match=r"the recipe has no task 'maths'.*math"):
        task_recipe(switched(), "maths")
    for wanted in (lambda: task_recipe(plain(), "math"), lambda: shared_recipe(plain())):
        with pytest.raises(RecipeError, match=r"has no switch.*: it is one model for all tasks"):
            wanted()
    with pytest.raises(RecipeError, match="the shared model has a switch"):
        with_switch(switched(), "twin_switch", {"math": {}}, None)


def test_layers_stay_in_their_places() -> None:
    first, *rest = plain().slices
    moved = replace(rest[0], inputs=(Input("math", 3), *rest[0].inputs[1:]))
    scaled = replace(rest[0], scale=0.5)
    for entry in (moved, scaled):
        with pytest.raises(RecipeError, match="made of another layer, or is scaled"):
            with_switch(plain(slices=(first, entry, *rest[1:])), "twin_switch", {"math": {}}, None)


def test_slices_of_different_switches_are_refused() -> None:
    recipe = switched()
    odd = replace(recipe.slices[1], inputs=recipe.slices[1].inputs[:2])
    with pytest.raises(
        RecipeError,
        match=r"switch of slice .* takes shared, math(, code)?, that of another slice shared, math(, code)?; every",
    ):
        switch_of(replace(recipe, slices=(recipe.slices[0], *recipe.slices[2:], odd)))
    direct = replace(recipe.slices[1], inputs=(Input("math"), Input("code")))
    with pytest.raises(
        RecipeError, match="first input of a switch is 'math', which is no intermediate of the recipe; it has none"
    ):
        switch_of(replace(plain(), slices=(plain().slices[0], direct)))
