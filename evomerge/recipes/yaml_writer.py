"""A recipe as the plain values of its YAML, and how those are laid out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import yaml

from evomerge.recipes.calibration import CalibrationRef
from evomerge.recipes.heads import Heads
from evomerge.recipes.method_spec import ByTensor, Value
from evomerge.recipes.network import network_content
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.slices import Component, Input, ModelRef, Parameters, SliceId, SliceRecipe
from evomerge.utils import safe_yaml

VERSION = 1


def recipe_content(recipe: Recipe) -> dict[str, Any]:
    """What the file of a recipe holds; slices with identical entries share one."""
    content: dict[str, Any] = {"evomerge_recipe": VERSION, "dtype": recipe.dtype, "config_from": recipe.config_from}
    if recipe.tokenizer_from is not None:
        content["tokenizer_from"] = recipe.tokenizer_from
    if recipe.tokenizer is not None:
        content["tokenizer"] = recipe.tokenizer.content()
    content["seed"] = recipe.seed
    if recipe.calibration is not None:
        content["calibration"] = _calibration_out(recipe.calibration)
    content["models"] = {name: _model_out(ref) for name, ref in recipe.models}
    if recipe.heads is not None:
        content["heads"] = _heads_out(recipe.heads)
    if recipe.kept:
        content["kept"] = _FlowList(recipe.kept)
    if recipe.dense is not None:
        content["dense"] = recipe.dense
    if recipe.network is not None:
        content["network"] = network_content(recipe.network)
    if recipe.intermediates:
        content["intermediates"] = {name: _stage_out(stage, recipe) for name, stage in recipe.stages.items()}
    content["slices"] = _slices_out(recipe)
    return content


class _Flow(dict[str, Any]):
    """A mapping written on one line."""


class _FlowList(list[str]):
    """A list written on one line."""


class RecipeDumper(yaml.SafeDumper):
    """Small mappings and lists on one line, nothing as an alias."""

    def ignore_aliases(self, data: Any) -> bool:
        """Never."""
        return True


safe_yaml.read_exponents(RecipeDumper)
RecipeDumper.add_representer(
    _Flow, lambda dumper, data: dumper.represent_mapping("tag:yaml.org,2002:map", data, flow_style=True)
)
RecipeDumper.add_representer(
    _FlowList, lambda dumper, data: dumper.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=True)
)


def _model_out(ref: ModelRef) -> _Flow:
    fields: dict[str, Any] = {"location": ref.location, "revision": ref.revision, "fingerprint": ref.fingerprint}
    fields["adapter"] = None if ref.adapter is None else _model_out(ref.adapter)
    return _Flow({key: value for key, value in fields.items() if value is not None})


def _calibration_out(ref: CalibrationRef) -> dict[str, Any]:
    statistics: dict[str, _Flow] = {}
    for model, kind, key in ref.statistics:
        statistics.setdefault(model, _Flow())[kind] = key
    return {"made_by": list(ref.made_by), "statistics": statistics}


def _heads_out(heads: Heads) -> dict[str, Any]:
    return {"tensors": _FlowList(heads.tensors), "tasks": _FlowList(heads.tasks)}


def _parameters_out(values: Parameters) -> _Flow:
    return _Flow({name: _value_out(value) for name, value in values})


def _value_out(value: Value) -> Any:
    if isinstance(value, ByTensor):
        return [
            _Flow(({} if part is None else {"filter": part}) | {"value": _value_out(scalar)})
            for part, scalar in value.entries
        ]
    return float(value) if isinstance(value, float) else value  # numpy's floats are floats


def _input_out(entry: Input) -> _Flow:
    shown = _Flow(model=entry.model)
    if entry.layer is not None:
        shown["layer"] = entry.layer
    if entry.parameters:
        shown["parameters"] = _parameters_out(entry.parameters)
    return shown


def _stage_out(stage: Recipe, recipe: Recipe) -> dict[str, Any]:
    """An intermediate: where it differs from the recipe, and its slices."""
    shown: dict[str, Any] = {}
    if stage.dtype != recipe.dtype:
        shown["dtype"] = stage.dtype
    if stage.config_from != recipe.config_from:
        shown["config_from"] = stage.config_from
    if stage.tokenizer_from is not None:
        shown["tokenizer_from"] = stage.tokenizer_from
    if stage.seed != recipe.seed:
        shown["seed"] = stage.seed
    if stage.heads != recipe.heads:
        shown["heads"] = None if stage.heads is None else _heads_out(stage.heads)
    if stage.kept != recipe.kept:
        shown["kept"] = _FlowList(stage.kept) if stage.kept else None
    if stage.models != recipe.models:
        shown["models"] = _FlowList(name for name, _ in stage.models)
    return {**shown, "slices": _slices_out(stage)}


def _slices_out(recipe: Recipe) -> list[dict[str, Any]]:
    """Slices with identical entries together."""
    grouped: dict[str, list[SliceRecipe]] = {}
    for entry in recipe.slices:
        # repr tells 1, 1.0 and True apart, which == does not.
        key = repr((entry.method, entry.inputs, entry.parameters, entry.base, entry.scale))
        grouped.setdefault(key, []).append(entry)
    return [_entry_out(entries) for entries in grouped.values()]


def _entry_out(entries: Sequence[SliceRecipe]) -> dict[str, Any]:
    entry = entries[0]
    shown: dict[str, Any] = {"slices": _FlowList(_compress(e.slice for e in entries)), "method": entry.method}
    if entry.base is not None:
        base = _input_out(entry.base)
        shown["base"] = base if len(base) > 1 else entry.base.model
    if entry.scale is not None:
        shown["scale"] = float(entry.scale)
    if entry.parameters:
        shown["parameters"] = _parameters_out(entry.parameters)
    shown["inputs"] = [_input_out(source) for source in entry.inputs]
    return shown


def _compress(slices: Iterable[SliceId]) -> list[str]:
    """Slices in model order as few words: ``embed``, ``layers.0-5.attn+mlp``, ``head``."""
    layers: dict[int, list[Component]] = {}
    before: list[str] = []
    after: list[str] = []
    for item in slices:
        if item.layer is not None:
            layers.setdefault(item.layer, []).append(item.component)
        else:
            (after if layers or item.order[0] else before).append(str(item))
    runs: list[tuple[int, int, str]] = []
    for layer, components in layers.items():
        joined = "+".join(components)
        if runs and runs[-1][1] == layer - 1 and runs[-1][2] == joined:
            runs[-1] = (runs[-1][0], layer, joined)
        else:
            runs.append((layer, layer, joined))
    words = [f"layers.{first}{'' if first == last else f'-{last}'}.{joined}" for first, last, joined in runs]
    return before + words + after
