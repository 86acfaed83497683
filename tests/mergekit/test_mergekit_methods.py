"""Every method of mergekit's: declared as mergekit declares it, written, read back, and refused where it differs."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
from mergekit.merge_methods import registry
from mergekit_plan import assert_reads_as

from evomerge.errors import RecipeError
from evomerge.merge.methods import specs
from evomerge.mergekit.forms import FORMS
from evomerge.mergekit.reader import read_mergekit
from evomerge.mergekit.writer import to_mergekit
from evomerge.models.opening import open_pool
from evomerge.models.pool import Pool
from evomerge.recipes.method_spec import ByTensor, ParameterSpec, Scalar
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.slices import Input, SliceId, SliceRecipe, parameters

THEIRS = {method.spec.name: method.spec for method in registry.registered_methods()}


def test_every_method_of_mergekit_s_is_known() -> None:
    assert set(FORMS) == set(THEIRS)


@pytest.mark.parametrize("method", FORMS)
def test_methods_are_declared_as_mergekit_declares_them(method: str) -> None:
    form, theirs, ours = FORMS[method], THEIRS[method], specs()[method]
    base = {"ignored": "ignored", "first": "required", "optional": "optional", "required": "required"}[form.base]
    assert theirs.contract.base.value == base
    scopes = {p.name: p.scope.value for p in theirs.parameters}
    # Task arithmetic takes, and does nothing with, the parameters of its relatives.
    idle = {"density", "rescale"} if method == "task_arithmetic" else set()
    assert {name for name, scope in scopes.items() if scope != "shared"} - idle == set(form.per_input)
    assert {name for name, scope in scopes.items() if scope == "shared"} - idle == {*form.shared, *form.constants}
    assert {p.name for p in theirs.parameters if p.required} == set(form.required)
    declared = {p.name: p.default for p in ours.parameters}
    assert set(declared) == {*form.per_input, *form.shared, *form.readings}
    for parameter in theirs.parameters:
        if not parameter.required and parameter.name in declared:
            given = 1.0 if parameter.name == "scale" else parameter.default
            assert declared[parameter.name] == given, parameter.name


def draw(spec: ParameterSpec, rng: random.Random) -> Scalar:
    if spec.kind == "boolean":
        return rng.random() < 0.5
    if spec.kind == "integer":
        return rng.randint(1, 20)
    if spec.name in ("epsilon", "gamma"):
        return rng.uniform(0.01, 0.1)
    return rng.uniform(0.3, 0.7)


def random_recipe(pool: Pool, method: str, rng: random.Random) -> Recipe:
    """Values by tensor, by layer, or neither, for every parameter."""
    form, spec = FORMS[method], specs()[method]
    names = ["a", "b", "c"][: spec.max_inputs or 2]
    # What projections, layers and components have is shared, as a search would have it.
    drawn: dict[tuple[Any, ...], Scalar] = {}

    def one(parameter: ParameterSpec, kind: int, source: str, slice_: SliceId) -> Any:
        def at(*key: Any) -> Scalar:
            return drawn.setdefault((parameter.name, source, *key), draw(parameter, rng))

        if parameter.name in form.readings:
            return form.readings[parameter.name]
        if kind == 0:
            return at()
        if kind == 1:
            return at(slice_)
        if slice_.component != "attn":
            return at(slice_.component)
        return ByTensor((("q_proj", at("q")), ("k_proj", at("k", slice_.layer)), (None, at("rest"))))

    kinds = {p.name: rng.randrange(3) for p in spec.parameters}

    def entry(slice_: SliceId) -> SliceRecipe:
        def values(source: str) -> dict[str, Any]:
            own = [p for p in spec.parameters if p.per_input == bool(source)]
            return {p.name: one(p, kinds[p.name], source, slice_) for p in own}

        inputs = tuple(Input(name, None, parameters(values(name))) for name in names)
        base = Input("base") if spec.base == "required" or (spec.base == "optional" and rng_base) else None
        return SliceRecipe(slice_, method, inputs, parameters(values("")), base)

    rng_base = rng.random() < 0.5
    recipe = pool.info.recipe(entry(slice_) for slice_ in pool.layout.slices)
    # Without a base, mergekit's configuration is that of the first model.
    if form.base == "optional" and not rng_base:
        return replace(recipe, config_from="a")
    return replace(recipe, config_from="a") if method == "passthrough" else recipe


@pytest.mark.parametrize("method", FORMS)
@pytest.mark.parametrize("seed", range(2))
def test_recipes_are_written_and_read_back_the_same(pool: Pool, method: str, seed: int) -> None:
    recipe = random_recipe(pool, method, random.Random(f"{method} {seed}"))
    text = to_mergekit(recipe, pool.layout)
    file = read_mergekit(text)
    opened = open_pool(file.models, file.base, dtype=file.dtype)
    read = file.recipe(opened)
    assert file.notes == ()
    assert by_tensor(read, pool) == by_tensor(recipe, pool)
    assert_reads_as(read, opened.layout, text)
    # Filters that say the same are spelt one way: from here on, the hash is the same too.
    again = read_mergekit(to_mergekit(read, opened.layout)).recipe(opened)
    assert again.hash == read.hash
    if "filter" not in text:
        assert read.hash == recipe.hash


def by_tensor(recipe: Recipe, pool: Pool) -> list[Any]:
    """What is done to every tensor, without names and filters."""
    places = {name: ref.identity for name, ref in recipe.models}

    def at(values: Any, name: str) -> dict[str, Scalar]:
        return {key: value.at(name) if isinstance(value, ByTensor) else value for key, value in values}

    return [places[recipe.config_from], recipe.dtype] + [
        (
            name,
            entry.method,
            [(places[i.model], at(i.parameters, name)) for i in entry.inputs],
            at(entry.parameters, name),
            places[entry.base.model] if entry.base else None,
        )
        for entry in recipe.slices
        for name in pool.layout.tensors[entry.slice]
    ]


def entry_of(
    pool: Pool, method: str, shared: dict[str, Any], each: dict[str, Any], base: str | None = "base"
) -> Recipe:
    """The same merge of a and b in every slice."""
    names = "a" if specs()[method].max_inputs == 1 else "ab"
    inputs = tuple(Input(name, None, parameters(each)) for name in names)
    origin = Input(base) if base and specs()[method].base != "none" else None
    return pool.info.recipe(SliceRecipe(s, method, inputs, parameters(shared), origin) for s in pool.layout.slices)


@pytest.mark.parametrize(
    ("method", "shared", "each", "reason"),
    [
        ("dare_ties", {}, {"density": 0.5}, "its rescale_by is probability, mergekit's is magnitude"),
        ("della", {}, {"density": 0.5}, "its rescale_by is probability, mergekit's is magnitude"),
        ("multislerp", {}, {}, "its reading is paper, mergekit's is mergekit"),
        ("model_stock", {}, {}, "its reading is paper, mergekit's is mergekit"),
        ("sce", {}, {}, "its reading is paper, mergekit's is mergekit"),
        (
            "della_linear",
            {"rescale": False},
            {"density": 0.1, "epsilon": 0.1},
            "its density plus or minus epsilon is not within 0 and 1",
        ),
    ],
)
def test_what_mergekit_reads_otherwise_is_refused(
    pool: Pool, method: str, shared: dict[str, Any], each: dict[str, Any], reason: str
) -> None:
    with pytest.raises(RecipeError, match=rf"mergekit cannot express slice layers\.0\.attn: {reason}"):
        to_mergekit(entry_of(pool, method, shared, each), pool.layout)


@pytest.mark.parametrize(
    ("method", "shared", "each"),
    [
        ("dare_ties", {}, {"density": 1.0}),
        ("dare_linear", {"rescale": False}, {"density": 0.5}),
        ("della", {"rescale": ByTensor((("q_proj", False), (None, False)))}, {"density": 0.5}),
        ("della", {"rescale_by": "magnitude"}, {"density": 0.5}),
    ],
)
def test_what_makes_no_difference_is_written(
    pool: Pool, method: str, shared: dict[str, Any], each: dict[str, Any]
) -> None:
    assert f"merge_method: {method}" in to_mergekit(entry_of(pool, method, shared, each), pool.layout)


@pytest.mark.parametrize("method", ["iso_c", "iso_cts", "tsv_m", "wudi", "optmerge", "opcm", "doge"])
def test_methods_that_mergekit_has_not_are_refused_by_name(pool: Pool, method: str) -> None:
    with pytest.raises(RecipeError, match=rf"slice embed: its method '{method}' is none of linear, slerp") as raised:
        to_mergekit(entry_of(pool, method, {}, {}), pool.layout)
    assert "\n" not in str(raised.value)


def test_karcher_has_no_weights_there(pool: Pool) -> None:
    def recipe(*weights: float) -> Recipe:
        inputs = tuple(Input(name, None, (("weight", w),)) for name, w in zip("ab", weights, strict=True))
        return pool.info.recipe(SliceRecipe(s, "karcher", inputs) for s in pool.layout.slices)

    assert "weight" not in to_mergekit(recipe(2.0, 2.0), pool.layout)
    with pytest.raises(RecipeError, match="mergekit's karcher has no weight: every model counts the same"):
        to_mergekit(recipe(1.0, 2.0), pool.layout)


@pytest.mark.parametrize("method", ["karcher", "ram", "nuslerp"])
def test_models_of_methods_without_zero_weights_are_those_of_the_layer(pool: Pool, method: str) -> None:
    recipe = entry_of(pool, method, {}, {}, None if method == "nuslerp" else "base")
    other = replace(recipe.slices[3], inputs=(Input("a"), Input("c")))
    changed = replace(recipe, slices=(*recipe.slices[:3], other, *recipe.slices[4:]))
    with pytest.raises(RecipeError, match=f"with it its layer has .*, and {method} merges every model of a layer"):
        to_mergekit(changed, pool.layout)
    copy = SliceRecipe(recipe.slices[3].slice, "linear", (Input("a", None, (("weight", 1.0),)),))
    with pytest.raises(RecipeError, match=f"{method} merges every model of a layer"):
        to_mergekit(replace(recipe, slices=(*recipe.slices[:3], copy, *recipe.slices[4:])), pool.layout)


def test_the_base_is_no_input_of_a_method_without_weights(pool: Pool) -> None:
    recipe = entry_of(pool, "ram", {}, {})
    slices = tuple(replace(entry, inputs=(Input("a"), Input("base"))) for entry in recipe.slices)
    with pytest.raises(RecipeError, match=r"slice layers\.0\.attn: its base is also an input"):
        to_mergekit(replace(recipe, slices=slices), pool.layout)


def test_copies_of_one_model_a_layer_are_passed_through(pool: Pool) -> None:
    recipe = pool.info.recipe(
        SliceRecipe(s, "passthrough", (Input("ab"[(s.layer or 0) % 2]),)) for s in pool.info.slices
    )
    text = to_mergekit(recipe, pool.layout)
    assert "merge_method: passthrough" in text
    assert "scale" not in text
    rest = tuple(entry for entry in recipe.slices if entry.slice != SliceId("mlp", 1))
    mixed = (SliceRecipe(SliceId("mlp", 1), "passthrough", (Input("c"),)), *rest)
    assert "merge_method: linear" in to_mergekit(replace(recipe, slices=mixed), pool.layout)
    half = Input("c", None, (("scale", 0.5),))
    mixed = (SliceRecipe(SliceId("mlp", 1), "passthrough", (half,)), *rest)
    with pytest.raises(RecipeError, match="and passthrough merges every model of a layer"):
        to_mergekit(replace(recipe, slices=mixed), pool.layout)


def test_methods_may_not_differ(pool: Pool) -> None:
    recipe = entry_of(pool, "ties", {}, {})
    slices = (*recipe.slices[:3], replace(recipe.slices[3], method="task_arithmetic"), *recipe.slices[4:])
    with pytest.raises(RecipeError, match=r"slice layers\.0\.norm: its method is task_arithmetic, embed has ties; a f"):
        to_mergekit(replace(recipe, slices=slices), pool.layout)


@pytest.mark.parametrize("method", sorted(specs().keys() - FORMS.keys()))
def test_methods_that_mergekit_has_not_are_refused(pool: Pool, method: str) -> None:
    why = "reads statistics of data" if specs()[method].statistics else "is none of linear"
    with pytest.raises(RecipeError, match=rf"slice \S+: its method '{method}' {why}, .* `evomerge merge`"):
        to_mergekit(entry_of(pool, method, {}, {}), pool.layout)
