"""Recipes on disk: YAML that people can read and write, and that gives back the very same recipe.

    evomerge_recipe: 1
    dtype: bfloat16
    config_from: base
    seed: 0
    models:
      base: {location: pool/base, fingerprint: 'sha256:...'}
      math: {location: org/math, revision: 1a2b...}
      code: {location: pool/base, fingerprint: 'sha256:...', adapter: {location: org/lora, revision: 3c4d...}}
    intermediates:
      both: {slices: [...]}
    slices:
    - slices: [embed, layers.0-5.attn+mlp]
      method: task_arithmetic
      base: base
      parameters: {lambda: 1.0, normalize: false}
      inputs:
      - {model: math, parameters: {weight: 0.5}}

Slices with identical entries share one: a recipe keeps model order. A parameter may have a value by tensor: ``weight:
[{filter: q_proj, value: 0.3}, {value: 0.5}]``, the first filter that is part of the tensor's name deciding.

In no slice are tensors of a model's own task (``heads: {tensors: [classifier.weight], tasks: [math, code]}``).

Intermediates are recipes of their own, which slices and later intermediates name as they name models. What they leave
out of `dtype`, `config_from`, `seed`, `heads`, `kept` and `models` (a list of names) is as in the recipe.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from evomerge.errors import RecipeError, nearest
from evomerge.recipes.calibration import KINDS, CalibrationRef
from evomerge.recipes.dense import read_dense
from evomerge.recipes.heads import read_heads
from evomerge.recipes.kept import read_kept
from evomerge.recipes.method_spec import ByTensor, Scalar, Value
from evomerge.recipes.network import read_network
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.slices import (
    DTYPES,
    EVERY_LAYER_COMPONENT,
    Input,
    ModelRef,
    Parameters,
    SliceId,
    SliceRecipe,
    parameters,
)
from evomerge.recipes.tokenizer_spec import read_tokenizer
from evomerge.recipes.yaml_writer import VERSION, RecipeDumper, recipe_content
from evomerge.utils import safe_yaml

MAX_SLICES = 100_000

_KEY = re.compile(r"sha256:[0-9a-f]{64}")
_LAYERS = re.compile(r"layers\.(\d{1,6})(?:-(\d{1,6}))?\.([a-z]+(?:\+[a-z]+)*)")


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as YAML, which was read back and found to be the same, floats to the last bit.

    Raises:
        RecipeError: YAML cannot carry it: a name that is not text, a slice without inputs.
    """
    content = recipe_content(recipe)
    problem = ""
    for unicode in (True, False):  # readable first; some line breaks only survive as escapes
        try:
            body = yaml.dump(content, Dumper=RecipeDumper, sort_keys=False, allow_unicode=unicode, width=110)
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

    >>> recipe = load_recipe('''
    ... evomerge_recipe: 1
    ... dtype: bfloat16
    ... config_from: math
    ... models:
    ...   math: {location: org/math, revision: 1a2b}
    ...   code: {location: org/code, revision: 3c4d}
    ... slices:
    ... - slices: [embed, layers.0-3.attn+mlp+norm, final_norm, head]
    ...   method: slerp
    ...   parameters: {t: 0.3}
    ...   inputs: [{model: math}, {model: code}]
    ... ''')
    >>> len(recipe.slices), recipe.slices[1].method, load_recipe(dump_recipe(recipe)) == recipe
    (15, 'slerp', True)
    """
    try:
        return _recipe_in(safe_yaml.parse(text))
    except RecipeError as error:
        raise RecipeError(f"{source}: {error.given}", error.allowed, error.do) from None


def read_recipe_file(path: Path, source: str = "") -> Recipe:
    """`load_recipe` of a file; `RecipeError` too where the file cannot be read."""
    return load_recipe(safe_yaml.read_text(path), source or str(path))


def _recipe_in(content: Any) -> Recipe:
    if isinstance(content, dict) and "evomerge_recipe" not in content:
        raise RecipeError("evomerge_recipe is missing", f"a recipe says `evomerge_recipe: {VERSION}`")
    top = safe_yaml.mapping(
        content,
        "",
        ("evomerge_recipe", "dtype", "config_from", "models", "slices"),
        ("seed", "tokenizer_from", "tokenizer", "intermediates", "calibration", "heads", "kept", "dense", "network"),
    )
    version = top["evomerge_recipe"]
    if version != VERSION or isinstance(version, bool):
        raise RecipeError(
            f"evomerge_recipe is {version!r}",
            f"this evomerge reads version {VERSION}",
            "update evomerge for later ones",
        )
    models = top["models"]
    if not isinstance(models, dict) or not models:
        raise RecipeError(f"models is {safe_yaml.shown(models)}", "a mapping of names to models")
    refs = {safe_yaml.text(name, "a name in models"): _model_in(ref, f"models.{name}") for name, ref in models.items()}
    stages: dict[str, Recipe] = {}
    calibration = _calibration_in(top["calibration"], refs) if top.get("calibration") is not None else None
    tokenizer = None if top.get("tokenizer") is None else read_tokenizer(top["tokenizer"], "tokenizer")
    dense, network = read_dense(top.get("dense"), "dense"), read_network(top.get("network"), "network")
    shared = {"calibration": calibration, "tokenizer": tokenizer, "dense": dense, "network": network}
    top = {**top, **shared}
    common = {key: top.get(key) for key in ("dtype", "config_from", "heads", "kept")} | {"seed": top.get("seed", 0)}
    common["models"] = [*refs]
    intermediates = top.get("intermediates") or {}
    if not isinstance(intermediates, dict):
        raise RecipeError(f"intermediates is {safe_yaml.shown(intermediates)}", "a mapping of names to recipes")
    room = MAX_SLICES
    for key, value in intermediates.items():
        name = safe_yaml.text(key, "a name in intermediates")
        if name in refs:
            raise RecipeError(f"intermediates.{name} has the name of a model", "every name once")
        where = f"intermediates.{name}"
        own = safe_yaml.mapping(value, where, ("slices",), ("tokenizer_from", *common))
        stages[name] = _one_in({**common, **own, **shared}, f"{where}.", refs, stages, room)
        room -= len(stages[name].slices)
    recipe = _one_in({**top, "models": [*refs]}, "", refs, stages, room)
    idle = sorted(stages.keys() - recipe.stages.keys())
    if idle:
        raise RecipeError(f"intermediates.{idle[0]} is not used", "intermediates that a slice takes", "remove it")
    return recipe


def _one_in(
    fields: dict[str, Any], dot: str, refs: Mapping[str, ModelRef], stages: Mapping[str, Recipe], room: int
) -> Recipe:
    """The recipe, or one of its intermediates, from all its fields; `dot` leads their names in messages."""
    dtype = safe_yaml.text(fields["dtype"], f"{dot}dtype")
    if dtype not in DTYPES:
        raise RecipeError(f"{dot}dtype is {dtype!r}", nearest(dtype, DTYPES))
    models = [safe_yaml.text(name, f"{dot}models") for name in safe_yaml.items(fields["models"], f"{dot}models")]
    for name in models:
        if name not in refs:
            raise RecipeError(f"{dot}models has {name!r}", nearest(name, refs))
    slices = _slices_in(fields["slices"], f"{dot}slices", room)
    used = {source.model for s in slices for source in (*s.inputs, *([s.base] if s.base else []))}
    tokenizer = fields.get("tokenizer_from")
    try:
        return Recipe(
            models=tuple((name, refs[name]) for name in models),
            slices=tuple(slices),
            dtype=dtype,
            config_from=safe_yaml.text(fields["config_from"], f"{dot}config_from"),
            seed=safe_yaml.integer(fields.get("seed", 0), f"{dot}seed"),
            intermediates=tuple((name, stages[name]) for name in sorted(used) if name in stages),
            tokenizer_from=None if tokenizer is None else safe_yaml.text(tokenizer, f"{dot}tokenizer_from"),
            calibration=fields["calibration"],
            tokenizer=fields["tokenizer"],
            heads=read_heads(fields.get("heads"), f"{dot}heads"),
            kept=read_kept(fields.get("kept"), f"{dot}kept"),
            dense=fields["dense"],
            network=fields["network"],
        )
    except RecipeError as error:
        if not dot:
            raise
        raise RecipeError(f"{dot[:-1]}: {error.given}", error.allowed, error.do) from None


def _calibration_in(content: Any, refs: Mapping[str, ModelRef]) -> CalibrationRef:
    fields = safe_yaml.mapping(content, "calibration", ("statistics",), ("made_by",))
    found = []
    if not isinstance(fields["statistics"], dict) or not fields["statistics"]:
        raise RecipeError("calibration.statistics is no mapping", "names of models, each with its statistics by kind")
    for model, own in fields["statistics"].items():
        if model not in refs:
            raise RecipeError(f"calibration.statistics has {model!r}", nearest(str(model), refs))
        where = f"calibration.statistics.{model}"
        for kind, key in safe_yaml.mapping(own, where, (), KINDS).items():
            text = safe_yaml.text(key, f"{where}.{kind}")
            if not _KEY.fullmatch(text):
                raise RecipeError(f"{where}.{kind} is {text[:80]!r}", "sha256: and 64 digits of it")
            found.append((model, kind, text))
    words = [safe_yaml.text(word, "calibration.made_by") for word in safe_yaml.items(fields.get("made_by") or [], "")]
    return CalibrationRef(tuple(found), tuple(words))


def _model_in(content: Any, where: str) -> ModelRef:
    fields = dict(safe_yaml.mapping(content, where, ("location",), ("revision", "fingerprint", "adapter")))
    adapter = fields.pop("adapter", None)
    if isinstance(adapter, dict) and "adapter" in adapter:
        raise RecipeError(f"{where}.adapter has an adapter", "one adapter on a model", "fold the others first")
    return ModelRef(
        **{key: safe_yaml.text(value, f"{where}.{key}") for key, value in fields.items()},
        adapter=None if adapter is None else _model_in(adapter, f"{where}.adapter"),
    )


def _slices_in(content: Any, key: str, most: int) -> list[SliceRecipe]:
    found: list[SliceRecipe] = []
    for index, value in enumerate(safe_yaml.items(content, key)):
        where = f"{key}[{index}]"
        fields = safe_yaml.mapping(value, where, ("slices", "method", "inputs"), ("base", "parameters", "scale"))
        words = fields["slices"]
        slices: list[SliceId] = []
        for word in [words] if isinstance(words, str) else safe_yaml.items(words, f"{where}.slices"):
            room = most - len(found) - len(slices)
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
        if component not in EVERY_LAYER_COMPONENT:
            raise RecipeError(f"{where}: {word!r} names {component!r}", nearest(component, EVERY_LAYER_COMPONENT))
    if last < first:
        raise RecipeError(f"{where}: {word!r} counts down", f"layers.{last}-{first}.{match[3]}")
    if (last - first + 1) * len(components) > room:
        raise RecipeError(f"{where}: {word!r} is too much", f"a recipe has at most {MAX_SLICES:,} slices")
    # The pattern and the loop above leave layer components only.
    return [SliceId(component, layer) for layer in range(first, last + 1) for component in components]  # type: ignore[arg-type]
