from __future__ import annotations

import math
import time
from itertools import pairwise
from typing import Any

import pytest
from contracts.space_samples import pool
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.errors import RecipeError
from evomerge.recipes.method_spec import ByTensor
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.slices import (
    COMPONENTS,
    DTYPES,
    LAYER_COMPONENTS,
    Input,
    ModelRef,
    SliceId,
    SliceRecipe,
    parameters,
)
from evomerge.recipes.yaml_reader import dump_recipe, load_recipe

EXAMPLE = """\
evomerge_recipe: 1
dtype: bfloat16
config_from: base
seed: 7
models:
  base: {location: pool/base, fingerprint: 'sha256:b'}
  math: {location: org/math, revision: 1a2b}
slices:
- slices: [embed, layers.0-1.attn+mlp]
  method: task_arithmetic
  base: base
  parameters: {lambda: 1.0, normalize: false}
  inputs:
  - {model: math, parameters: {weight: 0.5}}
- slices: [layers.0.norm, head]
  method: passthrough
  scale: 0.25
  inputs:
  - {model: math, layer: 3}
"""

_TASK = (
    "task_arithmetic",
    (Input("math", None, (("weight", 0.5),)),),
    (("lambda", 1.0), ("normalize", False)),
    Input("base"),
)
_PASS = ("passthrough", (Input("math", 3),), (), None, 0.25)
EXPECTED = Recipe(
    models=(("base", ModelRef("pool/base", None, "sha256:b")), ("math", ModelRef("org/math", "1a2b"))),
    slices=(
        SliceRecipe(SliceId("embed"), *_TASK),
        SliceRecipe(SliceId("attn", 0), *_TASK),
        SliceRecipe(SliceId("mlp", 0), *_TASK),
        SliceRecipe(SliceId("norm", 0), *_PASS),
        SliceRecipe(SliceId("attn", 1), *_TASK),
        SliceRecipe(SliceId("mlp", 1), *_TASK),
        SliceRecipe(SliceId("head"), *_PASS),
    ),
    dtype="bfloat16",
    config_from="base",
    seed=7,
)


def test_the_example_is_written_and_read() -> None:
    assert load_recipe(EXAMPLE) == EXPECTED
    header, _, body = dump_recipe(EXPECTED).partition("\n")
    assert body == EXAMPLE
    assert header == f"# evomerge recipe, sha256 {EXPECTED.hash}"


names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
numbers = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**62), 2**62) | st.booleans()
by_tensor = st.builds(
    lambda entries, rest: ByTensor((*entries, (None, rest))),
    st.lists(st.tuples(names, numbers | names), max_size=3),
    numbers | names,
)
values = st.dictionaries(names, numbers | names | by_tensor, max_size=3).map(parameters)


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    text = st.none() | names
    adapters = st.one_of(st.none(), st.builds(ModelRef, names, text, text))
    models = draw(st.dictionaries(names, st.builds(ModelRef, names, text, text, adapters), min_size=1, max_size=3))
    inputs = st.builds(Input, st.sampled_from(list(models)), st.none() | st.integers(0, 99), values)
    entries = st.tuples(
        names,
        st.lists(inputs, min_size=1, max_size=3).map(tuple),
        values,
        st.none() | inputs,
        st.none() | st.floats(allow_nan=False, allow_infinity=False).filter(bool),
    )
    kinds = draw(st.lists(entries, min_size=1, max_size=3))
    ids = st.one_of(
        st.sampled_from([SliceId(c) for c in COMPONENTS if c not in LAYER_COMPONENTS]),
        st.builds(SliceId, st.sampled_from(LAYER_COMPONENTS), st.integers(0, 4) | st.integers(0, 999_999)),
    )
    slices = draw(st.lists(ids, min_size=1, max_size=12, unique=True))
    return Recipe(
        tuple(models.items()),
        tuple(SliceRecipe(slice_, *draw(st.sampled_from(kinds))) for slice_ in slices),
        draw(st.sampled_from(DTYPES)),
        draw(st.sampled_from(list(models))),
        draw(st.integers(0, 2**63 - 1)),
    )


@settings(max_examples=150, deadline=None)
@given(recipes())
def test_every_recipe_reads_back_the_same(recipe: Recipe) -> None:
    read = load_recipe(dump_recipe(recipe))
    assert read == recipe
    assert read.hash == recipe.hash
    assert repr(read) == repr(recipe)  # tells 1 from 1.0 and True, which == does not


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_damaged_files_are_refused_or_read_never_worse(data: st.DataObject) -> None:
    """Cut a piece out, or put one in: a recipe or a `RecipeError`, nothing else."""
    at = data.draw(st.integers(0, len(EXAMPLE)))
    end = data.draw(st.integers(at, min(at + 12, len(EXAMPLE))))
    extra = data.draw(
        st.sampled_from(["", " ", "\n", "- ", ": ", "[", "{", "'", "&a ", "*a", "!!int ", "null", "1e999", "\x00"])
    )
    try:
        load_recipe(EXAMPLE[:at] + extra + EXAMPLE[end:])
    except RecipeError as error:
        assert str(error).startswith("recipe: ")  # noqa: PT017
        assert "\n" not in str(error)  # noqa: PT017


@pytest.mark.parametrize("text", ["1234567e10", "12e3", "0x1f", "no", "null", "1.5", "2024-01-01", "~", "=", "1_000"])
def test_names_that_look_like_something_else(text: str) -> None:
    recipe = Recipe(
        ((text, ModelRef(text, text, text)),), (SliceRecipe(SliceId("embed"), text, (Input(text),)),), "float32", text
    )
    assert load_recipe(dump_recipe(recipe)) == recipe


@pytest.mark.parametrize(
    ("written", "value"), [("1e-5", 1e-5), ("1E+3", 1000.0), (".5", 0.5), ("-2.e1", -20.0), ("3", 3)]
)
def test_numbers_written_by_hand(written: str, value: float) -> None:
    recipe = load_recipe(EXAMPLE.replace("weight: 0.5", f"weight: {written}"))
    assert recipe.slices[0].inputs[0].parameters == (("weight", value),)


def test_a_file_written_by_hand_may_be_shorter() -> None:
    text = """
    evomerge_recipe: 1
    dtype: float32
    config_from: a
    models: {a: {location: models/a}}
    slices:
    - {slices: head, method: passthrough, inputs: [a]}
    - {slices: layers.0-1.attn, method: passthrough, inputs: [{model: a}], base: {model: a, layer: 1}, scale: 2}
    """
    recipe = load_recipe(text)
    assert [str(entry.slice) for entry in recipe.slices] == ["layers.0.attn", "layers.1.attn", "head"]
    assert recipe.slices[1] == SliceRecipe(SliceId("attn", 1), "passthrough", (Input("a"),), (), Input("a", 1), 2)
    assert recipe.seed == 0


def replaced(old: str, new: str) -> str:
    assert old in EXAMPLE, old
    return EXAMPLE.replace(old, new, 1)


MALFORMED = {
    "empty": ("", "recipe: the file is empty; a mapping with evomerge_recipe"),
    "a list": ("[1]", r"the file is \[1\]; a mapping"),
    "text": ("recipe", "the file is 'recipe'; a mapping"),
    "not yaml": ("a: b: c", "the file is not valid YAML"),
    "two documents": (EXAMPLE + "---\n" + EXAMPLE, "the file is not valid YAML"),
    "mergekit's": (
        "merge_method: linear\nmodels: []",
        "evomerge_recipe is missing; a recipe says",
    ),
    "a later version": (replaced("recipe: 1", "recipe: 2"), "evomerge_recipe is 2; this evomerge reads version 1"),
    "no dtype": (replaced("dtype: bfloat16\n", ""), "recipe: dtype is missing"),
    "dtype": (replaced("bfloat16", "bfloat61"), "dtype is 'bfloat61'; did you mean 'bfloat16'"),
    "unknown key": (replaced("seed: 7", "sede: 7"), "unknown key sede; did you mean 'seed'"),
    "unknown key in a slice": (
        replaced("method: p", "mehtod: p"),
        r"key slices\[1\]\.mehtod; did you mean 'method'",
    ),
    "unknown key in an input": (
        replaced("layer: 3", "lyer: 3"),
        r"\[1\]\.inputs\[0\]\.lyer; did you mean 'layer'",
    ),
    "twice": (replaced("seed: 7", "seed: 7\nseed: 8"), "'seed' on line 5 is given twice"),
    "adapter": (
        replaced("revision: 1a2b", "adapter: {locatoin: x}"),
        r"models\.math\.adapter\.locatoin; did you mean 'location'",
    ),
    "adapter as text": (replaced("revision: 1a2b", "adapter: x"), r"models\.math\.adapter is 'x'; a mapping"),
    "two adapters": (
        replaced("revision: 1a2b", "adapter: {location: x, adapter: {location: y}}"),
        r"models\.math\.adapter has an adapter; one adapter",
    ),
    "twice within": (replaced("weight: 0.5", "weight: 0.5, weight: 1"), "'weight' on line 14 is given twice"),
    "seed": (replaced("seed: 7", "seed: x"), "seed is 'x'; an integer"),
    "negative seed": (replaced("seed: 7", "seed: -1"), "seed is -1"),
    "huge seed": (replaced("seed: 7", f"seed: {10**30}"), "seed is 1000000000"),
    "models": (replaced("{location: org/math, revision: 1a2b}", "org/math"), r"models\.math is 'org/math'; a mapping"),
    "location": (replaced("pool/base", "12"), r"models\.base\.location is 12; text"),
    "model name": (replaced("  math:", "  12:"), "a name in models is 12; text; put it in quotes"),
    "no slices": (EXAMPLE[: EXAMPLE.index("slices:")] + "slices: []", r"recipe: slices is \[\]; a list of one or more"),
    "slice": (replaced("[embed,", "[embde,"), r"slices\[0\]\.slices: 'embde' is not a slice"),
    "component": (
        replaced("attn+mlp", "attn+mpl"),
        r"slices\[0\]\.slices: .* names 'mpl'; did you mean",
    ),
    "layers": (replaced("layers.0-1", "layers.1-0"), "counts down; layers.0-1.attn"),
    "slice twice": (replaced("layers.0.norm", "embed"), "slice embed is given twice"),
    "slice number": (replaced("head]", "3]"), r"slices\[1\]\.slices is 3; text"),
    "method": (replaced("method: passthrough", "method: 1"), r"slices\[1\]\.method is 1; text"),
    "inputs": (replaced("\n  - {model: math, layer: 3}", " math"), r"slices\[1\]\.inputs is 'math'; a list"),
    "unknown model": (
        replaced("{model: math, layer", "{model: mth, layer"),
        "uses model 'mth', which the recipe does not have; did you mean 'math'",
    ),
    "layer": (replaced("layer: 3", "layer: -3"), r"inputs\[0\]\.layer is -3; layers are counted from 0"),
    "half a layer": (replaced("layer: 3", "layer: 1.5"), r"inputs\[0\]\.layer is 1\.5; an integer"),
    "scale": (replaced("scale: 0.25", "scale: big"), r"slices\[1\]\.scale is 'big'; a finite number"),
    "parameters": (replaced("{weight: 0.5}", "[0.5]"), r"slices\[0\]\.inputs\[0\]\.parameters is \[0\.5\]; a mapping"),
    "nan": (replaced("0.5", ".nan"), r"inputs\[0\]\.parameters\.weight is nan; a finite number"),
    "infinite": (replaced("0.5", "1e999"), r"parameters\.weight is inf; a finite number"),
    "huge": (replaced("0.5", "1" + "0" * 400), r"parameters\.weight is 1000"),
    "too long": (replaced("0.5", "1" * 5000), "the file is not valid YAML: Exceeds the limit"),
    "by tensor": (replaced("0.5", "[0.5]"), r"parameters\.weight\[0\] is 0\.5; a mapping with value, filter"),
    "by no tensor": (replaced("0.5", "[]"), r"parameters\.weight is \[\]; a list of one or more"),
    "by some tensors": (
        replaced("0.5", "[{filter: q, value: 1}]"),
        r"inputs\[0\]\.parameters\.weight: the last value by tensor has a filter",
    ),
    "by tensor, typo": (replaced("0.5", "[{fliter: q, value: 1}]"), r"weight\[0\]\.fliter; did you mean 'filter'"),
    "null": (replaced("0.5", "null"), r"parameters\.weight is None; a finite number"),
    "python": (
        replaced("0.5", "!!python/object/apply:os.getcwd []"),
        "line 14 uses the tag tag:yaml.org,2002:python/obj",
    ),
    "alias": (
        replaced("base: base", "base: &a base").replace("model: math, layer", "model: *a, layer"),
        r"uses the alias \*a",
    ),
    "control characters": ("evomerge_recipe: \x07", "the file is not valid YAML"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_files_are_refused_in_one_line(name: str) -> None:
    text, message = MALFORMED[name]
    with pytest.raises(RecipeError, match=message) as raised:
        load_recipe(text)
    assert "\n" not in str(raised.value)


def test_messages_name_the_file() -> None:
    with pytest.raises(RecipeError, match=r"^best/recipe\.yaml: evomerge_recipe is missing"):
        load_recipe("{}", "best/recipe.yaml")


BOMB = "a: &a [x, x]\n" + "".join(f"{c}: &{c} [{', '.join(['*' + p] * 9)}]\n" for p, c in pairwise("abcdefghij"))
HOSTILE = {
    "nested lists": ("[" * 200_000, "nested 17 deep"),
    "nested mappings": ("{a: " * 200_000, "nested 17 deep"),
    "nested blocks": ("- " * 200_000, "nested 17 deep"),
    "aliases": (BOMB, r"uses the alias \*a"),
    "large": ("#" * (17 * 2**20), "the file has 17,825,792 characters; a recipe has at most"),
    "slices": (EXAMPLE.replace("0-1", "0-999999"), "is too much; a recipe has at most 100,000 slices"),
    "slices again": (EXAMPLE.replace("embed,", "layers.0-999.attn, " * 200), "is too much"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_soon(name: str) -> None:
    text, message = HOSTILE[name]
    start = time.process_time()
    with pytest.raises(RecipeError, match=message):
        load_recipe(text)
    assert time.process_time() - start < 5  # seconds of this process, far above what it takes


@pytest.mark.parametrize(
    ("location", "inputs"), [("bad \ud800", (Input("a"),)), ("good", ())], ids=["a name that is not text", "no inputs"]
)
def test_what_yaml_cannot_hold_is_refused(location: str, inputs: tuple[Input, ...]) -> None:
    recipe = Recipe((("a", ModelRef(location)),), (SliceRecipe(SliceId("embed"), "m", inputs),), "float32", "a")
    with pytest.raises(RecipeError, match="cannot be written as YAML"):
        dump_recipe(recipe)


def test_a_recipe_of_many_layers_is_short() -> None:
    info = pool(layers=80)
    text = dump_recipe(info.linear({"math": 0.5, "lang": 0.5}))
    assert "slices: [embed, layers.0-79.attn+mlp+norm, final_norm]" in text
    assert len(text.splitlines()) < 20


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_floats_are_exact(value: float) -> None:
    entry = SliceRecipe(SliceId("embed"), "linear", (Input("a", None, (("weight", value),)),))
    read: Any = load_recipe(dump_recipe(Recipe((("a", ModelRef("a")),), (entry,), "float32", "a")))
    found = read.slices[0].inputs[0].parameters[0][1]
    assert found == value
    assert math.copysign(1, found) == math.copysign(1, value)
