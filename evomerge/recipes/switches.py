"""Recipes with a switch: one shared model, and for each task what of it is the task's.

Such a recipe has the shared model as an intermediate, and slices of a switch method that take it and the tasks' models:
`emr_switch`, `tall_switch` and `twin_switch` of `merge.methods.switches`. As it is, it is the shared model; with one
task's model left beside the shared one it is that task's.

    intermediates:
      shared: {slices: [...]}
    slices:
    - slices: [embed, layers.0-5.attn+mlp+norm, final_norm, head]
      method: tall_switch
      base: base
      inputs: [shared, {model: math, parameters: {selectivity: 0.3}}, code]
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from evomerge.errors import RecipeError, nearest
from evomerge.recipes.method_spec import Value
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.slices import Dtype, Input, SliceId, SliceRecipe, parameters

SWITCHES = ("emr_switch", "tall_switch", "twin_switch")
"""The methods of a task's model."""

MASKS = ("emr_switch", "tall_switch")
"""Of them those that need the base."""


@dataclass(frozen=True)
class Switch:
    """What a recipe with a switch is made of.

    Attributes:
        shared: the name of the intermediate that all tasks share.
        tasks: names of the tasks' models, in order.
    """

    shared: str
    tasks: tuple[str, ...]


def switch_of(recipe: Recipe) -> Switch | None:
    """The switch of a recipe, ``None`` where it has none.

    Raises:
        RecipeError: slices do not have the same shared model and tasks, or the shared model is no intermediate.
    """
    found: tuple[str, ...] | None = None
    for entry in recipe.slices:
        if entry.method not in SWITCHES:
            continue
        names = tuple(source.model for source in entry.inputs)
        if found is not None and names != found:
            raise RecipeError(
                f"the switch of slice {entry.slice} takes {', '.join(names)}, that of another slice {', '.join(found)}",
                "every slice takes the same shared model and the same tasks",
            )
        found = names
    if found is None:
        return None
    shared, *tasks = found
    if shared not in dict(recipe.intermediates):
        known = ", ".join(name for name, _ in recipe.intermediates)
        raise RecipeError(
            f"the first input of a switch is {shared!r}, which is no intermediate of the recipe",
            f"its intermediates are {known}" if known else "it has none",
            "the first input is the shared model: describe it under `intermediates`, or give the merge --switch METHOD",
        )
    if not tasks or len(set(tasks)) < len(tasks):
        given = f"has the tasks {', '.join(tasks)}" if tasks else "has no tasks"
        raise RecipeError(f"the recipe's switch {given}", "after the shared model come one or more models, each once")
    return Switch(shared, tuple(tasks))


def require_switch(recipe: Recipe) -> Switch:
    """The switch of a recipe; `RecipeError` where it has none."""
    found = switch_of(recipe)
    if found is None:
        raise RecipeError(
            "the recipe has no switch: it is one model for all tasks",
            "recipes of search_space=switch have one",
            f"--switch METHOD gives it one: {', '.join(SWITCHES)}",
        )
    return found


def tasks_of(recipe: Recipe) -> tuple[str, ...]:
    """Names of the tasks that a recipe has a model for each of: by heads of their own, a switch, or both.

    None where it is one model.

    Raises:
        RecipeError: a malformed switch, or one over other tasks than there are heads.
    """
    switch, heads = switch_of(recipe), recipe.heads
    if switch is None:
        return () if heads is None else heads.tasks
    if heads is not None and set(heads.tasks) != set(switch.tasks):
        raise RecipeError(
            f"a switch is over the tasks {', '.join(switch.tasks)}, heads are of {', '.join(heads.tasks)}", "the same"
        )
    return switch.tasks


def require_tasks(recipe: Recipe) -> tuple[str, ...]:
    """`tasks_of` a recipe; `RecipeError` where it is one model for all tasks."""
    tasks = tasks_of(recipe)
    if not tasks:
        raise RecipeError(
            "the recipe has no switch and no heads of their own: it is one model for all tasks",
            "a recipe of search_space=switch, or of a pool with pool.heads",
            f"--switch METHOD gives it a switch: {', '.join(SWITCHES)}",
        )
    return tasks


def task_recipe(recipe: Recipe, task: str) -> Recipe:
    """One task's model, of a recipe with a switch or with heads of their own: its switch is on, its head in place.

    Raises:
        RecipeError: the recipe is one model for all tasks, or has no such task.
    """
    tasks = require_tasks(recipe)
    if task not in tasks:
        raise RecipeError(f"the recipe has no task {task!r}", nearest(task, tasks))
    if recipe.heads is not None:
        recipe = replace(recipe, config_from=task, heads=replace(recipe.heads, tasks=(task,)))
    if switch_of(recipe) is None:
        return recipe
    chosen: dict[int, tuple[Input, ...]] = {}  # slices of a group share their inputs

    def of_task(inputs: tuple[Input, ...]) -> tuple[Input, ...]:
        if id(inputs) not in chosen:
            chosen[id(inputs)] = (inputs[0], next(source for source in inputs[1:] if source.model == task))
        return chosen[id(inputs)]

    return replace(
        recipe,
        slices=tuple(
            replace(entry, inputs=of_task(entry.inputs)) if entry.method in SWITCHES else entry
            for entry in recipe.slices
        ),
    )


def shared_recipe(recipe: Recipe) -> Recipe:
    """The shared model, of a recipe with a switch; `RecipeError` where it has none."""
    return dict(recipe.intermediates)[require_switch(recipe).shared]


def merged_recipe(recipe: Recipe) -> Recipe:
    """The shared model of a recipe with a switch; one without is itself."""
    return recipe if switch_of(recipe) is None else shared_recipe(recipe)


def with_dtype(recipe: Recipe, dtype: Dtype) -> Recipe:
    """A recipe in another dtype; of one with a switch the shared model too, which is written in it."""
    switch = switch_of(recipe)
    inner = recipe.intermediates
    if switch is not None:
        inner = tuple((n, replace(stage, dtype=dtype) if n == switch.shared else stage) for n, stage in inner)
    return replace(recipe, dtype=dtype, intermediates=inner)


def with_switch(
    recipe: Recipe,
    method: str,
    tasks: Mapping[str, Mapping[str, Value]],
    base: str | None,
    copied: Collection[SliceId] = (),
) -> Recipe:
    """A recipe with a switch, of the recipe of its shared model.

    Args:
        recipe: of the shared model, with the layers of the models in their places.
        method: one of `SWITCHES`.
        tasks: the tasks' models, with the method's parameters of each.
        base: of masks; not used by `twin_switch`.
        copied: slices that are the shared model's for every task.

    Raises:
        RecipeError: an unknown method or model, no base for masks, a path, or a recipe that has a switch.
    """
    if method not in SWITCHES:
        raise RecipeError(f"the switch is {method!r}", nearest(method, SWITCHES))
    if method in MASKS and base is None:
        raise RecipeError(
            f"{method} takes differences from a base, and the recipe has none",
            "it needs the model that the tasks' models were tuned from",
            "name it as pool.base (or `base:` in the recipe), or take twin_switch, which needs none",
        )
    if switch_of(recipe) is not None:
        raise RecipeError("the shared model has a switch already", "a recipe has one", "leave --switch out")
    names = {name for name, _ in recipe.models}
    for name in (*tasks, *([base] if base is not None else [])):
        if name not in names:
            raise RecipeError(f"the switch has a task {name!r}", nearest(name, names))
    for entry in recipe.slices:
        if entry.scale not in (None, 1) or any(
            source.layer not in (None, entry.slice.layer) for source in entry.inputs
        ):
            raise RecipeError(
                f"slice {entry.slice} of the shared model is made of another layer, or is scaled",
                "a task's own part is of the same layer, so that layers must stay in their places",
                "recipes of paths through layers have no switch: choose another",
            )
    taken = names | recipe.stages.keys()
    shared = next(name for name in ("shared", *(f"shared-{i}" for i in range(len(taken) + 1))) if name not in taken)
    inputs = (Input(shared), *(Input(name, None, parameters(values)) for name, values in tasks.items()))
    under = Input(base) if base is not None and method in MASKS else None
    alone = (Input(shared),)
    return replace(
        recipe,
        slices=tuple(
            SliceRecipe(entry.slice, "passthrough", alone)
            if entry.slice in copied
            else SliceRecipe(entry.slice, method, inputs, (), under)
            for entry in recipe.slices
        ),
        intermediates=((shared, recipe),),
        seed=0,
    )
