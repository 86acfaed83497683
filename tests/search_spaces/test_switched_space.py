from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from contracts.search_space_contract import SearchSpaceContract, SpaceCase
from contracts.space_samples import METHODS, pool

from evomerge.errors import ConfigError
from evomerge.recipes.method_spec import MethodSpec, ParameterSpec, method_table
from evomerge.recipes.switches import shared_recipe, switch_of, task_recipe
from evomerge.session.prior import weightings
from search_spaces.parameter import ParameterSpace
from search_spaces.switched import SwitchedSpace

_SELECTIVITY = ParameterSpec("selectivity", 0.4, 0.2, 0.6, per_input=True, minimum=0.0, searched=True)
_RANK = ParameterSpec("rank", 0.1, 0.01, 0.5, per_input=True, minimum=0.0, maximum=1.0)
_RESCALE = ParameterSpec("rescale", True, kind="boolean", per_input=True)
DECLARED = {
    **METHODS,
    **method_table(
        [
            MethodSpec("emr_switch", (_RESCALE,), "required", idempotent=True, family="switches"),
            MethodSpec("tall_switch", (_SELECTIVITY,), "required", idempotent=True, family="switches"),
            MethodSpec("twin_switch", (_RANK,), idempotent=True, family="switches"),
        ]
    ),
}
CASES: dict[str, dict[str, Any]] = {
    "emr": {},
    "tall": {"switch": "tall_switch", "layer_group": 3},
    "choices": {"switch": "emr_switch", "switch_parameters": {"rescale": [True, False]}, "method": ["ties", "linear"]},
    "by task": {"switch": "tall_switch", "switch_parameters": {"selectivity": {"math": 0.3, "lang": {"high": 0.9}}}},
    "ranks on a grid": {"switch": "twin_switch", "switch_parameters": {"rank": {"high": 0.4}}, "resolution": 0.01},
}


class TestSwitchedSpace(SearchSpaceContract):
    @pytest.fixture(params=CASES, ids=str)
    def case(self, request: pytest.FixtureRequest) -> SpaceCase:
        info = pool(head=True)
        return SpaceCase(partial(SwitchedSpace, info, DECLARED, **CASES[request.param]), info, DECLARED)


def test_genes_are_those_of_the_shared_model_and_one_for_each_task() -> None:
    info = pool(2)
    space = SwitchedSpace(info, DECLARED, switch="tall_switch")
    plain = ParameterSpace(info, DECLARED)
    own = ["switch/math/selectivity", "switch/lang/selectivity"]
    assert [gene.name for gene in space.spec] == [*(gene.name for gene in plain.spec), *own]
    genome = space.spec.genome([*plain.spec.initial.values, 0.25, 0.5])
    recipe = space.decode(genome)
    assert shared_recipe(recipe) == plain.decode(plain.spec.initial)
    for entry in recipe.slices:
        assert (entry.method, entry.base and entry.base.model) == ("tall_switch", "base")
        assert [(source.model, dict(source.parameters)) for source in entry.inputs] == [
            ("shared", {}),
            ("math", {"selectivity": 0.25}),
            ("lang", {"selectivity": 0.5}),
        ]
    assert space.active(genome) == {gene.name for gene in space.spec}
    switch = switch_of(task_recipe(recipe, "lang"))
    assert switch is not None
    assert switch.tasks == ("lang",)


def test_equal_slices_are_the_shared_model_s() -> None:
    info = replace(pool(2), constant=tuple(slice_ for slice_ in pool(2).slices if slice_.layer == 0))
    space = SwitchedSpace(info, DECLARED, switch="twin_switch", switch_parameters={"rank": {"high": 0.2}})
    methods = {str(entry.slice): entry.method for entry in space.decode(space.spec.initial).slices}
    assert (methods["layers.0.mlp"], methods["layers.1.mlp"], methods["embed"]) == (
        "passthrough",
        "twin_switch",
        "twin_switch",
    )
    assert space.acting(space.spec.initial, info.constant) == frozenset()


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({}, {"switch": "emr"}, r"search_space.switch is 'emr'.*emr_switch"),
        ({"base": None}, {"method": "linear"}, r"emr_switch' and the pool has no base.*twin_switch"),
        ({"sources": ("math",)}, {}, r"has one task, the only source math"),
        ({}, {"switch_parameters": {"rescale": 0.5}}, r"switch_parameters.rescale is 0.5"),
        ({}, {"switch_parameters": {"rescal": True}}, r"has 'rescal', unknown to emr_switch.*rescale"),
        ({}, {"method": "twin_switch"}, r"method has 'twin_switch', which is a switch"),
        ({}, {"switch": "tall_switch", "switch_parameters": {"selectivity": -1}}, r"selectivity is -1"),
    ],
)
def test_what_cannot_be_is_refused(change: dict[str, Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SwitchedSpace(replace(pool(), **change), DECLARED, **options)


def test_twin_needs_no_base() -> None:
    info = replace(pool(), base=None)
    recipe = SwitchedSpace(info, DECLARED, switch="twin_switch", method="linear").decode
    space = SwitchedSpace(info, DECLARED, switch="twin_switch", method="linear")
    assert {entry.base for entry in recipe(space.spec.initial).slices} == {None}


def test_priors_see_the_weights_of_the_shared_model() -> None:
    space = SwitchedSpace(pool(2), DECLARED, switch="tall_switch")
    found = weightings(space)
    names = [gene.name for gene in space.spec]
    assert {names[number].rpartition("/")[2] for number in found} == {"weight"}
    assert len(found) == len(names) - 2


def test_a_switchs_parameters_by_task() -> None:
    info = pool(2)
    space = SwitchedSpace(
        info, DECLARED, switch="tall_switch", switch_parameters={"selectivity": {"math": 0.3, "lang": {"high": 0.9}}}
    )
    assert [gene.name for gene in space.spec][-1] == "switch/lang/selectivity"
    assert space.spec.genes[-1].high == 0.9
    assert len(space.spec) == len(ParameterSpace(info, DECLARED).spec) + 1
    own = {source.model: dict(source.parameters) for source in space.decode(space.spec.initial).slices[0].inputs}
    assert own["math"] == {"selectivity": 0.3}
    with pytest.raises(ConfigError, match=r"switch_parameters\.selectivity has no key 'mth'; did you mean 'math'"):
        SwitchedSpace(info, DECLARED, switch="tall_switch", switch_parameters={"selectivity": {"mth": 0.3}})
