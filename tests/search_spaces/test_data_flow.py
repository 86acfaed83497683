from __future__ import annotations

import math
import time
from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest
from contracts.space_samples import METHODS, pool

from evomerge.errors import ConfigError, InfeasibleError
from evomerge.genomes.genome import Genome, Value
from evomerge.recipes.pool_info import PoolInfo
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.slices import Input, SliceId
from search_spaces.data_flow import DataFlowSpace
from search_spaces.parameter import ParameterSpace


def space(info: PoolInfo | None = None, **config: Any) -> DataFlowSpace:
    return DataFlowSpace(info or pool(4), METHODS, **config)


def names(made: DataFlowSpace) -> list[str]:
    return [gene.name for gene in made.spec]


def genome(made: DataFlowSpace, taken: str = "", **scales: float) -> Genome:
    """The genome that takes these slots; scales by the start of their names, others 1."""
    values: list[Value] = []
    for gene in made.spec:
        name, _, part = gene.name.partition("/")
        if part == "scale":
            values.append(scales.get(name, 1.0))
        else:
            on = gene.name in taken.split()
            values.append(on if gene.kind == "boolean" else 0.3 if on else 0.0)
    return made.spec.genome(values)


def path(recipe: Recipe) -> list[str]:
    """What every layer's attention comes from, with the factor on its output."""
    found = []
    for entry in recipe.slices:
        if entry.slice.component == "attn":
            (source,) = entry.inputs
            layer = entry.slice.layer if source.layer is None else source.layer
            found.append(f"{source.model}.{layer}" + (f"*{entry.scale:g}" if entry.scale is not None else ""))
    return found


def scales(recipe: Recipe, component: str) -> list[float | None]:
    return [entry.scale for entry in recipe.slices if entry.slice.component == component]


def test_slots_are_all_models_layer_by_layer_repeated_between_the_first_models_ends() -> None:
    made = space(replace(pool(3), depths=(("lang", 4),)), repeats=2, scales="none")
    first = ["lang.0", "math.1", "lang.1", "math.2", "lang.2", "lang.3"]
    second = ["math.0@2", "lang.0@2", "math.1@2", "lang.1@2", "lang.2@2", "lang.3@2"]
    assert names(made) == [*first, *second]
    recipe = made.decode(genome(made, "lang.3 lang.0 math.1 math.0@2"))
    assert path(recipe) == ["math.0", "lang.0", "math.1", "lang.3", "math.0", "math.2"]
    blocks = space(pool(8), block=4, scales="none")
    assert names(blocks) == ["lang.0", "math.1-4", "lang.1-4", "math.5-6", "lang.5-6", "lang.7"]


def test_slots_in_the_order_of_the_paper_are_the_models_one_after_another() -> None:
    made = space(order="model", repeats=2, scales="none")
    first = ["math.1", "math.2", "math.3", "lang.0", "lang.1", "lang.2", "lang.3"]
    second = ["math.0@2", "math.1@2", "math.2@2", "lang.0@2", "lang.1@2", "lang.2@2", "lang.3@2"]
    assert names(made) == [*first, *second]


def test_a_path_visits_its_slots_in_order() -> None:
    made = space(order="model", repeats=2, scales="none")
    recipe = made.decode(genome(made, "lang.2 math.2 math.1@2 math.0@2"))
    assert path(recipe) == ["math.0", "math.2", "lang.2", "math.0", "math.1", "math.3"]
    assert {entry.method for entry in recipe.slices} == {"passthrough"}
    outer = {str(entry.slice): entry.inputs for entry in recipe.slices if entry.slice.layer is None}
    assert outer == {"embed": (Input("math"),), "final_norm": (Input("math"),)}
    third = next(entry for entry in recipe.slices if entry.slice == SliceId("mlp", 2))
    assert third.inputs == (Input("lang"),)  # layer 2 of lang is layer 2 of the path
    assert next(e for e in recipe.slices if e.slice == SliceId("mlp", 3)).inputs == (Input("math", 0),)


@pytest.mark.parametrize(
    "config", [{}, {"repeats": 3}, {"fixed": 0}, {"fixed": 2}, {"block": 3}, {"scales": "hop"}, {"order": "model"}]
)
def test_a_search_starts_at_the_input_model(config: dict[str, Any]) -> None:
    made = space(pool(7, head=True), **config)
    recipe = made.decode(made.spec.initial)
    assert path(recipe) == [f"math.{layer}" for layer in range(7)]
    assert {entry.inputs for entry in recipe.slices} == {(Input("math"),)}
    assert all(entry.scale is None for entry in recipe.slices)


def test_input_model_and_head_are_chosen() -> None:
    made = space(pool(4, head=True), input_model="lang", head="base", models=["math", "lang"], scales="none")
    recipe = made.decode(genome(made, "math.1"))
    assert path(recipe) == ["lang.0", "math.1", "lang.3"]
    outer = {str(entry.slice): entry.inputs[0].model for entry in recipe.slices if entry.slice.layer is None}
    assert outer == {"embed": "lang", "final_norm": "lang", "head": "base"}


def test_scales_become_factors_on_what_layers_write() -> None:
    """S is 2 into lang.1 and 2 * 0.5 * -4 = -4 from math.3 on; layers write 1/S and negative S flips norms."""
    made = space(scale_range={"low": -4.0, "high": 4.0})
    recipe = made.decode(genome(made, "lang.1 lang.2", **{"lang.1": 2.0, "lang.2": 0.5, "math.3": -4.0}))
    assert path(recipe) == ["math.0", "lang.1*0.5", "lang.2", "math.3*-0.25"]
    assert scales(recipe, "mlp") == scales(recipe, "attn") == [None, 0.5, None, -0.25]
    assert scales(recipe, "norm") == [None, None, None, -1.0]
    assert scales(recipe, "final_norm") == [-1.0]
    assert scales(recipe, "embed") == [None]


def test_a_negative_scale_that_is_undone_leaves_the_final_norm() -> None:
    made = space(negative_scales=True)
    recipe = made.decode(genome(made, "lang.1", **{"lang.1": -1.0, "math.3": -1.0}))
    assert scales(recipe, "attn") == [None, -1.0, None]
    assert scales(recipe, "norm") == [None, -1.0, None]
    assert scales(recipe, "final_norm") == [None]


def test_the_matrix_scales_a_hop_wherever_it_is_and_has_only_hops_that_can_be() -> None:
    made = space(pool(2), repeats=2, fixed=0, scales="hop")
    assert "math.0>math.0/scale" in names(made)
    assert len(made.spec) == 2 * 4 + 16
    recipe = made.decode(genome(made, "math.0 lang.1 math.0@2 lang.1@2", **{"math.0>lang.1": 0.5}))
    assert path(recipe) == ["math.0", "lang.1*2", "math.0*2", "lang.1*4"]
    once = space(pool(2), order="model", fixed=0, scales="hop")
    assert [n for n in names(once) if ">" in n] == [
        f"{a}>{b}/scale" for a, b in combinations(["math.0", "math.1", "lang.0", "lang.1"], 2)
    ]


def test_relaxed_indicators_take_slots_above_zero() -> None:
    made = space(relaxed=True, relaxed_start=0.25, order="model", scales="none")
    assert [(g.kind, g.low, g.high) for g in made.spec] == [("continuous", -1.0, 1.0)] * 6
    assert made.spec.initial.values == (0.25, 0.25, -0.25, -0.25, -0.25, -0.25)
    assert path(made.decode(genome(made, "lang.3"))) == ["math.0", "lang.3", "math.3"]  # 0 is not above 0


def test_blocks_are_taken_whole_between_the_fixed_layers() -> None:
    made = space(pool(8), order="model", block=4, fixed=1, scales="slot")
    assert names(made)[:6] == ["math.1-4", "math.5-6", "lang.0", "lang.1-4", "lang.5-6", "lang.7"]
    recipe = made.decode(genome(made, "lang.1-4", **{"lang.1-4": 0.5}))
    assert path(recipe) == ["math.0", "lang.1*2", "lang.2*2", "lang.3*2", "lang.4*2", "math.7*2"]


def test_models_of_other_depths() -> None:
    made = space(replace(pool(4), depths=(("lang", 6),)), scales="none")
    assert names(made)[-1] == "lang.5"
    assert path(made.decode(genome(made, "lang.4 lang.5"))) == ["math.0", "lang.4", "lang.5", "math.3"]


@pytest.mark.parametrize(
    ("config", "taken", "message"),
    [
        ({"fixed": 0}, "", "the path is empty; at least one layer"),
        (
            {"max_layers": 5},
            "math.1 math.2 lang.0 lang.1",
            r"the path has 6 layers; at most 5 \(search_space.max_layers\)",
        ),
        ({"min_layers": 4}, "math.1", r"the path has 3 layers; at least 4 \(search_space.min_layers\)"),
        ({"max_uses": 2, "repeats": 3}, "lang.1 lang.1@2 lang.1@3", r"layer 1 of lang comes 3 times; at most 2"),
        ({"max_parameters": 150}, "math.1 math.2", r"a model of 163 parameters; at most 150 \(search_space.max_par"),
    ],
)
def test_bad_paths_are_refused_with_the_reason(config: dict[str, Any], taken: str, message: str) -> None:
    info = pool(4)
    info = replace(info, sizes=(101, *(1, 2, 13), *(5, 5, 5), *(3, 3, 3), *(5, 5, 12), 0))
    made = space(info, **config)
    with pytest.raises(InfeasibleError, match=message):
        made.decode(genome(made, taken))


def test_scales_that_numbers_cannot_carry_are_refused() -> None:
    made = space(scale_range={"low": 0.0, "high": 1e6})
    with pytest.raises(InfeasibleError, match=r"the scales up to layer 1 of the path have the product 0; an absolute"):
        made.decode(genome(made, "lang.1", **{"lang.1": 0.0}))
    lots = dict.fromkeys(["math.1", "math.2", "lang.1"], 1e5)
    with pytest.raises(InfeasibleError, match=r"up to layer 3 of the path have the product 1e\+15"):
        made.decode(genome(made, "math.1 math.2 lang.1", **lots))
    half = space(replace(pool(4), dtype="float16"), scale_range={"high": 300.0})
    with pytest.raises(InfeasibleError, match=r"product 300; an absolute value from 0.00391 to 256 in float16"):
        half.decode(genome(half, "lang.1", **{"lang.1": 300.0}))


def test_the_start_keeps_to_limits() -> None:
    made = space(pool(8), max_layers=5, scales="none")
    assert path(made.decode(made.spec.initial)) == ["math.0", "math.2", "math.4", "math.6", "math.7"]
    made = space(pool(3), min_layers=5, scales="none")
    assert path(made.decode(made.spec.initial)) == ["math.0", "lang.0", "math.1", "lang.1", "math.2"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"models": ["math", "lagn"]}, r"search_space.models names 'lagn'; did you mean 'lang'"),
        ({"models": []}, r"search_space.models is \[\]"),
        ({"input_model": "mth"}, r"search_space.input_model is 'mth'; did you mean 'math'"),
        ({"input_model": "base"}, r"search_space.input_model is 'base'; one of search_space.models: math, lang"),
        ({"head": "lang"}, r"search_space.head is 'lang'; .*it is their embeddings"),
        ({"order": "modle"}, r"search_space.order is 'modle'; did you mean 'model'"),
        ({"repeats": 0}, r"search_space.repeats is 0; a whole number from 1"),
        ({"block": 5}, r"search_space.block is 5; 1 to 4, the layers of math"),
        ({"fixed": 3}, r"search_space.fixed is 3; 0 to 2"),
        ({"scales": "hops"}, r"search_space.scales is 'hops'; did you mean 'hop'"),
        ({"scale_range": {"hgih": 2}}, r"search_space.scale_range has no key 'hgih'; did you mean 'high'"),
        ({"scale_range": {"low": 1.2}}, r"scale_range goes from 1.2 to 1.5 and starts at 1.0"),
        ({"scale_range": {"resolution": 9}}, r"search_space.scale_range.resolution is 9.0; a grid within"),
        ({"scale_range": {"low": "x"}}, r"search_space.scale_range.low is 'x'; a number"),
        ({"negative_scales": True, "scales": "none"}, r"negative_scales is true; search_space.scales is none"),
        ({"max_layers": 1}, r"leaves no path to start from; .*the shortest: the path has 2 layers"),
        ({"min_layers": 9}, r"leaves no path to start from; .*the longest: the path has 8 layers"),
        ({"min_layers": 5, "max_layers": 4}, r"search_space.min_layers is 5; at most search_space.max_layers, 4"),
        ({"max_uses": 0}, r"search_space.max_uses is 0; a whole number from 1"),
        ({"max_parameters": 1e9}, r"search_space.max_parameters is 1000000000.0; this pool does not say"),
        ({"relaxed_start": 0.0}, r"search_space.relaxed_start is 0.0; above 0 and at most 1"),
    ],
)
def test_what_cannot_be_is_refused_at_construction(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        space(**config)


def test_architectures_that_cannot_be_scaled_take_paths_without_scales() -> None:
    post = replace(pool(4), unscalable="layers write through norms", unflippable="layers write through norms")
    with pytest.raises(ConfigError, match=r"cannot be scaled: layers write through norms.*search_space.scales=none"):
        space(post)
    assert len(space(post, scales="none").spec) == 6
    positive = replace(pool(4), unflippable="its norms have no weights")
    with pytest.raises(ConfigError, match=r"negative_scales is true: its norms have no weights"):
        space(positive, negative_scales=True)
    assert len(space(positive).spec) == 13


def test_the_winner_of_the_phase_before_joins_as_the_input_model() -> None:
    merges = ParameterSpace(pool(4), METHODS, method="linear")
    winner = merges.decode(merges.spec.initial)
    made, unknown = space(winner=winner), space(winner=None)
    assert made.spec == unknown.spec
    assert names(made)[:4] == ["math.0", "lang.0", "merged.1", "math.1"]
    recipe = made.decode(made.spec.initial)
    assert path(recipe) == [f"merged.{layer}" for layer in range(4)]
    assert recipe.intermediates == (("merged", winner),)
    assert recipe.models == winner.models
    again = space(winner=recipe)  # its own intermediate is called merged already
    assert names(again)[2] == "merged2.1"
    stages = again.decode(again.spec.initial).stages
    assert list(stages) == ["merged", "merged2"]
    alone = space(winner=winner, input_model="lang", fixed=1, scales="none")
    assert alone.decode(genome(alone)).intermediates == ()  # the path does not come through it


def test_a_large_pool_is_fast() -> None:
    started = time.perf_counter()
    made = space(pool(32), repeats=3, scales="hop")
    assert len(made.spec) == 2 * 32 * 3 - 2 + 64 * 64
    assert time.perf_counter() - started < 2.0
    seconds = []
    genomes = [made.spec.initial, made.spec.genome([g.kind == "boolean" or 1.0 for g in made.spec])]
    for each in genomes:
        started = time.perf_counter()
        recipe = made.decode(each)
        seconds.append(time.perf_counter() - started)
    assert len([e for e in recipe.slices if e.slice.component == "mlp"]) == 192
    assert min(seconds) < 0.2  # milliseconds really; a shared machine may be slow
    assert all(math.isfinite(entry.scale or 1.0) for entry in recipe.slices)
