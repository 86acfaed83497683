"""What a model card says of a switch, of heads of their own and of what is kept."""

from __future__ import annotations

from collections.abc import Sequence

from evomerge.errors import RecipeError
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.switches import SWITCHES, switch_of

_HOW = {
    "emr_switch": "a mask of signs and a factor for every tensor ([EMR-Merging](https://arxiv.org/abs/2405.17461))",
    "tall_switch": "a mask of what the task needs ([TALL masks](https://arxiv.org/abs/2405.07813))",
    "twin_switch": "a difference of low rank ([Twin-Merging](https://arxiv.org/abs/2406.15479))",
}


def switch_sections(recipe: Recipe) -> list[str]:
    """The sections on the switch of a recipe; none where it has none."""
    try:
        switch = switch_of(recipe)
    except RecipeError:  # of slices that differ, whose recipe says all there is to say
        return []
    if switch is None:
        return []
    how = " and ".join(_HOW[name] for name in SWITCHES if any(entry.method == name for entry in recipe.slices))
    if len(switch.tasks) > 1:
        text = (
            f"This is the shared model of the tasks {', '.join(switch.tasks)}. Each has a model of its own, by {how}: "
            "`evomerge merge --task NAME` writes one, `--all-tasks` what all of them differ by."
        )
    else:
        text = f"This is the model of one task, {switch.tasks[0]}, out of a shared model by {how}."
    return ["## Switch", text]


def folder_sections(tasks: Sequence[str], method: str, masked: str | None) -> list[str]:
    """The sections on a folder that holds a shared model and the tasks' own parts.

    Args:
        tasks: their names.
        method: of the switch.
        masked: name of the base that masks need; ``None`` where none is needed.
    """
    base = "" if masked is None else f" The base, {masked}, must be where the recipe in `switches` says."
    text = (
        f"This is the shared model of the tasks {', '.join(tasks)}; `switches` holds {_HOW[method]} for each of them."
        f"{base} `evomerge merge FOLDER OUT --task NAME` writes one task's model, `evomerge.load_task(FOLDER, NAME)` "
        "loads it."
    )
    return ["## Switch", text]


def head_sections(recipe: Recipe) -> list[str]:
    """Whose head it is, where tasks have heads of their own; or what is kept of one model."""
    whose = recipe.config_from
    if recipe.kept:
        names = ", ".join(f"`{name}`" for name in recipe.kept[:8])
        return ["## Kept", f"Those of {whose} as they were: {names}."]
    if recipe.heads is None:
        return []
    others = [task for task in recipe.heads.tasks if task != whose]
    more = f" The same encoder serves {', '.join(others)} with theirs: `evomerge merge --task NAME`." if others else ""
    names = ", ".join(f"`{name}`" for name in recipe.heads.tensors[:8])
    return ["## Head", f"The head ({names}) is that of {whose} as it was; the encoder is merged.{more}"]
