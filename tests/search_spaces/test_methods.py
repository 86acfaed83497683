from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from contracts.space_samples import METHODS, pool, with_sources

from evomerge.errors import ConfigError
from evomerge.genomes.genome import Gene, Genome
from evomerge.merge.methods import specs
from evomerge.recipes.pool_info import PoolInfo
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.slices import Input, SliceId, SliceRecipe
from evomerge.recipes.switches import SWITCHES
from search_spaces.methods import fitting
from search_spaces.parameter import ParameterSpace

THREE = ["task_arithmetic", "ties", "slerp"]


def space(info: PoolInfo | None = None, **config: Any) -> ParameterSpace:
    return ParameterSpace(info or pool(), METHODS, **{"components": "all", "layer_group": 3, **config})


def genes(made: ParameterSpace, group: str) -> list[str]:
    return [gene.name.removeprefix(f"{group}/") for gene in made.spec if gene.name.startswith(f"{group}/")]


def decoded(made: ParameterSpace, **values: Any) -> Recipe:
    """The recipe of the start with these genes changed (``__`` for ``/``, ``_0`` for ``.0``)."""
    named: dict[str, Any] = made.spec.named(made.spec.initial)
    for name, value in values.items():
        ends = [full for full in named if full.endswith(name.replace("__", "/"))]
        assert ends, name
        named |= dict.fromkeys(ends, value)
    return made.decode(Genome(tuple(named.values())))


def entry(recipe: Recipe, name: str) -> SliceRecipe:
    return next(s for s in recipe.slices if s.slice == SliceId.parse(name))


def test_every_group_chooses_a_method_and_methods_share_what_they_declare_alike() -> None:
    made = space(method=THREE)
    assert [gene.name for gene in made.spec if gene.kind == "categorical"] == [
        "embed+final_norm/method",
        "layers.0-2/method",
        "layers.3-5/method",
    ]
    assert made.spec.genes[0].choices == tuple(THREE)
    assert genes(made, "layers.0-2") == [
        "method",
        "math/weight",  # of task_arithmetic and ties
        "ties/math/density",
        "lang/weight",
        "ties/lang/density",
        "slerp/t",
    ]


def test_each_group_is_merged_by_its_method() -> None:
    made = space(method=THREE)
    values = {"layers.0-2/method": "slerp", "layers.0-2/slerp/t": 0.25, "layers.3-5/method": "ties"}
    named = {**made.spec.named(made.spec.initial), **values}
    recipe = made.decode(Genome(tuple(named.values())))
    first, last, embed = (entry(recipe, name) for name in ("layers.1.mlp", "layers.4.attn", "embed"))
    assert (first.method, first.base, first.parameters) == ("slerp", None, (("t", 0.25),))
    assert first.inputs == (Input("math"), Input("lang"))
    assert (last.method, last.base) == ("ties", Input("base"))
    assert [dict(i.parameters) for i in last.inputs] == [{"weight": 0.5, "density": 0.55}] * 2
    assert embed.method == "task_arithmetic"
    assert [dict(i.parameters) for i in embed.inputs] == [{"weight": 0.5}] * 2
    recipe.check(METHODS)


def test_genes_of_methods_that_are_not_chosen_are_silent() -> None:
    made = space(method=THREE)
    plain = decoded(made, method="task_arithmetic")
    assert decoded(made, method="task_arithmetic", slerp__t=0.9, density=0.2) == plain
    assert decoded(made, method="task_arithmetic", weight=0.9) != plain
    assert decoded(made, method="slerp", weight=0.9) == decoded(made, method="slerp")
    assert decoded(made, method="slerp", slerp__t=0.9) != decoded(made, method="slerp")


def test_one_method_in_a_list_is_one_method() -> None:
    assert space(method=["ties"]).spec == space(method="ties").spec


def test_what_is_explored_differently_has_a_gene_for_each_method() -> None:
    made = space(method=["ties", "dare_ties", "della"], parameters={"dare_ties": {"density": {"low": 0.5}}})
    assert genes(made, "layers.3-5") == [
        "method",
        "math/weight",  # declared alike but for the default
        "math/density",  # of ties and della
        "dare_ties/math/density",
        "lang/weight",
        "lang/density",
        "dare_ties/lang/density",
        "della/rank",
        "della/rescale",
    ]
    low = {gene.name: gene.low for gene in made.spec}
    assert (low["layers.3-5/math/density"], low["layers.3-5/dare_ties/math/density"]) == (0.1, 0.5)


def test_equal_names_with_other_declarations_are_not_shared() -> None:
    made = space(with_sources(pool(), "math"), method=["slerp", "nearswap"])
    assert genes(made, "layers.0-2") == ["method", "slerp/t", "nearswap/t"]
    assert entry(decoded(made, method="slerp"), "embed").inputs == (Input("base"), Input("math"))
    assert entry(decoded(made, method="nearswap"), "embed").inputs == (Input("math"),)


def test_two_shared_sets_of_one_name() -> None:
    options = {name: {"density": {"low": 0.5}} for name in ("dare_ties", "della")}
    methods = METHODS | {"trim": METHODS["ties"].__class__("trim", METHODS["ties"].parameters, "required")}
    chosen = ["ties", "trim", "dare_ties", "della"]
    made = ParameterSpace(pool(), methods, method=chosen, layer_group="all", components="all", parameters=options)
    names = genes(made, "layers.0-5")
    assert "math/density" in names
    assert "dare_ties+della/math/density" in names


def test_options_of_one_method_add_to_those_of_all() -> None:
    options = {"weight": {"low": 0.1, "high": 0.8}, "ties": {"weight": {"high": 1.5, "low": None}, "density": 0.3}}
    made = space(method=THREE, parameters=options)
    bounds = {gene.name: (gene.low, gene.high) for gene in made.spec}
    assert bounds["layers.0-2/task_arithmetic/math/weight"] == (0.1, 0.8)
    assert bounds["layers.0-2/ties/math/weight"] == (0.1, 1.5)
    ties = entry(decoded(made, method="ties"), "embed")
    assert [dict(source.parameters)["density"] for source in ties.inputs] == [0.3, 0.3]
    alone = space(method="ties", parameters=options)
    assert {(gene.low, gene.high) for gene in alone.spec} == {(0.1, 1.5)}


def test_normalize_of_one_method() -> None:
    made = space(method=["linear", "task_arithmetic"], normalize=False, parameters={"linear": {"normalize": True}})
    found = [
        dict(entry(decoded(made, method=name), "embed").parameters)["normalize"]
        for name in ("linear", "task_arithmetic")
    ]
    assert found == [True, False]


def test_whole_numbers_words_and_truth_values() -> None:
    fixed = space(method="della")
    assert "della" not in {gene.name for gene in fixed.spec}
    assert genes(fixed, "layers.0-2")[-2:] == ["rank", "rescale"]  # declared as searched
    options = {"rank": {"low": 2, "high": 5}, "fusion": ["vote", "sum"], "rescale": False}
    made = space(method="della", parameters=options, resolution=0.05)
    by_name = {gene.name: gene for gene in made.spec}
    assert by_name["layers.0-2/rank"] == Gene("layers.0-2/rank", "integer", 2, 5, 4)
    assert by_name["layers.0-2/fusion"] == Gene(
        "layers.0-2/fusion", "categorical", initial="sum", choices=("vote", "sum")
    )
    assert "layers.0-2/rescale" not in by_name
    found = entry(decoded(made, rank=3, fusion="vote"), "layers.0.mlp")
    assert dict(found.parameters) == {"rank": 3, "fusion": "vote", "rescale": False}
    assert isinstance(dict(found.parameters)["rank"], int)


def test_a_list_of_truth_values() -> None:
    made = space(method="karcher", parameters={"iterations": {"low": 1, "high": 3}})
    assert {gene.kind for gene in made.spec} == {"continuous", "integer"}
    both = space(method="ties", parameters={"normalize": [True, False]})
    gene = next(gene for gene in both.spec if gene.name.endswith("normalize"))
    assert (gene.kind, gene.start) == ("boolean", True)
    assert dict(entry(decoded(both, normalize=False), "embed").parameters)["normalize"] is False
    one = space(method="ties", parameters={"normalize": [False]})
    assert not any(gene.name.endswith("normalize") for gene in one.spec)


def test_methods_come_from_the_nearer_anchor() -> None:
    made = space(method=["ties", "slerp"], interpolation="linear", anchors=2, layer_group="layer")
    named = {
        **made.spec.named(made.spec.initial),
        "layers@0/method": "slerp",
        "layers@0/slerp/t": 0.0,
        "layers@5/slerp/t": 1.0,
        "layers@0/ties/math/weight": 0.0,
    }

    def layers(**values: Any) -> list[SliceRecipe]:
        recipe = made.decode(Genome(tuple({**named, **values}.values())))
        return [entry(recipe, f"layers.{i}.mlp") for i in range(6)]

    split = layers(**{"layers@5/method": "ties"})
    assert [found.method for found in split] == ["slerp"] * 3 + ["ties"] * 3
    assert [dict(found.parameters)["t"] for found in split[:3]] == [0.0] * 3
    assert {dict(found.inputs[0].parameters)["weight"] for found in split[3:]} == {0.5}  # the right anchor's own
    same = layers(**{"layers@5/method": "slerp"})
    assert [dict(found.parameters)["t"] for found in same] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])


def test_equally_near_anchors_give_the_earlier_method() -> None:
    made = space(pool(layers=3), method=["ties", "slerp"], interpolation="linear", anchors=2, layer_group="layer")
    named = {**made.spec.named(made.spec.initial), "layers@0/method": "slerp", "layers@2/method": "ties"}
    assert entry(made.decode(Genome(tuple(named.values()))), "layers.1.mlp").method == "slerp"


def test_words_and_whole_numbers_between_anchors() -> None:
    options = {"fusion": ["sum", "mean", "vote"], "rank": {"low": 1, "high": 8}}
    made = space(method="della", interpolation="linear", anchors=2, layer_group="layer", parameters=options)
    ends = {"rank": (1, 8), "fusion": ("vote", "mean"), "rescale": (True, False)}
    named: dict[str, Any] = made.spec.named(made.spec.initial)
    for name, values in ends.items():
        named |= {f"layers@0/{name}": values[0], f"layers@5/{name}": values[1]}
    recipe = made.decode(Genome(tuple(named.values())))
    found = [dict(entry(recipe, f"layers.{i}.mlp").parameters) for i in range(6)]
    assert [values["rank"] for values in found] == [1, 2, 4, 5, 7, 8]  # 1, 2.4, 3.8, 5.2, 6.6, 8
    assert [values["fusion"] for values in found] == ["vote"] * 3 + ["mean"] * 3
    assert [values["rescale"] for values in found] == [True] * 3 + [False] * 3


def test_optional_bases_are_used_when_there_is_one() -> None:
    with_base = decoded(space(method="karcher"))
    assert entry(with_base, "embed").base == Input("base")
    without = decoded(space(with_sources(pool(), "a", "b", base=None), method="karcher"))
    assert entry(without, "embed").base is None
    single = entry(decoded(space(with_sources(pool(), "a"), method="karcher")), "embed")
    assert ([i.model for i in single.inputs], single.base) == (["base", "a"], None)


def test_the_methods_that_fit_a_pool() -> None:
    assert fitting(pool(), METHODS) == sorted(set(METHODS) - {"nearswap"})
    assert fitting(with_sources(pool(), "a", "b", "c", base=None), METHODS) == ["karcher", "linear"]


@pytest.mark.parametrize("name", sorted(set(specs()) - {"linear", *SWITCHES}))
def test_every_registered_method_makes_a_space(name: str) -> None:
    """Alone where something of it is searched, and beside another; with all that can be searched searched."""
    methods = specs()
    spec = methods[name]
    info = with_sources(pool(), *"ab"[: min(spec.max_inputs or 2, 2)])
    options: dict[str, Any] = {}
    for parameter in spec.parameters:
        if parameter.kind in ("boolean", "categorical") and parameter.name != "normalize":
            options[parameter.name] = list(parameter.choices) or [True, False]
        elif parameter.kind in ("continuous", "integer"):
            options[parameter.name] = {}
    rng = np.random.default_rng(0)
    for chosen in ([name], ["linear", name]) if options else (["linear", name],):
        made = ParameterSpace(info, methods, method=chosen, layer_group=3, components="all", parameters={name: options})
        made.decode(made.spec.initial).check(methods)
        found = [made.decode(made.spec.sample(rng)) for _ in range(10)]
        for recipe in found:
            recipe.check(methods)
        assert {entry.method for recipe in found for entry in recipe.slices} == set(chosen)
        assert len({recipe.hash for recipe in found}) > 1


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"method": []}, r"search_space\.method is \[\]; one or more"),
        ({"method": ["ties", "ties"]}, r"method is \['ties', 'ties'\]; .*each once"),
        ({"method": ["ties", "slrp"]}, r"method lists 'slrp'; did you mean 'slerp'.*imports="),
        ({"method": "blend"}, r"method is 'blend'.*a method of your own needs imports="),
        ({"method": ["ties", "nearswap"]}, r"'nearswap' and the pool has 2 .*exactly 1 .*fit this pool: .*ties"),
        ({"method": THREE, "parameters": {"dare_ties": {}}}, r"'dare_ties', a method that search_space\.method does"),
        ({"method": THREE, "parameters": {"epsilon": 1}}, r"'epsilon', unknown to the methods task_arithmetic, ties"),
        (
            {"method": THREE, "parameters": {"ties": {"densty": 1}}},
            r"parameters\.ties has 'densty'; did you mean 'dens",
        ),
        ({"method": THREE, "parameters": {"ties": 0.5}}, r"parameters\.ties is 0\.5; options of the method"),
        (
            {"method": THREE, "parameters": {"ties": {"density": 2.0}}},
            r"parameters\.ties\.density is 2\.0; .*\[0\.0, 1",
        ),
        ({"method": ["slerp", "nearswap"], "normalize": True}, r"normalize is true; the methods slerp, nearswap have"),
        ({"method": THREE, "negative_weights": True}, r"method 'ties' normalises weights that may be negative"),
        ({"method": "della", "parameters": {"rank": {"low": 1.5}}}, r"rank\.low is 1\.5; allowed: a whole number"),
        ({"method": "della", "parameters": {"rank": {"resolution": 2}}}, r"rank\.resolution is 2; none"),
        ({"method": "della", "parameters": {"rank": 2.5}}, r"rank is 2\.5; allowed: a whole number"),
        ({"method": "della", "parameters": {"rank": [1, 2]}}, r"rank is a list; .*rank=\{low: \.\.\., high: \.\.\.\}"),
        ({"method": "della", "parameters": {"fusion": "max"}}, r"fusion is 'max'; allowed: sum or mean or vote"),
        ({"method": "della", "parameters": {"fusion": ["sum", "max"]}}, r"fusion is 'max'; allowed"),
        ({"method": "della", "parameters": {"fusion": ["sum", "sum"]}}, r"fusion is \['sum', 'sum'\]; .*each once"),
        ({"method": "della", "parameters": {"fusion": []}}, r"fusion is \[\]; one or more of sum, mean, vote"),
        ({"method": "della", "parameters": {"fusion": {"low": 0}}}, r"fusion is a range; fusion is one of sum"),
        ({"method": "ties", "parameters": {"weight": {"low": "0.1"}}}, r"weight\.low is '0\.1'; allowed: a finite"),
        ({"method": "ties", "parameters": {"weight": {"resolution": "x"}}}, r"weight\.resolution is 'x'; a number"),
    ],
    ids=str,
)
def test_what_cannot_be_is_one_line_that_names_the_key(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as raised:
        space(**config)
    assert "\n" not in str(raised.value)
