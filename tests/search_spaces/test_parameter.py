from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from contracts.search_space_contract import SearchSpaceContract, SpaceCase
from contracts.space_samples import METHODS, pool, with_sources

from evomerge.errors import ConfigError, InfeasibleError, RecipeError
from evomerge.genomes.genome import Genome
from evomerge.recipes.method_spec import MethodSpec, ParameterSpec
from evomerge.recipes.pool_info import PoolInfo
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.slices import Input, ModelRef, SliceId
from search_spaces.encoding import difference
from search_spaces.parameter import ParameterSpace

DEMO = [["attn", "mlp", "norm"], ["embed"], ["final_norm", "head"]]

CASES: dict[str, dict[str, Any]] = {
    "demo": {"components": DEMO},
    "everything": {
        "method": "ties",
        "layer_group": 4,
        "parameters": {"lambda": {"low": 0.5, "high": 1.5}},
        "resolution": 0.05,
    },
    "interpolated": {"method": "dare_ties", "interpolation": "linear", "anchors": 4, "mask_seed": 7},
    "interpolated on a grid": {"interpolation": "linear", "anchors": 3, "resolution": 0.1, "components": "all"},
    "whole model": {"method": "slerp", "layer_group": "all", "components": [["attn", "mlp", "norm", "embed"]]},
    "normalised": {"method": "linear", "components": "all", "layer_group": "all", "resolution": 0.25},
    "negative": {"negative_weights": True, "parameters": {"weight": {"high": 1.5}}},
    "every kind": {
        "method": "della",
        "layer_group": 3,
        "components": "all",
        "parameters": {"fusion": ["mean", "vote"], "weight": {"low": 0.1}},
    },
    "by source": {
        "method": ["ties", "linear"],
        "layer_group": 4,
        "parameters": {"weight": {"high": 0.8, "math": 0.25, "lang": {"low": 0.1}}, "ties": {"density": {"lang": 0.5}}},
    },
    "methods": {
        "method": ["task_arithmetic", "ties", "slerp"],
        "layer_group": 3,
        "components": "all",
        "parameters": {"weight": {"low": 0.1}, "lambda": {"high": 1.0}},
    },
    "methods interpolated": {
        "method": ["ties", "della"],
        "interpolation": "linear",
        "anchors": 3,
        "components": "all",
        "parameters": {"weight": {"low": 0.1}},
    },
}


class TestParameterSpace(SearchSpaceContract):
    @pytest.fixture(params=CASES, ids=str)
    def case(self, request: pytest.FixtureRequest) -> SpaceCase:
        info = pool(head=True)
        return SpaceCase(partial(ParameterSpace, info, METHODS, **CASES[request.param]), info, METHODS)


def space(info: PoolInfo | None = None, **config: Any) -> ParameterSpace:
    return ParameterSpace(info or pool(), METHODS, **config)


def names(made: ParameterSpace) -> list[str]:
    return [gene.name for gene in made.spec]


def entry(recipe: Recipe, name: str) -> Any:
    return next(s for s in recipe.slices if s.slice == SliceId.parse(name))


def weights(recipe: Recipe, name: str, parameter: str = "weight") -> list[float]:
    return [dict(source.parameters)[parameter] for source in entry(recipe, name).inputs]


def genome_of(made: ParameterSpace, **values: float) -> Genome:
    """The start, with these genes changed; names end as the genes' names do."""
    named = made.spec.named(made.spec.initial)
    for end, value in values.items():
        matches = [name for name in named if name.endswith(end.replace("__", "/"))]
        assert matches, end
        named |= dict.fromkeys(matches, value)
    return made.spec.genome(list(named.values()))


def test_the_demo_has_sixteen_genes_starting_at_a_half() -> None:
    made = space(components=DEMO)
    groups = ["embed", *(f"layers.{i}" for i in range(6)), "final_norm"]
    assert names(made) == [f"{group}/{source}/weight" for group in groups for source in ("math", "lang")]
    assert made.spec.initial.values == (0.5,) * 16
    low, high = made.spec.bounds
    assert (low.tolist(), high.tolist()) == ([0.0] * 16, [1.0] * 16)


def test_the_demo_decodes_to_a_weighted_sum_of_differences() -> None:
    made = space(components=DEMO)
    recipe = made.decode(made.spec.genome([i / 16 for i in range(16)]))
    assert weights(recipe, "embed") == [0.0, 1 / 16]
    for component in ("attn", "mlp", "norm"):
        assert weights(recipe, f"layers.2.{component}") == [6 / 16, 7 / 16]
    assert weights(recipe, "final_norm") == [14 / 16, 15 / 16]
    found = entry(recipe, "layers.5.mlp")
    assert found.method == "task_arithmetic"
    assert found.base == Input("base")
    assert [source.model for source in found.inputs] == ["math", "lang"]
    assert dict(found.parameters) == {"lambda": 1.0, "normalize": False}
    assert recipe.config_from == "base"
    assert recipe.seed == 0


def test_layer_groups_leave_a_shorter_last_group() -> None:
    made = space(method="slerp", layer_group=4, components="all")
    assert names(made) == ["embed+final_norm/t", "layers.0-3/t", "layers.4-5/t"]
    recipe = made.decode(made.spec.genome([0.1, 0.2, 0.3]))
    found = [dict(entry(recipe, f"layers.{i}.attn").parameters)["t"] for i in range(6)]
    assert found == [0.2, 0.2, 0.2, 0.2, 0.3, 0.3]


def test_slices_share_genes_by_component() -> None:
    made = space(method="slerp", layer_group=3, components=[["mlp"]], info=pool(head=True))
    groups = [
        "embed+final_norm+head",
        "layers.0-2.attn+norm",
        "layers.0-2.mlp",
        "layers.3-5.attn+norm",
        "layers.3-5.mlp",
    ]
    assert names(made) == [f"{group}/t" for group in groups]
    recipe = made.decode(made.spec.genome([0.1, 0.2, 0.3, 0.4, 0.5]))
    assert [dict(s.parameters)["t"] for s in recipe.slices[:4]] == [0.1, 0.2, 0.3, 0.2]
    assert dict(entry(recipe, "layers.5.mlp").parameters)["t"] == 0.5


def test_one_gene_group_for_the_whole_model() -> None:
    made = space(layer_group="all", components=[["attn", "mlp", "norm", "embed", "final_norm", "head"]])
    assert names(made) == ["model/math/weight", "model/lang/weight"]
    recipe = made.decode(made.spec.genome([0.7, 0.3]))
    assert {tuple(weights(recipe, str(s.slice))) for s in recipe.slices} == {(0.7, 0.3)}


def test_interpolation_is_linear_between_anchors() -> None:
    made = space(method="slerp", interpolation="linear", anchors=3, components="all")
    assert names(made) == ["embed+final_norm/t", "layers@0/t", "layers@2.5/t", "layers@5/t"]
    recipe = made.decode(made.spec.genome([0.9, 0.0, 0.5, 1.0]))
    found = [dict(entry(recipe, f"layers.{i}.norm").parameters)["t"] for i in range(6)]
    # By hand: 0.2 a layer, since both halves rise alike.
    assert found == pytest.approx([0.0, 0.2, 0.4, 0.6, 0.8, 1.0], abs=1e-15)
    assert found[0] == 0.0
    assert found[5] == 1.0
    assert dict(entry(recipe, "embed").parameters)["t"] == 0.9


def test_interpolated_values_are_snapped_to_the_grid() -> None:
    made = space(method="slerp", interpolation="linear", anchors=2, components="all", resolution=0.25)
    recipe = made.decode(made.spec.genome([0.5, 0.0, 1.0]))
    found = [dict(entry(recipe, f"layers.{i}.mlp").parameters)["t"] for i in range(6)]
    assert found == [0.0, 0.25, 0.5, 0.5, 0.75, 1.0]  # 0, .2, .4, .6, .8, 1


def test_as_many_anchors_as_layers_is_a_gene_per_layer() -> None:
    smooth = space(method="slerp", interpolation="linear", anchors=6)
    stepped = space(method="slerp")
    values = [i / len(stepped.spec) for i in range(len(stepped.spec))]
    assert smooth.decode(smooth.spec.genome(values)) == stepped.decode(stepped.spec.genome(values))


def test_ranges_from_the_configuration() -> None:
    made = space(
        method="ties",
        layer_group="all",
        components="all",
        parameters={
            "weight": {"low": -0.5, "high": 1.5, "initial": 0.25, "resolution": 0.25},
            "density": 0.3,
            "lambda": {"low": 0.5, "high": 1.5},
        },
        normalize=False,
    )
    inner = [gene for gene in made.spec if gene.name.startswith("layers.0-5/")]
    assert [gene.name.removeprefix("layers.0-5/") for gene in inner] == ["math/weight", "lang/weight", "lambda"]
    assert (inner[0].low, inner[0].high, inner[0].initial, inner[0].resolution) == (-0.5, 1.5, 0.25, 0.25)
    assert (inner[2].low, inner[2].high, inner[2].initial, inner[2].resolution) == (0.5, 1.5, 1.0, None)
    recipe = made.decode(made.spec.initial)
    assert weights(recipe, "layers.0.mlp", "density") == [0.3, 0.3]
    assert dict(entry(recipe, "layers.0.mlp").parameters) == {"lambda": 1.0, "normalize": False}


@pytest.mark.parametrize(("sources", "start"), [(("a",), 0.5), (("a", "b"), 0.5), (("a", "b", "c", "d"), 0.25)])
def test_weights_start_near_the_uniform_average(sources: tuple[str, ...], start: float) -> None:
    made = space(with_sources(pool(), *sources))
    assert {gene.start for gene in made.spec} == {start}


def test_a_range_of_one_value_is_no_gene() -> None:
    made = space(layer_group="all", components="all", method="ties", parameters={"density": {"low": 0.4, "high": 0.4}})
    assert {name.rpartition("/")[2] for name in names(made)} == {"weight"}
    assert weights(made.decode(made.spec.initial), "embed", "density") == [0.4, 0.4]


def test_negative_weights_mirror_the_upper_bound() -> None:
    made = space(negative_weights=True, parameters={"weight": {"high": 1.2}})
    assert {(gene.low, gene.high, gene.start) for gene in made.spec} == {(-1.2, 1.2, 0.5)}


def test_the_mask_seed_enters_the_recipe() -> None:
    one, two = (space(method="dare_ties", mask_seed=seed) for seed in (1, 2))
    genome = one.spec.initial
    assert one.decode(genome).seed == 1
    assert one.decode(genome).hash != two.decode(genome).hash


def test_slerp_takes_two_sources_or_the_base_and_one() -> None:
    def inputs(info: PoolInfo) -> list[str]:
        made = space(info, method="slerp")
        found = entry(made.decode(made.spec.initial), "embed")
        assert found.base is None
        return [source.model for source in found.inputs]

    assert inputs(pool()) == ["math", "lang"]
    assert inputs(with_sources(pool(), "math")) == ["base", "math"]
    assert inputs(with_sources(pool(), "a", "b", base=None)) == ["a", "b"]


def test_models_of_other_depths_are_refused() -> None:
    uneven = replace(pool(4), depths=(("lang", 2),))
    with pytest.raises(ConfigError, match=r"base has 4, math has 4, lang has 2.*search_space=data_flow"):
        ParameterSpace(uneven, METHODS)


@pytest.mark.parametrize("sources", [("a", "b", "c"), ("a",)])
def test_slerp_with_another_number_of_models_is_refused(sources: tuple[str, ...]) -> None:
    info = with_sources(pool(), *sources, base="base" if len(sources) > 2 else None)
    with pytest.raises(ConfigError, match=r"slerp takes exactly 2 source models, or one and a base"):
        space(info, method="slerp")


def test_methods_on_differences_need_a_base() -> None:
    with pytest.raises(ConfigError, match=r"'ties' and the pool has no base.*pool\.base"):
        space(with_sources(pool(), "a", "b", base=None), method="ties")
    linear = space(with_sources(pool(), "a", "b", base=None), method="linear")
    assert linear.decode(linear.spec.initial).config_from == "a"


def test_weights_that_sum_to_zero_are_infeasible() -> None:
    made = space(method="linear", components=DEMO)
    with pytest.raises(InfeasibleError, match=r"weights of slice layers\.3\.attn sum to 0"):
        made.decode(genome_of(made, **{"layers.3/math/weight": 0.0, "layers.3/lang/weight": 0.0}))
    sums = space(method="linear", components=DEMO, normalize=False)
    sums.decode(genome_of(sums, weight=0.0))  # without normalising there is nothing to divide by


def test_depth_of_one_layer() -> None:
    assert names(space(pool(layers=1), method="slerp", components="all")) == ["embed+final_norm/t", "layers.0/t"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"method": "tise"}, r"search_space\.method is 'tise'; did you mean 'ties'"),
        ({"layer_group": 0}, r"search_space\.layer_group is 0; 1 to 6"),
        ({"layer_group": 7}, r"search_space\.layer_group is 7; 1 to 6"),
        ({"layer_group": "lyer"}, r"search_space\.layer_group is 'lyer'; did you mean 'layer'"),
        ({"layer_group": True}, r"search_space\.layer_group is True"),
        ({"components": "eech"}, r"search_space\.components is 'eech'; did you mean 'each'"),
        ({"components": [["mlp"], ["atn"]]}, r"search_space\.components\[1\] names 'atn'; did you mean 'attn'"),
        ({"components": [["mlp"], ["mlp"]]}, r"search_space\.components\[1\] names 'mlp' a second time"),
        ({"components": [[]]}, r"search_space\.components\[0\] is empty"),
        ({"components": [["attn", "embed"]]}, r"puts 'embed', which belongs to no layer, with 'attn'.*layer_group=all"),
        ({"components": [["attn", "embed"]], "interpolation": "linear"}, r"puts 'embed'.*interpolation"),
        ({"interpolation": "lineer"}, r"search_space\.interpolation is 'lineer'; did you mean 'linear'"),
        ({"interpolation": "linear", "anchors": 1}, r"search_space\.anchors is 1; 2 to 6"),
        ({"interpolation": "linear", "anchors": 7}, r"search_space\.anchors is 7; 2 to 6"),
        ({"interpolation": "linear", "layer_group": 2}, r"search_space\.layer_group is 2 with interpolation=linear"),
        ({"parameters": {"wieght": 1.0}}, r"search_space\.parameters has 'wieght'.*did you mean 'weight'"),
        ({"parameters": {"density": 1.0}}, r"'density', unknown to method 'task_arithmetic'"),
        ({"parameters": {"weight": {"hihg": 1.0}}}, r"parameters\.weight has no key 'hihg'; did you mean 'high'"),
        ({"parameters": {"weight": {"low": 2.0}}}, r"parameters\.weight goes from 2\.0 to 1"),
        ({"parameters": {"weight": {"initial": 2.0}}}, r"parameters\.weight\.initial is 2\.0; a number in \[0"),
        ({"parameters": {"weight": {"high": math.nan}}}, r"parameters\.weight\.high is nan; allowed: a finite"),
        ({"parameters": {"weight": True}}, r"parameters\.weight is True"),
        ({"parameters": {"normalize": {"low": 0.0}}}, r"normalize is a range; normalize is true or false"),
        ({"parameters": {"normalize": 0.5}}, r"parameters\.normalize is 0\.5; allowed: true or false"),
        ({"method": "ties", "parameters": {"density": {"high": 2.0}}}, r"density\.high is 2\.0; .*\[0\.0, 1\.0\]"),
        ({"resolution": 0.0}, r"parameters\.weight\.resolution is 0\.0"),
        ({"resolution": 3.0}, r"parameters\.weight\.resolution is 3\.0"),
        ({"parameters": {"weight": 0.5}}, r"the search space has no genes"),
        ({"method": "ties", "negative_weights": True}, r"normalises weights that may be negative.*normalize=false"),
        ({"method": "ties", "parameters": {"weight": {"low": -0.1}}}, r"normalises weights that may be negative"),
        ({"method": "ties", "parameters": {"weight": 0.0}}, r"normalises weights that are all at most 0\.0"),
        ({"method": "ties", "parameters": {"weight": {"high": 0.0}}}, r"all at most 0\.0.*normalize=false"),
        ({"negative_weights": True, "parameters": {"weight": 0.5}}, r"negative_weights is true; .*fixed at 0\.5"),
        ({"method": "slerp", "negative_weights": True}, r"negative_weights is true; method 'slerp' has no weight"),
        ({"method": "slerp", "normalize": False}, r"normalize is false; method 'slerp' has no normalize"),
        ({"normalize": True, "parameters": {"normalize": True}}, r"normalize .*both given"),
        ({"mask_seed": -1}, r"search_space\.mask_seed is -1"),
    ],
    ids=str,
)
def test_what_cannot_be_is_one_line_that_names_the_key(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as raised:
        space(**config)
    assert "\n" not in str(raised.value)


def test_components_that_the_pool_lacks_are_passed_over() -> None:
    tied = space(components=[["head"], ["final_norm"], ["embed"]])
    assert not any("head" in name for name in names(tied))
    untied = space(pool(head=True), components=[["head"], ["final_norm"], ["embed"]])
    assert names(untied)[-2:] == ["head/math/weight", "head/lang/weight"]


@pytest.mark.parametrize("name", CASES)
def test_recipes_are_turned_back_into_genomes(name: str) -> None:
    space = ParameterSpace(pool(head=True), METHODS, **CASES[name])
    rng = np.random.default_rng(7)
    for _ in range(4):
        drawn: list[Any] = []
        for gene in space.spec:
            if gene.kind == "categorical":
                drawn.append(gene.choices[int(rng.integers(len(gene.choices)))])
            else:
                drawn.append(bool(rng.integers(2)) if gene.kind == "boolean" else rng.uniform(gene.low, gene.high))
        recipe = space.decode(space.spec.genome([g.snap(v) for g, v in zip(space.spec, drawn, strict=True)]))
        again = space.decode(space.encode(recipe))
        if "interpolat" not in name:
            assert again.hash == recipe.hash
        for one, other in zip(again.slices, recipe.slices, strict=True):
            assert difference(one, other) == ""


def test_recipes_of_other_spaces_are_refused() -> None:
    info = pool(head=True)
    space = ParameterSpace(info, METHODS, components="all", layer_group="all")
    with pytest.raises(RecipeError, match=r"slice embed has method linear"):
        space.encode(info.linear({"math": 1.0}))
    fine = ParameterSpace(info, METHODS)
    values = [0.1 + 0.001 * number for number in range(len(fine.spec))]
    with pytest.raises(RecipeError, match=r"slice \S+ has weight of math 0\.1"):
        space.encode(fine.decode(fine.spec.genome(values)))
    wide = ParameterSpace(info, METHODS, parameters={"weight": {"high": 2.0}}, components="all", layer_group="all")
    with pytest.raises(RecipeError, match=r"has weight of \w+ 1\.9"):
        space.encode(wide.decode(wide.spec.genome([1.9] * len(wide.spec))))
    other = replace(info, refs=tuple((name, ModelRef("elsewhere")) for name, _ in info.refs))
    with pytest.raises(RecipeError, match="is not the pool's"):
        ParameterSpace(other, METHODS).encode(fine.decode(fine.spec.initial))


def test_values_by_source() -> None:
    """A source's fixed weight is no gene; those of the others are searched within what is said of all."""
    made = space(components="all", layer_group="all", method="ties", parameters={"weight": {"high": 0.8, "math": 0.25}})
    own = ["math/density", "lang/weight", "lang/density"]
    assert names(made) == [f"{group}/{name}" for group in ("embed+final_norm", "layers.0-5") for name in own]
    assert made.spec.genes[1].high == 0.8
    recipe = made.decode(genome_of(made, lang__weight=0.75))
    assert weights(recipe, "embed") == [0.25, 0.75]
    assert made.encode(recipe) == genome_of(made, lang__weight=0.75)


def test_parameters_that_came_later_are_left_out_where_they_are_not_varied() -> None:
    late = ParameterSpec("place", 0.0, per_input=True, tacit=True)
    methods = {"late": MethodSpec("late", (ParameterSpec("alpha", 0.5), late), "required", idempotent=True)}
    for parameters, expected in (({}, ()), ({"place": 0.0}, ()), ({"place": 0.5}, (("place", 0.5),))):
        made = ParameterSpace(pool(), methods, method="late", parameters=parameters)
        slices = made.decode(made.spec.initial).slices
        assert {source.parameters for own in slices for source in own.inputs} == {expected}
        assert {own.parameters for own in slices} == {(("alpha", 0.5),)}
    made = ParameterSpace(pool(), methods, method="late", layer_group="all", parameters={"place": {"high": 1.0}})
    assert names(made)[0].endswith("/math/place")
    assert dict(made.decode(made.spec.initial).slices[0].inputs[0].parameters) == {"place": 0.5}
