from __future__ import annotations

from typing import Any

import pytest

from evomerge.errors import ConfigError
from evomerge.genomes.genome import Gene
from evomerge.recipes.method_spec import MethodSpec, ParameterSpec
from search_spaces.ranges import BySource, Choice, Range, parameter_ranges

METHOD = MethodSpec(
    "della",
    (
        ParameterSpec("weight", 1.0, 0.0, 1.0, per_input=True, searched=True),
        ParameterSpec("density", 0.6, 0.1, 0.9, per_input=True, minimum=0.0, maximum=1.0, searched=True),
        ParameterSpec("epsilon", 0.1, 0.0, 0.2),
        ParameterSpec("rescale", True, kind="boolean"),
    ),
)


def ranges(options: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    given = {"negative_weights": False, "normalize": None, "resolution": None, "key": "space", **changes}
    names = ("math", "code", "chat", *(f"model{i}" for i in range(5)))[: given.pop("inputs", 3)]
    return parameter_ranges(METHOD, options or {}, names, **given)


def test_what_is_searched_unless_told_otherwise() -> None:
    assert ranges() == {
        "weight": Range(0.0, 1.0, 1 / 3),
        "density": Range(0.1, 0.9, 0.6),
        "epsilon": 0.1,
        "rescale": True,
    }


def test_fixed_values_and_ranges() -> None:
    found = ranges({"weight": 1, "density": {"low": 0.2, "initial": None}, "epsilon": {"high": 0.1}, "rescale": False})
    assert found == {
        "weight": 1.0,
        "density": Range(0.2, 0.9, 0.6),
        "epsilon": Range(0.0, 0.1, 0.05),  # its default, 0.1, would be the edge
        "rescale": False,
    }
    assert isinstance(found["weight"], float)


def test_the_grid_is_everyones_unless_they_have_their_own() -> None:
    found = ranges({"weight": {"resolution": 0.25}, "epsilon": {}}, resolution=0.05)
    assert [found[name].resolution for name in ("weight", "density", "epsilon")] == [0.25, 0.05, 0.05]


@pytest.mark.parametrize(
    ("option", "bounds"),
    [({}, (-1.0, 1.0)), ({"high": 1.5}, (-1.5, 1.5)), ({"low": -0.2}, (-0.2, 1.0)), ({"low": 0.0}, (0.0, 1.0))],
)
def test_negative_weights(option: dict[str, float], bounds: tuple[float, float]) -> None:
    weight = ranges({"weight": option}, negative_weights=True)["weight"]
    assert (weight.low, weight.high) == bounds


@pytest.mark.parametrize(
    ("option", "inputs", "initial"), [({}, 1, 0.5), ({}, 8, 0.125), ({"low": 0.2}, 8, 0.2), ({"high": 0.25}, 2, 0.25)]
)
def test_weights_start_near_the_uniform_average(option: dict[str, float], inputs: int, initial: float) -> None:
    assert ranges({"weight": option}, inputs=inputs)["weight"].initial == initial


def test_a_range_makes_a_gene() -> None:
    assert Range(0.1, 0.9, 0.5, 0.2).gene("embed/a/density") == Gene(
        "embed/a/density", "continuous", 0.1, 0.9, 0.5, 0.2
    )


def test_a_start_that_the_method_declares() -> None:
    method = MethodSpec("emr", (ParameterSpec("weight", 1.0, 0.0, 1.5, per_input=True, searched=True, initial=1.0),))
    given: dict[str, Any] = {"negative_weights": False, "normalize": None, "resolution": None, "key": "space"}
    for option, initial in (({}, 1.0), ({"high": 0.8}, 0.8), ({"low": 1.2}, 1.2), ({"initial": 0.3}, 0.3)):
        assert parameter_ranges(method, {"weight": option}, ("a", "b", "c"), **given)["weight"].initial == initial  # type: ignore[union-attr]


def test_values_and_ranges_by_source() -> None:
    # What stands beside the names is of the others, and of those that say less.
    option = {"high": 0.8, "resolution": None, "math": 0.25, "code": {"low": 0.4}}
    assert ranges({"weight": option})["weight"] == BySource(
        {"math": 0.25, "code": Range(0.4, 0.8, 0.4), "chat": Range(0.0, 0.8, 1 / 3)}
    )
    # Of what is not searched, the others keep the default; a range of one number is that number.
    method = MethodSpec(
        "mwa",
        (
            ParameterSpec("metric", 1.0, per_input=True, minimum=0.0),
            ParameterSpec("way", "up", kind="categorical", choices=("up", "down"), per_input=True),
        ),
    )
    given: dict[str, Any] = {"negative_weights": False, "normalize": None, "resolution": None, "key": "space"}
    options = {"metric": {"a": 0.3, "b": {"low": 0.5, "high": 0.5}}, "mwa": {"way": {"b": ["up", "down"]}}}
    assert parameter_ranges(method, options, ("a", "b", "c"), **given) == {
        "metric": BySource({"a": 0.3, "b": 0.5, "c": 1.0}),
        "way": BySource({"a": "up", "b": Choice(("up", "down"), "up"), "c": "up"}),
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight": {"mth": 0.5}}, "space.parameters.weight has no key 'mth'; did you mean 'math'?"),
        ({"weight": {"math": "much"}}, "space.parameters.weight.math is 'much'"),
        ({"density": {"code": {"low": 1.5}}}, "space.parameters.density.code.low is 1.5"),
        ({"density": {"code": {"lo": 0.5}}}, "space.parameters.density.code has no key 'lo'; did you mean 'low'?"),
        ({"epsilon": {"math": 0.1}}, "space.parameters.epsilon has no key 'math'; one of: high, initial"),
    ],
)
def test_mistakes_by_source_name_the_key(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        ranges(options)
    assert message in str(raised.value)
