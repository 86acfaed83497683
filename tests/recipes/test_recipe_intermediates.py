"""Recipes of recipes: how they are named, hashed, checked, written and read."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from typing import Any

import pytest
from contracts.space_samples import METHODS
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.errors import RecipeError
from evomerge.recipes.method_spec import ByTensor
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.slices import Input, ModelRef, SliceId, SliceRecipe, parameters
from evomerge.recipes.yaml_reader import dump_recipe, load_recipe

EMBED, ATTN, HEAD = SliceId("embed"), SliceId("attn", 0), SliceId("head")
MODELS = (("base", ModelRef("pool/base", None, "sha256:b")), ("math", ModelRef("org/math", "1a2b")))


def recipe(*slices: SliceRecipe, **fields: Any) -> Recipe:
    given: dict[str, Any] = {"models": MODELS, "dtype": "bfloat16", "config_from": "base", **fields}
    return Recipe(slices=slices, **given)


def stage(*models: str, **fields: Any) -> Recipe:
    """The sum of `models` in every slice."""
    inputs = tuple(Input(model, None, parameters({"weight": 0.5})) for model in models)
    return recipe(*(SliceRecipe(slice_, "linear", inputs) for slice_ in (EMBED, ATTN, HEAD)), **fields)


def test_intermediates_are_used_like_models() -> None:
    first = stage("base", "math")
    second = stage("first", "math", intermediates=(("first", first),))
    last = stage("second", "first", intermediates=(("second", second), ("first", first)))
    assert [name for name, _ in last.intermediates] == ["first", "second"]
    assert list(last.stages) == ["first", "second"]
    last.check(METHODS)


def test_the_hash_holds_intermediates_but_not_their_names() -> None:
    first, other = stage("base", "math"), stage("math", "base")
    one = stage("a", "math", intermediates=(("a", first),))
    assert one.hash == stage("b", "math", intermediates=(("b", first),)).hash
    assert one.hash != stage("a", "math", intermediates=(("a", other),)).hash
    assert one.hash != stage("base", "math").hash
    assert one == stage("a", "math", intermediates=(("a", stage("base", "math")),))
    assert one != stage("a", "math", intermediates=(("a", other),))
    assert one != stage("b", "math", intermediates=(("b", first),))


def test_a_long_lineage_is_no_tree() -> None:
    """Each of 60 generations takes the two before it: as a tree, some 10^12 recipes."""

    def lineage() -> Recipe:
        grown = [stage("base", "math"), stage("math", "base", intermediates=())]
        for i in range(60):
            pair = ((f"g{i}", grown[-2]), (f"g{i + 1}", grown[-1]))
            grown.append(stage(f"g{i}", f"g{i + 1}", intermediates=pair))
        return grown[-1]

    one, other = lineage(), lineage()
    assert len(one.stages) == 61
    assert one == other
    assert hash(one) == hash(other)
    assert one != replace(other, seed=1)
    one.check(METHODS)


def test_a_lineage_may_be_deep() -> None:
    def lineage() -> Recipe:
        last = stage("base", "math")
        for i in range(1050):
            last = stage(f"g{i}", "math", intermediates=((f"g{i}", last),))
        return last

    one, other = lineage(), lineage()
    assert list(one.stages) == [f"g{i}" for i in range(1050)]
    assert one == other
    assert one.hash == other.hash
    assert dump_recipe(one)  # which reads it back


INNER = stage("base", "math")
OTHER = (("base", ModelRef("elsewhere")), MODELS[1])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: stage("base", intermediates=(("a", INNER),)), "intermediate 'a' is not used"),
        (
            lambda: stage("a", "b", intermediates=(("a", INNER),)),
            "uses model 'b', which the recipe does not have; .*one of: a, base, math",
        ),
        (lambda: stage("math", intermediates=(("math", INNER),)), "'math' names an intermediate and something else"),
        (lambda: stage("a", intermediates=(("a", INNER), ("a", INNER))), "'a' names an intermediate and something"),
        (
            lambda: stage("a", intermediates=(("a", stage("base", models=OTHER)),)),
            "intermediate 'a' has a model 'base' that is not the recipe's own",
        ),
        (
            lambda: stage(
                "a", "b", intermediates=(("a", INNER), ("b", stage("a", intermediates=(("a", stage("math")),))))
            ),
            "two intermediates are called 'a'",
        ),
        (lambda: stage("a", config_from="a", intermediates=(("a", INNER),)), "config_from is 'a'"),
        (lambda: recipe(tokenizer_from="maths"), "tokenizer_from is 'maths'; did you mean 'math'"),
    ],
)
def test_intermediates_that_cannot_be(make: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        make()


def test_intermediates_are_checked_too() -> None:
    bad = recipe(SliceRecipe(EMBED, "lineer", (Input("math"),)))
    outer = stage("b", intermediates=(("b", stage("a", intermediates=(("a", bad),))),))
    with pytest.raises(RecipeError, match=r"^intermediate a: slice embed: unknown merge method 'lineer'"):
        outer.check(METHODS)


STAGES = """\
evomerge_recipe: 1
dtype: bfloat16
config_from: base
tokenizer_from: math
seed: 7
models:
  base: {location: pool/base}
  math: {location: org/math, revision: 1a2b}
intermediates:
  first:
    slices:
    - slices: [embed, layers.0-1.attn]
      method: linear
      inputs:
      - {model: base}
      - {model: math, parameters: {weight: [{filter: q_proj, value: 0.3}, {value: 0.5}]}}
  second:
    dtype: float32
    config_from: math
    tokenizer_from: math
    seed: 8
    models: [math, base]
    slices:
    - slices: [embed, layers.0-1.attn]
      method: ties
      base: {model: first, layer: 3}
      inputs:
      - {model: math}
slices:
- slices: [embed, layers.0-1.attn]
  method: linear
  inputs:
  - {model: second}
  - {model: first}
"""


def test_intermediates_are_written_once_and_read() -> None:
    recipe = load_recipe(STAGES)
    first, second = recipe.stages["first"], recipe.stages["second"]
    assert recipe.intermediates == (("first", first), ("second", second))
    assert second.intermediates == (("first", first),)
    assert (second.dtype, second.config_from, second.seed, second.tokenizer_from) == ("float32", "math", 8, "math")
    assert (first.dtype, first.config_from, first.seed, first.tokenizer_from) == ("bfloat16", "base", 7, None)
    assert first.slices[0].inputs[1].parameters == (("weight", ByTensor((("q_proj", 0.3), (None, 0.5)))),)
    assert first.models == recipe.models
    assert second.models == recipe.models[::-1]
    assert dump_recipe(recipe).partition("\n")[2] == STAGES


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.text(min_size=1, max_size=6), st.sets(st.integers(0, 7))), min_size=1, max_size=8))
def test_any_graph_reads_back_the_same(drawn: list[tuple[str, set[int]]]) -> None:
    """Each recipe takes some of those before it, under names of any text."""
    grown: list[tuple[str, Recipe]] = []
    for number, (text, chosen) in enumerate(drawn):
        below = tuple(grown[i] for i in sorted(chosen) if i < len(grown))
        made = stage("math", *(name for name, _ in below), intermediates=below, seed=number)
        grown.append((f"{number}{text}", made))
    last = grown[-1][1]
    try:
        text = dump_recipe(last)
    except RecipeError:  # names that YAML cannot carry
        return
    read = load_recipe(text)
    assert read == last
    assert read.hash == last.hash
    assert list(read.stages.items()) == list(last.stages.items())


MALFORMED = {
    "intermediates": (
        re.sub(r"intermediates:(?s:.*)\nslices:\n", "intermediates: [a]\nslices:\n", STAGES),
        r"intermediates is \['a'\]; a m",
    ),
    "idle": (STAGES.replace("  - {model: second}\n", ""), r"intermediates\.second is not used"),
    "later": (
        STAGES.replace("{model: base}", "{model: second}"),
        r"intermediates\.first: slice .* uses model 'second'",
    ),
    "same name": (STAGES.replace("  first:", "  math:"), r"intermediates\.math has the name of a model"),
    "key in a stage": (STAGES.replace("    seed: 8", "    sede: 8"), r"key intermediates\.second\.sede; did you mean"),
    "dtype of a stage": (STAGES.replace("float32", "f32"), r"intermediates\.second\.dtype is 'f32'"),
    "models of a stage": (
        STAGES.replace("[math, base]", "[maths]"),
        r"intermediates\.second\.models has 'maths'; did you",
    ),
    "method of a stage": (
        STAGES.replace("method: ties", "method: 1"),
        r"intermediates\.second\.slices\[0\]\.method is 1",
    ),
    "tokenizer": (
        STAGES.replace("tokenizer_from: math", "tokenizer_from: mth", 1),
        "tokenizer_from is 'mth'; did you mean 'math'",
    ),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_intermediates_are_refused_in_one_line(name: str) -> None:
    text, message = MALFORMED[name]
    with pytest.raises(RecipeError, match=message) as raised:
        load_recipe(text)
    assert "\n" not in str(raised.value)


def test_many_slices_in_all_are_refused_soon() -> None:
    start = time.process_time()
    with pytest.raises(RecipeError, match="is too much; a recipe has at most 100,000 slices"):
        load_recipe(STAGES.replace("0-1.attn", "0-39999.attn"))
    assert time.process_time() - start < 5  # seconds of this process, far above what it takes
