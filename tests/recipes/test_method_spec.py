from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from evomerge.errors import ConfigError, RecipeError
from evomerge.recipes.method_spec import ByTensor, MethodSpec, ParameterSpec, Scalar, find_method, method_table

TIES = MethodSpec(
    "ties",
    (
        ParameterSpec("weight", 1.0, per_input=True),
        ParameterSpec("density", 0.5, per_input=True, minimum=0.0, maximum=1.0),
        ParameterSpec("lambda", 1.0, high=2.0),
        ParameterSpec("normalize", True, kind="boolean"),
    ),
    base="required",
)
METHODS = method_table([TIES, MethodSpec("slerp", (ParameterSpec("t", 0.5),), min_inputs=2, max_inputs=2)])


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("weight", -3, None),
        ("weight", 1e38, None),
        ("weight", math.nan, "a finite number"),
        ("weight", math.inf, "a finite number"),
        ("weight", 10**400, "a finite number"),
        ("weight", True, "a finite number"),
        ("weight", "1", "a finite number"),
        ("density", 0.0, None),
        ("density", 1, None),
        ("density", 1.0001, r"a number in \[0\.0, 1\.0\]"),
        ("normalize", False, None),
        ("normalize", 0, "true or false"),
    ],
)
def test_values_are_checked_against_the_declaration(name: str, value: Scalar, allowed: str | None) -> None:
    spec = TIES.parameter(name)
    assert spec is not None
    if allowed is None:
        spec.check(value, "slice embed")
    else:
        with pytest.raises(RecipeError, match=f"slice embed: {name} is .*; allowed: {allowed}"):
            spec.check(value, "slice embed")


def test_parameters_are_told_apart_by_scope() -> None:
    TIES.check_parameters({"weight": 0.5}, "here", per_input=True)
    with pytest.raises(RecipeError, match=r"method 'ties' has no parameter 'weight' for slices; one of: lambda, norm"):
        TIES.check_parameters({"weight": 0.5}, "here", per_input=False)
    with pytest.raises(RecipeError, match="no parameter 'wieght' for inputs; did you mean 'weight'"):
        TIES.check_parameters({"wieght": 0.5}, "here", per_input=True)


def test_defaults_by_scope() -> None:
    assert TIES.defaults(per_input=True) == {"weight": 1.0, "density": 0.5}
    assert TIES.defaults(per_input=False) == {"lambda": 1.0, "normalize": True}
    assert TIES.parameter("gamma") is None


def test_methods_are_found_by_name() -> None:
    assert find_method("ties", METHODS) is TIES
    with pytest.raises(RecipeError, match=r"^slice head: unknown merge method 'tie'; did you mean 'ties'"):
        find_method("tie", METHODS, "slice head")


def test_a_value_by_tensor_is_that_of_the_first_filter_in_the_name() -> None:
    value = ByTensor((("self_attn", 0.1), ("attn.q", 0.2), ("down", 0.3), (None, 0.4)))
    names = ["layers.0.self_attn.q_proj", "layers.0.attn.q_proj", "layers.0.mlp.down_proj", "layers.0.mlp.up_proj"]
    assert [value.at(name) for name in names] == [0.1, 0.2, 0.3, 0.4]


@pytest.mark.parametrize("filters", [(), ("q_proj",), (None, "q_proj"), (None, None), ("", None), (3, None)])
def test_values_by_tensor_end_with_one_for_the_rest(filters: tuple[str | None, ...]) -> None:
    with pytest.raises(RecipeError, match="value by tensor has"):
        ByTensor(tuple((part, 1.0) for part in filters))


def test_every_value_by_tensor_is_checked() -> None:
    TIES.check_parameters({"density": ByTensor((("q", 0.5), (None, 1.0)))}, "here", per_input=True)
    with pytest.raises(RecipeError, match=r"here: density is 1\.5; allowed"):
        TIES.check_parameters({"density": ByTensor((("q", 1.5), (None, 1.0)))}, "here", per_input=True)


@pytest.mark.parametrize(
    ("declare", "message"),
    [
        (lambda: ParameterSpec("t", 2.0, maximum=1.0), r"'t' declares default 2\.0; allowed: a number in \[-inf, 1"),
        (lambda: ParameterSpec("t", 0.5, low=-1.0, minimum=0.0), r"'t' declares low -1\.0"),
        (lambda: ParameterSpec("t", 0.5, high=float("nan")), r"'t' declares high nan"),
        (lambda: ParameterSpec("t", 0.5, low=2.0, high=1.0), r"'t' goes from 2\.0 to 1\.0"),
        (lambda: ParameterSpec("t", 0.5, initial=1.5), r"'t' declares initial 1\.5; a number in \[0\.0, 1"),
        (lambda: ParameterSpec("on", True, kind="boolean", initial=1.0), r"'on' declares initial 1\.0; none"),
        (lambda: ParameterSpec("k", 1.5, kind="integer"), r"'k' declares default 1\.5; allowed: a finite whole"),
        (lambda: ParameterSpec("on", 1, kind="boolean"), r"'on' declares default 1; allowed: true or false"),
        (lambda: ParameterSpec("how", "sum", kind="categorical"), r"'how' has choices \(\)"),
        (lambda: ParameterSpec("how", "max", kind="categorical", choices=("sum",)), r"'how' declares default 'max'"),
        (lambda: MethodSpec("m", (ParameterSpec("t", 0.5),) * 2), r"method 'm' has a parameter 't'; .*each once"),
        (lambda: MethodSpec("m", (ParameterSpec("a b", 0.5),)), r"method 'm' has a parameter 'a b'"),
        (lambda: MethodSpec("m", (), "none", 3, 2), r"method 'm' takes 3 to 2 inputs"),
    ],
)
def test_declarations_that_cannot_be(declare: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        declare()


@pytest.mark.parametrize("value", [1e39, -1e39, 10**400, float("inf"), float("nan")])
def test_a_number_beyond_float32_is_named(value: float) -> None:
    parameter = ParameterSpec("weight", 1.0, per_input=True)
    with pytest.raises(RecipeError, match=r"^slice embed, model math: weight is .*; allowed: .*at most 3\.4e38$"):
        parameter.check(value, "slice embed, model math")
    parameter.check(3.4e38, "slice embed, model math")
