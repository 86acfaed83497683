"""mergekit's own planner, reading our file, must find the recipe's values for every tensor."""

from __future__ import annotations

import math
import random
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mergekit.config import MergeConfiguration
from mergekit.scripts.multimerge import load_config
from mergekit_plan import mergekit_reads
from mergekit_recipes import READINGS, document, recipe_of
from tiny_llama import save_llama

from evomerge.merge.methods import specs
from evomerge.mergekit.writer import to_mergekit
from evomerge.models.architecture.layout import Layout
from evomerge.models.opening import open_pool
from evomerge.models.pool import Pool
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.slices import Input, ModelRef, SliceId, SliceRecipe

DIFFERENCES = ("task_arithmetic", "ties", "dare_linear", "dare_ties")


@pytest.fixture(scope="module")
def deep_pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    root = tmp_path_factory.mktemp("deep")
    return open_pool(
        {name: str(save_llama(root / name, i, layers=12)) for i, name in enumerate(("base", "a", "c"))}, "base"
    )


def assert_same_meaning(text: str, recipe: Recipe, layout: Layout) -> None:
    """Compare what mergekit reads with the recipe, tensor by tensor, parameter by parameter, exactly."""
    read = mergekit_reads(text)
    assert set(read) == {name for entry in recipe.slices for name in layout.of_slice(entry.slice)}
    places = {name: ref.location for name, ref in recipe.models}
    declared = specs()
    for entry in recipe.slices:
        spec = declared[entry.method]
        shared = {**spec.defaults(per_input=False), **dict(entry.parameters)}
        for name in layout.of_slice(entry.slice):
            method, base, settings, inputs = read[name]
            assert method == entry.method
            own = {
                places[i.model]: (
                    at_layer(name, entry.slice.layer, i.layer),
                    {**spec.defaults(per_input=True), **dict(i.parameters)},
                )
                for i in entry.inputs
            }
            if method == "slerp":
                first, second = own
                assert {path for path, _, _ in inputs} == {first, second}
                assert settings["t"] == pytest.approx(shared["t"] if base == first else 1 - shared["t"], abs=1e-16)
                continue
            for key, value in shared.items():
                if key in READINGS[method]:
                    continue
                assert settings[key] == value, (name, key)
                assert type(settings[key]) is type(value)
            if method in DIFFERENCES:
                assert entry.base is not None
                assert base == places[entry.base.model]
                assert settings["int8_mask"] is False
            used = {}
            for path, tensor, given in inputs:
                if path not in own:  # the base, or a source that this slice does not use
                    assert given.get("weight", 0.0) == 0.0
                    continue
                used[path] = (tensor, {key: given[key] for key in own[path][1]})
            assert used == own, name


def at_layer(name: str, own: int | None, layer: int | None) -> str:
    """The Llama tensor of another layer."""
    return name if own is None or layer is None else name.replace(f"layers.{own}.", f"layers.{layer}.")


def test_equal_values_are_scalars(pool: Pool) -> None:
    recipe = recipe_of(pool, "ties", "ab", lambda s, n, p: {"a": 0.1, "b": 1 / 3}[n])
    text = to_mergekit(recipe, pool.layout)
    places = {name: ref.location for name, ref in recipe.models}
    assert document(text) == {
        "merge_method": "ties",
        "base_model": places["base"],
        "dtype": "float32",
        "out_dtype": "float32",
        "parameters": {"lambda": 1.0, "normalize": True, "rescale": False, "int8_mask": False},
        "models": [
            {"model": places["a"], "parameters": {"weight": 0.1, "density": 0.1}},
            {"model": places["b"], "parameters": {"weight": 1 / 3, "density": 1 / 3}},
            {"model": places["base"]},
        ],
    }
    assert_same_meaning(text, recipe, pool.layout)


def test_values_per_layer_are_gradients_and_per_component_filters(pool: Pool) -> None:
    by_component = {"attn": 0.25, "mlp": 0.5}
    recipe = recipe_of(
        pool, "task_arithmetic", "a", lambda s, n, p: by_component.get(s.component, 0.75) + (s.layer or 0) / 10
    )
    text = to_mergekit(recipe, pool.layout)
    assert document(text)["models"][0]["parameters"]["weight"] == [
        {"filter": "self_attn", "value": [0.25, 0.35, 0.45]},
        {"filter": "mlp", "value": [0.5, 0.6, 0.7]},
        {"filter": "input_layernorm", "value": [0.75, 0.85, 0.95]},
        {"filter": "post_attention_layernorm", "value": [0.75, 0.85, 0.95]},
        {"value": 0.75},
    ]
    assert_same_meaning(text, recipe, pool.layout)


def test_layers_of_equal_values_are_ranges_and_11_is_not_1(deep_pool: Pool) -> None:
    recipe = recipe_of(deep_pool, "ties", "a", lambda s, n, p: 0.25 if (s.layer or 0) in (1, 2, 3, 4) else 0.5)
    text = to_mergekit(recipe, deep_pool.layout)
    assert [entry["sources"][0]["layer_range"] for entry in document(text)["slices"]] == [[0, 1], [1, 5], [5, 12]]
    assert_same_meaning(text, recipe, deep_pool.layout)


@pytest.mark.parametrize("method", ["linear", "slerp", *DIFFERENCES])
@pytest.mark.parametrize("seed", range(6))
def test_random_recipes_mean_the_same(pool: Pool, deep_pool: Pool, method: str, seed: int) -> None:
    rng = random.Random(f"{method} {seed}")
    which = deep_pool if seed % 2 else pool
    names = "ac" if method == "slerp" else rng.sample("ac", 2)
    choices = [rng.uniform(0, 1) for _ in range(4)] if seed < 4 else None
    spec = specs()[method]

    def draw() -> float:
        return rng.choice(choices) if choices else rng.uniform(0.0, 1.0)

    def shared(slice_: SliceId) -> dict[str, Any]:
        return {
            p.name: rng.random() < 0.5 if p.kind == "boolean" else draw()
            for p in spec.parameters
            if not p.per_input and p.kind != "categorical"
        }

    recipe = recipe_of(which, method, names, lambda s, n, p: draw(), shared)
    assert_same_meaning(to_mergekit(recipe, which.layout), recipe, which.layout)


def test_values_keep_all_their_digits(pool: Pool) -> None:
    values = iter([math.pi / 10**k for k in range(9)] + [1e-300, 5e-324, 0.1 + 0.2, 2 / 3, 1e22, -0.3])
    recipe = recipe_of(pool, "linear", ["base"], lambda s, n, p: next(values), lambda s: {"normalize": False})
    assert_same_meaning(to_mergekit(recipe, pool.layout), recipe, pool.layout)


def test_models_are_split_where_one_gradient_would_round(tmp_path: Path) -> None:
    folders = {name: str(save_llama(tmp_path / name, i, layers=24)) for i, name in enumerate(("base", "a"))}
    deep = open_pool(folders, "base")
    recipe = recipe_of(deep, "task_arithmetic", "a", lambda s, n, p: 1 / (3 + (s.layer or 0)))
    text = to_mergekit(recipe, deep.layout)
    assert [entry["sources"][0]["layer_range"] for entry in document(text)["slices"]] == [[0, 12], [12, 24]]
    assert_same_meaning(text, recipe, deep.layout)


def test_copied_slices_fit_into_any_method(pool: Pool) -> None:
    copies = {SliceId("embed"): "base", SliceId("attn", 1): "a", SliceId("norm", 2): "base", SliceId("head"): "b"}
    for method in ("slerp", *DIFFERENCES):
        merged = recipe_of(pool, method, "ab", lambda s, n, p: 0.5)
        here = {s: m for s, m in copies.items() if m != "base"} if method == "slerp" else copies
        recipe = pool.info.recipe(
            SliceRecipe(e.slice, "linear", (Input(here[e.slice], None, (("weight", 1.0),)),)) if e.slice in here else e
            for e in merged.slices
        )
        read = mergekit_reads(to_mergekit(recipe, pool.layout))
        places = {name: ref.location for name, ref in recipe.models}
        for slice_, model in here.items():
            for name in pool.layout.tensors[slice_]:
                _, base, settings, inputs = read[name]
                if method == "slerp":
                    assert settings["t"] == (0.0 if base == places[model] else 1.0)
                    continue
                weights = {path: given["weight"] for path, _, given in inputs if path != base}
                wanted = {places["a"]: float(model == "a"), places["b"]: float(model == "b")}
                assert weights == wanted
                assert settings["lambda"] == 1.0
                assert all(given.get("density", 1.0) == 1.0 for path, _, given in inputs if weights.get(path))


def test_sources_may_differ_by_layer(pool: Pool) -> None:
    def entry(slice_: SliceId) -> SliceRecipe:
        pair = {0: "ab", 1: "bc", 2: "ca"}[
            slice_.layer if slice_.layer is not None else 2 * (slice_.component != "embed")
        ]
        return SliceRecipe(slice_, "slerp", tuple(Input(n) for n in pair), (("t", 0.25),))

    recipe = pool.info.recipe(entry(s) for s in pool.layout.slices)
    text = to_mergekit(recipe, pool.layout)
    assert document(text)["base_model"] == dict(recipe.models)["base"].location
    assert_same_meaning(text, recipe, pool.layout)


def test_layers_may_be_taken_from_elsewhere(pool: Pool) -> None:
    def entry(slice_: SliceId) -> SliceRecipe:
        at = None if slice_.layer is None else 2 - slice_.layer
        inputs = (Input("a", at, (("weight", 0.5),)), Input("b", slice_.layer, (("weight", 0.25),)))
        return SliceRecipe(slice_, "linear", inputs, (("normalize", False),))

    recipe = pool.info.recipe(entry(s) for s in pool.layout.slices)
    assert_same_meaning(to_mergekit(recipe, pool.layout), recipe, pool.layout)


def test_another_depth_is_slices(pool: Pool) -> None:
    def linear(slice_: SliceId, at: int | None) -> SliceRecipe:
        weights = {"a": 0.5, "base": 0.1 * (1 + (at or 0))}
        inputs = tuple(Input(n, at, (("weight", w),)) for n, w in weights.items())
        return SliceRecipe(slice_, "linear", inputs, (("normalize", False),))

    outer = [linear(s, None) for s in pool.layout.slices if s.layer is None]
    inner = [linear(SliceId(c, i), at) for i, at in enumerate((0, 1, 2, 1, 2)) for c in ("attn", "mlp", "norm")]
    recipe = pool.info.recipe([*outer, *inner])
    text = to_mergekit(recipe, pool.layout)
    assert [entry["sources"][0]["layer_range"] for entry in document(text)["slices"]] == [[0, 3], [1, 3]]
    assert_same_meaning(text, recipe, pool.layout)


def test_the_configuration_comes_from_the_same_model(pool: Pool) -> None:
    recipe = pool.info.linear({"a": 0.5, "b": 0.5})
    assert recipe.config_from == "base"
    assert document(to_mergekit(recipe, pool.layout))["base_model"] == recipe.ref("base").location
    assert_same_meaning(to_mergekit(recipe, pool.layout), recipe, pool.layout)


def test_hub_models_are_pinned_and_odd_folder_names_survive(pool: Pool) -> None:
    refs = (("base", ModelRef("org/base", revision="0123abc")), ("a", ModelRef("/data/a+b@2", fingerprint="sha256:1")))
    recipe = Recipe(refs, tuple(pool.info.linear({"a": 0.5, "base": 0.5}).slices), "bfloat16", "base")
    text = to_mergekit(recipe, pool.layout)
    config = MergeConfiguration.model_validate(document(text))
    assert (config.base_model.model.path, config.base_model.model.revision) == ("org/base", "0123abc")
    assert [m.model.model.path for m in config.models or ()] == ["/data/a+b@2", "org/base"]
    assert config.models is not None
    assert config.models[0].model.lora is None
    assert config.out_dtype == "bfloat16"
    adapted = replace(refs[0][1], adapter=ModelRef("org/lora", "4567def"))
    folded = Recipe((("base", adapted), refs[1]), recipe.slices, "bfloat16", "base")
    assert document(to_mergekit(folded, pool.layout))["base_model"] == "org/base@0123abc+org/lora@4567def"
    odd = replace(adapted, adapter=ModelRef("/data/a+b", fingerprint="sha256:2"))
    config = MergeConfiguration.model_validate(
        document(to_mergekit(replace(folded, models=(("base", odd), refs[1])), pool.layout))
    )
    assert config.base_model.lora.path == "/data/a+b"


def test_tokenizers_of_other_models_are_named(pool: Pool) -> None:
    recipe = pool.info.linear({"a": 0.5, "base": 0.5})
    assert "tokenizer_source" not in document(to_mergekit(replace(recipe, tokenizer_from="base"), pool.layout))
    other = document(to_mergekit(replace(recipe, tokenizer_from="b"), pool.layout))
    assert other["tokenizer_source"] == recipe.ref("b").location


def test_intermediates_are_documents_that_mergekit_finds(pool: Pool, tmp_path: Path) -> None:
    first = pool.info.linear({"a": 0.5, "b": 0.5})

    def of(*names: str, **stages: Recipe) -> Recipe:
        inputs = tuple(Input(name, None, (("weight", 0.5),)) for name in names)
        slices = tuple(SliceRecipe(s, "linear", inputs) for s in pool.info.slices)
        return replace(first, slices=slices, intermediates=tuple(stages.items()))

    # Names that mergekit would mistake for a method, a dtype, a model with an adapter, or a number.
    second = of("linear", "c", linear=first)
    third = of("float32", "1", "a+b", **{"float32": second, "1": of("c"), "a+b": first})
    text = to_mergekit(third, pool.layout)
    configs, needed = load_config(text, str(tmp_path))
    assert set(configs) == {None, "stage-1", "stage-2", "stage-3", "stage-4"}
    assert needed[None] == {"stage-1", "stage-2", "stage-4"}
    assert sorted(map(sorted, needed.values())) == [[], [], [], ["stage-1", "stage-2", "stage-4"], ["stage-3"]]
    assert all(config.merge_method == "linear" and config.out_dtype == "float32" for config in configs.values())
    assert text.splitlines()[0].endswith("mergekit-multi FILE --intermediate-dir DIR --out-path OUT")


@pytest.mark.parametrize(("method", "note"), [("dare_ties", "drawn at random"), ("ties", "arbitrary choice")])
def test_it_says_where_dropping_differs_only_where_something_is_dropped(pool: Pool, method: str, note: str) -> None:
    for density, said in ((0.5, True), (1.0, False)):
        value = {"weight": 0.5, "density": density}
        text = to_mergekit(recipe_of(pool, method, "ab", lambda s, n, p, v=value: v[p]), pool.layout)
        comment = "".join(line for line in text.splitlines() if line.startswith("#"))
        assert bool(re.search(note, comment)) == said
