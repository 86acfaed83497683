"""Recipes on disk: YAML that people can read and write, and that gives back the very same recipe.

    evomerge_recipe: 1
    dtype: bfloat16
    config_from: base
    seed: 0
    models:
      base: {location: pool/base, fingerprint: 'sha256:...'}
      math: {location: org/math, revision: 1a2b...}
    slices:
    - slices: [embed, layers.0-5.attn+mlp]
      method: task_arithmetic
      base: base
      parameters: {lambda: 1.0, normalize: false}
      inputs:
      - {model: math, parameters: {weight: 0.5}}

Slices with identical entries share one, whatever their order in the file: a recipe keeps model order. A parameter
may have a value by tensor: ``weight: [{filter: q_proj, value: 0.3}, {value: 0.5}]``, the first filter that is part of
the tensor's name deciding.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import yaml

from evomerge import safe_yaml
from evomerge.errors import RecipeError, nearest
from evomerge.method import ByTensor, Scalar, Value
from evomerge.recipe import (
    DTYPES,
    LAYER_COMPONENTS,
    Component,
    Input,
    ModelRef,
    Parameters,
    Recipe,
    SliceId,
    SliceRecipe,
    parameters,
)

VERSION = 1
MAX_SLICES = 100_000

_LAYERS = re.compile(r"layers\.(\d{1,6})(?:-(\d{1,6}))?\.([a-z]+(?:\+[a-z]+)*)")


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as YAML, which was read back and found to be the same, floats to the last bit.

    Raises:
        RecipeError: YAML cannot carry it: a name that is not text, a slice without inputs.
    """
    grouped: dict[str, list[SliceRecipe]] = {}
    for entry in recipe.slices:
        # repr tells 1, 1.0 and True apart, which == does not.
        key = repr((entry.method, entry.inputs, entry.parameters, entry.base, entry.scale))
        grouped.setdefault(key, []).append(entry)
    content = {
        "evomerge_recipe": VERSION,
        "dtype": recipe.dtype,
        "config_from": recipe.config_from,
        "seed": recipe.seed,
        "models": {name: _model_out(ref) for name, ref in recipe.models},
        "slices": [_entry_out(entries) for entries in grouped.values()],
    }
    problem = ""
    for unicode in (True, False):  # readable first; some line breaks only survive as escapes
        try:
            body = yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=unicode, width=110)
            if _recipe_in(safe_yaml.parse(body)) == recipe:
                return f"# evomerge recipe, sha256 {recipe.hash}\n{body}"
        except (yaml.YAMLError, UnicodeError, RecipeError) as error:
            problem = " ".join(str(error).split())
    raise RecipeError("the recipe cannot be written as YAML", "names of printable text", problem)


def load_recipe(text: str, source: str = "recipe") -> Recipe:
    """Read what `dump_recipe` wrote, or a recipe written by hand.

    Methods and their parameters are not known here; `Recipe.check` looks at those.

    Args:
        text: YAML.
        source: the file's name, for messages.

    Raises:
        RecipeError: the text is not such a recipe; names the key.
    """
    try:
        return _recipe_in(safe_yaml.parse(text))
    except RecipeError as error:
        raise RecipeError(f"{source}: {error.given}", error.allowed, error.do) from None


# Writing


class _Flow(dict[str, Any]):
    """A mapping written on one line."""


class _FlowList(list[str]):
    """A list written on one line."""


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


safe_yaml.read_exponents(_Dumper)
_Dumper.add_representer(
    _Flow, lambda dumper, data: dumper.represent_mapping("tag:yaml.org,2002:map", data, flow_style=True)
)
_Dumper.add_representer(
    _FlowList, lambda dumper, data: dumper.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=True)
)


def _model_out(ref: ModelRef) -> _Flow:
    fields = {"location": ref.location, "revision": ref.revision, "fingerprint": ref.fingerprint}
    return _Flow({key: value for key, value in fields.items() if value is not None})


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
            (after if layers or item.component != "embed" else before).append(str(item))
    runs: list[tuple[int, int, str]] = []
    for layer, components in layers.items():
        joined = "+".join(components)
        if runs and runs[-1][1] == layer - 1 and runs[-1][2] == joined:
            runs[-1] = (runs[-1][0], layer, joined)
        else:
            runs.append((layer, layer, joined))
    words = [f"layers.{first}{'' if first == last else f'-{last}'}.{joined}" for first, last, joined in runs]
    return before + words + after


# Reading


def _recipe_in(content: Any) -> Recipe:
    if isinstance(content, dict) and "evomerge_recipe" not in content:
        raise RecipeError("evomerge_recipe is missing", f"a recipe says `evomerge_recipe: {VERSION}`")
    top = safe_yaml.mapping(content, "", ("evomerge_recipe", "dtype", "config_from", "models", "slices"), ("seed",))
    version = top["evomerge_recipe"]
    if version != VERSION or isinstance(version, bool):
        raise RecipeError(
            f"evomerge_recipe is {version!r}",
            f"this evomerge reads version {VERSION}",
            "update evomerge for later ones",
        )
    dtype = safe_yaml.text(top["dtype"], "dtype")
    if dtype not in DTYPES:
        raise RecipeError(f"dtype is {dtype!r}", nearest(dtype, DTYPES))
    models = top["models"]
    if not isinstance(models, dict) or not models:
        raise RecipeError(f"models is {safe_yaml.shown(models)}", "a mapping of names to models")
    return Recipe(
        models=tuple(
            (safe_yaml.text(name, "a name in models"), _model_in(ref, f"models.{name}")) for name, ref in models.items()
        ),
        slices=tuple(_slices_in(top["slices"])),
        dtype=dtype,
        config_from=safe_yaml.text(top["config_from"], "config_from"),
        seed=safe_yaml.integer(top.get("seed", 0), "seed"),
    )


def _model_in(content: Any, where: str) -> ModelRef:
    fields = safe_yaml.mapping(content, where, ("location",), ("revision", "fingerprint"))
    return ModelRef(**{key: safe_yaml.text(value, f"{where}.{key}") for key, value in fields.items()})


def _slices_in(content: Any) -> list[SliceRecipe]:
    found: list[SliceRecipe] = []
    for index, value in enumerate(safe_yaml.items(content, "slices")):
        where = f"slices[{index}]"
        fields = safe_yaml.mapping(value, where, ("slices", "method", "inputs"), ("base", "parameters", "scale"))
        words = fields["slices"]
        slices: list[SliceId] = []
        for word in [words] if isinstance(words, str) else safe_yaml.items(words, f"{where}.slices"):
            room = MAX_SLICES - len(found) - len(slices)
            slices += _expand(safe_yaml.text(word, f"{where}.slices"), f"{where}.slices", room)
        method = safe_yaml.text(fields["method"], f"{where}.method")
        inputs = tuple(
            _input_in(entry, f"{where}.inputs[{i}]")
            for i, entry in enumerate(safe_yaml.items(fields["inputs"], f"{where}.inputs"))
        )
        values = _parameters_in(fields.get("parameters", {}), f"{where}.parameters")
        base = safe_yaml.optional(fields, "base", where, _input_in)
        scale = safe_yaml.optional(fields, "scale", where, safe_yaml.number)
        found += [SliceRecipe(item, method, inputs, values, base, scale) for item in slices]
    return found


def _input_in(content: Any, where: str) -> Input:
    if isinstance(content, str):
        return Input(content)
    fields = safe_yaml.mapping(content, where, ("model",), ("layer", "parameters"))
    layer = safe_yaml.optional(fields, "layer", where, safe_yaml.integer)
    if layer is not None and layer < 0:
        raise RecipeError(f"{where}.layer is {layer}", "layers are counted from 0")
    return Input(
        safe_yaml.text(fields["model"], f"{where}.model"),
        layer,
        _parameters_in(fields.get("parameters", {}), f"{where}.parameters"),
    )


def _parameters_in(content: Any, where: str) -> Parameters:
    if not isinstance(content, dict):
        raise RecipeError(f"{where} is {safe_yaml.shown(content)}", "a mapping of parameter names to values")
    values: dict[str, Value] = {}
    for name, value in content.items():
        key = f"{where}.{safe_yaml.text(name, f'a name in {where}')}"
        values[name] = _by_tensor_in(value, key) if isinstance(value, list) else _scalar_in(value, key)
    return parameters(values)


def _scalar_in(content: Any, where: str) -> Scalar:
    return content if isinstance(content, (bool, str)) else safe_yaml.number(content, where)


def _by_tensor_in(content: Any, where: str) -> ByTensor:
    """A list of values with filters, as mergekit writes them."""
    entries: list[tuple[str | None, Scalar]] = []
    for index, item in enumerate(safe_yaml.items(content, where)):
        own = f"{where}[{index}]"
        fields = safe_yaml.mapping(item, own, ("value",), ("filter",))
        part = safe_yaml.optional(fields, "filter", own, safe_yaml.text)
        entries.append((part, _scalar_in(fields["value"], f"{own}.value")))
    try:
        return ByTensor(tuple(entries))
    except RecipeError as error:
        raise RecipeError(f"{where}: {error.given}", error.allowed) from None


def _expand(word: str, where: str, room: int) -> list[SliceId]:
    """The slices that a word such as ``layers.0-5.attn+mlp`` stands for; at most `room` of them."""
    match = _LAYERS.fullmatch(word)
    if match is None:
        try:
            return [SliceId.parse(word)]
        except RecipeError as error:
            do = "layers and components can be joined: layers.0-5.attn+mlp"
            raise RecipeError(f"{where}: {error.given}", error.allowed, do) from None
    first, last = int(match[1]), int(match[2] or match[1])
    components = match[3].split("+")
    for component in components:
        if component not in LAYER_COMPONENTS:
            raise RecipeError(f"{where}: {word!r} names {component!r}", nearest(component, LAYER_COMPONENTS))
    if last < first:
        raise RecipeError(f"{where}: {word!r} counts down", f"layers.{last}-{first}.{match[3]}")
    if (last - first + 1) * len(components) > room:
        raise RecipeError(f"{where}: {word!r} is too much", f"a recipe has at most {MAX_SLICES:,} slices")
    # The pattern and the loop above leave layer components only.
    return [SliceId(component, layer) for layer in range(first, last + 1) for component in components]  # type: ignore[arg-type]
