"""Depth of recipes, and names of tensors whatever their layer."""

from __future__ import annotations

from collections.abc import Mapping

from evomerge.models.architecture.layout import Layout
from evomerge.recipes.recipe import Recipe


def depth_of(recipe: Recipe) -> int:
    """How many layers the result of a recipe has."""
    return 1 + max((e.slice.layer for e in recipe.slices if e.slice.layer is not None), default=-1)


def template(layout: Layout, name: str) -> str:
    """The name of one of the layout's tensors with ``*`` for the number of its layer, where it has one."""
    own = layout.slice_of(name).layer
    if own is None:
        return name
    other = layout.at_layer(name, own + 1).split(".")
    return ".".join(mine if mine == theirs else "*" for mine, theirs in zip(name.split("."), other, strict=True))


def module_names(layout: Layout) -> Mapping[str, str]:
    """For tensors that transformers holds under another name than the checkpoint: `template` -> that name's.

    mergekit goes by one or the other, as its table of the architecture does.
    """
    names = {}
    for slice_, tensors in layout.tensors.items():
        for name in tensors:
            parts = layout.parameters[name].split(".")
            if slice_.layer is not None:
                parts[parts.index(str(slice_.layer))] = "*"
            if layout.parameters[name] != name:
                names[template(layout, name)] = ".".join(parts)
    return names
