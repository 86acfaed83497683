"""What mergekit's own planner makes of a file, and that it is what a recipe says."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from mergekit.architecture import get_architecture_info
from mergekit.config import MergeConfiguration
from mergekit.merge import _model_out_config
from mergekit.options import MergeOptions
from mergekit.plan import MergePlanner

from evomerge.merge.methods import specs
from evomerge.mergekit.forms import FORMS
from evomerge.models.architecture.layout import Layout
from evomerge.recipes.method_spec import ByTensor
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.slices import Input, SliceRecipe

Meaning = dict[str, tuple[Any, ...]]


def mergekit_reads(text: str) -> Meaning:
    """What mergekit will compute: tensor -> method, base, settings, and (model, tensor, settings) of each input."""
    config = MergeConfiguration.model_validate(yaml.safe_load(text))
    options = MergeOptions()
    architecture = get_architecture_info(config, options)
    planner = MergePlanner(config, architecture, options, _model_out_config(config, architecture))
    planner._plan()
    meaning: Meaning = {}
    for weight, task in planner._tensors:
        names = task.gather_tensors.weight_info
        inputs = tuple((str(m), names[m].name, dict(task.input_parameters[m].items())) for m in task.model_order)
        base = str(task.base_model) if task.base_model else None
        meaning[weight.name] = (task.method_name, base, dict(task.parameters.items()), inputs)
    return meaning


def assert_reads_as(recipe: Recipe, layout: Layout, text: str) -> None:
    """The recipe that we read from a file is what mergekit plans: tensors, inputs in order, values to the last bit."""
    places = {name: ref.location for name, ref in recipe.models}
    read = mergekit_reads(text)
    assert set(read) == {name for entry in recipe.slices for name in layout.of_slice(entry.slice)}
    for entry in recipe.slices:
        form = FORMS[entry.method]
        for name in layout.of_slice(entry.slice):
            method, base, settings, inputs = read[name]
            assert method == entry.method
            for key in form.shared:
                assert_equal(at(entry.parameters, key, name), settings[key], f"{key} of {name}")
            sources = [i for i in inputs if i[0] != base or form.base == "ignored"]
            if form.base == "first":
                sources = [*(i for i in inputs if i[0] == base), *sources]
            assert [places[i.model] for i in entry.inputs] == [path for path, _, _ in sources], name
            for own, (_, tensor, given) in zip(entry.inputs, sources, strict=True):
                assert at_layer(name, entry, own) == tensor
                for key in form.per_input:
                    wanted = 1.0 if key == "scale" and given[key] is None else given[key]
                    assert_equal(at(own.parameters, key, name), wanted, f"{key} of {name}")
            if entry.base is not None:
                assert (places[entry.base.model], form.base in ("required", "optional")) == (base, True)
                origin = next(tensor for path, tensor, _ in inputs if path == base)
                assert at_layer(name, entry, entry.base) == origin
            else:
                assert form.base in ("ignored", "first") or base is None
            assert {name for name, _ in entry.parameters} == {
                p.name for p in specs()[method].parameters if not p.per_input
            }


def assert_equal(mine: Any, theirs: Any, what: str) -> None:
    assert (type(mine), mine) == (type(theirs), theirs), what


def at(values: Any, key: str, tensor: str) -> Any:
    """A parameter's value for one tensor."""
    value = dict(values)[key]
    return value.at(tensor) if isinstance(value, ByTensor) else value


def at_layer(name: str, entry: SliceRecipe, source: Input) -> str:
    """The Llama tensor that an input gives."""
    if entry.slice.layer is None or source.layer is None:
        return name
    return name.replace(f"layers.{entry.slice.layer}.", f"layers.{source.layer}.")


def filled(text: str, folders: Mapping[str, Path]) -> str:
    """A mergekit file with the folders of models in place of BASE, A, B and C."""
    for name, folder in folders.items():
        text = re.sub(rf"(model|source): {name.upper()}(?=[\n,}}])", rf"\1: {folder}", text)
    return text
