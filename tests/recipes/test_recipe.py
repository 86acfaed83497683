from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from contracts.space_samples import METHODS, pool

from evomerge.errors import RecipeError
from evomerge.recipes.method_spec import ByTensor
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.slices import Input, ModelRef, SliceId, SliceRecipe, parameters

EMBED, ATTN, HEAD = SliceId("embed"), SliceId("attn", 0), SliceId("head")
MODELS = (("base", ModelRef("pool/base", None, "sha256:b")), ("math", ModelRef("org/math", "1a2b")))


def weighted(slice_: SliceId, weight: Any = 0.5, **fields: Any) -> SliceRecipe:
    return SliceRecipe(slice_, "linear", (Input("math", None, parameters({"weight": weight})),), **fields)


def recipe(*slices: SliceRecipe, **fields: Any) -> Recipe:
    given: dict[str, Any] = {"models": MODELS, "dtype": "bfloat16", "config_from": "base", **fields}
    return Recipe(slices=slices or (weighted(EMBED), weighted(ATTN), weighted(HEAD)), **given)


@pytest.mark.parametrize("text", ["embed", "final_norm", "head", "layers.0.attn", "layers.31.mlp", "layers.7.norm"])
def test_slice_names_read_back(text: str) -> None:
    assert str(SliceId.parse(text)) == text


@pytest.mark.parametrize("text", ["", "embd", "attn", "layers.0", "layers.-1.attn", "layers.0.embed", "layers.x.mlp"])
def test_other_slice_names_are_refused(text: str) -> None:
    with pytest.raises(RecipeError, match="is not a slice; write layers"):
        SliceId.parse(text)


@pytest.mark.parametrize(("component", "layer"), [("attn", None), ("embed", 0), ("mlp", -1), ("lora", None)])
def test_slices_that_cannot_be(component: Any, layer: int | None) -> None:
    with pytest.raises(RecipeError, match=f"slice with component '{component}' and layer {layer}"):
        SliceId(component, layer)


def test_slices_are_kept_in_model_order() -> None:
    names = ["embed", "layers.0.attn", "layers.0.mlp", "layers.0.norm", "layers.2.attn", "layers.10.attn"]
    names += ["final_norm", "head"]
    slices = [weighted(SliceId.parse(name)) for name in names]
    shuffled = recipe(*slices[::-1])
    assert [str(entry.slice) for entry in shuffled.slices] == names
    assert shuffled == recipe(*slices)
    assert shuffled.hash == recipe(*slices).hash


def test_the_hash_is_that_of_the_content() -> None:
    """Written down once: a change of the canonical form breaks caches and ledgers, and must be meant."""
    assert recipe().hash == "a05d052d9872c9b69544b669e0e592046ea6f2de765ee14669e0190197422db8"


def test_the_hash_does_not_depend_on_names_or_places() -> None:
    moved = (("origin", ModelRef("/elsewhere/base", None, "sha256:b")), ("maths", ModelRef("org/math", "1a2b")))
    renamed = recipe(
        *(replace(entry, inputs=(replace(entry.inputs[0], model="maths"),)) for entry in recipe().slices),
        models=moved,
        config_from="origin",
    )
    assert renamed.hash == recipe().hash


@pytest.mark.parametrize(
    "other",
    [
        recipe(dtype="float32"),
        recipe(seed=1),
        recipe(config_from="math"),
        recipe(weighted(EMBED), weighted(ATTN)),
        recipe(weighted(EMBED, 0.25), weighted(ATTN), weighted(HEAD)),
        recipe(weighted(EMBED, ByTensor((("q", 0.25), (None, 0.5)))), weighted(ATTN), weighted(HEAD)),
        recipe(weighted(EMBED, scale=0.5), weighted(ATTN), weighted(HEAD)),
        recipe(weighted(EMBED, base=Input("base")), weighted(ATTN), weighted(HEAD)),
        recipe(weighted(EMBED, parameters=(("normalize", True),)), weighted(ATTN), weighted(HEAD)),
        recipe(models=(("base", ModelRef("pool/base", None, "sha256:c")), MODELS[1])),
        recipe(models=(MODELS[0], ("math", ModelRef("org/math", "2b")))),
        recipe(models=(MODELS[0], ("math", ModelRef("org/math", "1a2b", adapter=ModelRef("org/lora", "1a2b"))))),
    ],
)
def test_the_hash_changes_with_the_content(other: Recipe) -> None:
    assert other.hash != recipe().hash


@pytest.mark.parametrize(("one", "same"), [(1, 1.0), (0, 0.0), (-0.0, 0.0)])
def test_equal_numbers_hash_alike(one: float, same: float) -> None:
    assert recipe(weighted(EMBED, one)) == recipe(weighted(EMBED, same))
    assert recipe(weighted(EMBED, one)).hash == recipe(weighted(EMBED, same)).hash


def test_values_by_tensor_that_are_all_alike_hash_as_one() -> None:
    same = recipe(weighted(EMBED, ByTensor((("q", 0.5), (None, 0.5)))), weighted(ATTN), weighted(HEAD))
    assert same.hash == recipe().hash
    one, other = (recipe(weighted(EMBED, ByTensor((("q", 1), ("k", last), (None, last))))).hash for last in (2.0, 3.0))
    assert one == recipe(weighted(EMBED, ByTensor((("q", 1.0), (None, 2))))).hash != other


def test_the_layer_of_an_input_is_the_slices_own_unless_given() -> None:
    own = replace(weighted(ATTN), inputs=(Input("math", 0, (("weight", 0.5),)),))
    other = replace(weighted(ATTN), inputs=(Input("math", 1, (("weight", 0.5),)),))
    assert recipe(own).hash == recipe(weighted(ATTN)).hash != recipe(other).hash


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: recipe(weighted(EMBED), weighted(EMBED)), "slice embed is given twice"),
        (lambda: recipe(replace(weighted(EMBED), inputs=(Input("lang"),))), "slice embed uses model 'lang'"),
        (
            lambda: recipe(replace(weighted(EMBED), base=Input("bse"))),
            "slice embed uses model 'bse', which the recipe does not have; did you mean 'base'",
        ),
        (lambda: recipe(config_from="bse"), "config_from is 'bse'; did you mean 'base'"),
        (lambda: recipe(dtype="float8"), "dtype 'float8'; allowed: float32"),
        (lambda: recipe(models=(*MODELS, MODELS[0])), "models base, math, base; every name once"),
        (lambda: recipe(seed=-1), "seed is -1"),
        (lambda: recipe(seed=2**63), "seed is 9223372036854775808"),
        (lambda: recipe(seed=True), "seed is True"),
        (lambda: recipe(weighted(EMBED, math.nan)), "slice embed: weight is nan"),
        (lambda: recipe(weighted(EMBED, ByTensor((("q", math.inf), (None, 1.0))))), "slice embed: weight is inf"),
        (lambda: recipe(weighted(ATTN, parameters=(("lambda", math.inf),))), r"slice layers\.0\.attn: lambda is inf"),
        (lambda: Recipe(MODELS, (), "float32", "base"), "the recipe has no slices"),
    ],
)
def test_recipes_that_cannot_be(make: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        make()


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (SliceRecipe(EMBED, "lineer", (Input("math"),)), "slice embed: unknown merge method 'lineer'; did you mean"),
        (SliceRecipe(EMBED, "slerp", (Input("math"),)), "slice embed: method 'slerp' was given 1 inputs; it takes 2"),
        (SliceRecipe(EMBED, "linear", ()), "method 'linear' was given 0 inputs; it takes 1 to any"),
        (SliceRecipe(EMBED, "ties", (Input("math"),)), "method 'ties' has no base model"),
        (weighted(EMBED, "much"), "slice embed, model math: weight is 'much'"),
        (weighted(EMBED, parameters=(("t", 0.5),)), "slice embed: method 'linear' has no parameter 't' for slices"),
    ],
)
def test_check_against_the_methods(entry: SliceRecipe, message: str) -> None:
    recipe().check(METHODS)
    with pytest.raises(RecipeError, match=message):
        recipe(entry).check(METHODS)


def test_the_tokenizer_is_part_of_the_content() -> None:
    assert recipe(tokenizer_from="base").hash == recipe().hash != recipe(tokenizer_from="math").hash


def test_a_pool_gives_baselines() -> None:
    info = pool()
    average = info.linear({"math": 0.5, "lang": 0.5})
    average.check(METHODS)
    assert [entry.slice for entry in average.slices] == list(info.slices)
    assert average.slices[3].inputs == (
        Input("math", None, (("weight", 0.5),)),
        Input("lang", None, (("weight", 0.5),)),
    )
    assert average.config_from == "base"
    assert average.ref("lang") == ModelRef("pool/lang", None, "sha256:lang")


def test_a_model_and_its_adapter_are_each_pinned() -> None:
    ref = ModelRef("org/base", "1a", adapter=ModelRef("lora", None, "sha256:c"))
    assert (ref.identity, ref.address) == ("org/base@1a+sha256:c", "org/base@1a+lora")


def test_a_slice_of_too_many_inputs_is_refused_before_anything_is_read() -> None:
    inputs = tuple(Input("a", None, (("weight", 0.1),)) for _ in range(1001))
    with pytest.raises(RecipeError, match="slice embed has 1,001 inputs; at most 1,000"):
        Recipe((("a", ModelRef("a")),), (SliceRecipe(SliceId("embed"), "linear", inputs),), "float32", "a")
