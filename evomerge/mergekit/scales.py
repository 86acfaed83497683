"""Scaled residual outputs in mergekit's terms: copies with a factor by tensor."""

from __future__ import annotations

from dataclasses import replace

from evomerge.mergekit.slice_values import copied_model, refuse
from evomerge.models.architecture.layout import Layout
from evomerge.recipes.method_spec import ByTensor, Value
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.slices import Input, SliceId, SliceRecipe, parameters


def without_scales(recipe: Recipe, layout: Layout) -> Recipe:
    """A recipe of the same model, with factors on the tensors that scales mean (`scale` of passthrough).

    Intermediates stay as they are.

    Raises:
        RecipeError: mergekit cannot scale a slice so; names it and the reason.
    """
    scales = {e.slice: float(e.scale) for e in recipe.slices if e.scale is not None and e.scale != 1}
    if not scales:
        return recipe
    return replace(recipe, slices=tuple(_plain(entry, scales, layout) for entry in recipe.slices))


def as_sums(recipe: Recipe) -> Recipe:
    """Its copies as sums of one model with a weight: what mergekit wants of a layer of copies from several models."""
    return replace(recipe, slices=tuple(_sum(entry) for entry in recipe.slices))


def _plain(entry: SliceRecipe, scales: dict[SliceId, float], layout: Layout) -> SliceRecipe:
    if layout.residual is None or layout.residual.unscalable:
        return entry  # refused by whoever reads its scale
    known = entry.slice if entry.slice in layout.tensors else SliceId(entry.slice.component, 0)
    factors: dict[str, float] = {}
    for name, like in zip(layout.of_slice(entry.slice), layout.tensors[known], strict=True):
        rule = layout.residual.rule(layout.parameters[like])
        if rule is None:
            continue
        owner = SliceId(rule.component, None if rule.component == "final_norm" else entry.slice.layer)
        if owner in scales:
            factors[name] = scales[owner]
            if rule.offset:
                raise refuse(entry.slice, f"its {name} counts as 1 + w, and mergekit multiplies w alone")
    if not factors:
        return replace(entry, scale=None)
    model = copied_model(entry)
    if model is None:
        raise refuse(entry.slice, f"its residual outputs are scaled by {entry.scale}, and it is no copy of one model")
    names = sorted(factors, key=lambda name: -len(name))
    whole = len(factors) == len(layout.tensors[known]) and len(set(factors.values())) == 1
    value: Value = ByTensor((*((name, factors[name]) for name in names), (None, 1.0)))
    given = parameters({"scale": factors[names[0]] if whole else value})
    return SliceRecipe(entry.slice, "passthrough", (Input(model, entry.inputs[0].layer, given),))


def _sum(entry: SliceRecipe) -> SliceRecipe:
    model = copied_model(entry)
    if model is None and entry.method != "passthrough":
        return entry
    source = entry.inputs[0]
    weight = dict(source.parameters).get("scale", 1.0) if entry.method == "passthrough" else 1.0
    inputs = (Input(source.model, source.layer, parameters({"weight": weight})),)
    return SliceRecipe(entry.slice, "linear", inputs, parameters({"normalize": False}))
