from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from contracts.search_space_contract import SearchSpaceContract, SpaceCase
from contracts.space_samples import METHODS, pool

from evomerge.errors import ConfigError
from evomerge.recipes.recipe import Recipe
from search_spaces.lines import LinesSpace
from search_spaces.parameter import ParameterSpace

CASES: dict[str, dict[str, Any]] = {
    "every layer": {},
    "the line alone": {"parameters": {"weight": 1.0}, "beta": {"low": -0.5}},
    "methods": {"method": ["ties", "task_arithmetic"], "layer_group": 3, "components": "all", "alpha": 0.5},
    "interpolated on a grid": {"interpolation": "linear", "components": "all", "resolution": 0.1},
}


class TestLinesSpace(SearchSpaceContract):
    @pytest.fixture(params=CASES, ids=str)
    def case(self, request: pytest.FixtureRequest) -> SpaceCase:
        info = pool(head=True)
        return SpaceCase(partial(LinesSpace, info, METHODS, **CASES[request.param]), info, METHODS)


def lambdas(recipe: Recipe) -> dict[str, float]:
    return {str(entry.slice): float(dict(entry.parameters)["lambda"]) for entry in recipe.slices}  # type: ignore[arg-type]


def test_lambda_grows_from_the_first_layer_to_the_last() -> None:
    space = LinesSpace(pool(5, head=True), METHODS, parameters={"weight": 0.3, "lambda": 2.0})
    assert [(gene.name, gene.low, gene.high) for gene in space.spec] == [
        ("lines/alpha", 0, 1.5),
        ("lines/beta", 0, 1.5),
    ]
    found = lambdas(space.decode(space.spec.genome([0.25, 0.5])))
    for layer, factor in enumerate([0.25, 0.375, 0.5, 0.625, 0.75]):
        assert {found[f"layers.{layer}.{part}"] for part in ("attn", "mlp", "norm")} == {2 * factor}
    assert found["embed"] == found["final_norm"] == found["head"] == 0.5


def test_it_starts_as_the_space_without_a_line() -> None:
    info = pool()
    options: dict[str, Any] = {"method": "ties", "components": "all", "parameters": {"lambda": {"high": 3.0}}}
    line, plain = LinesSpace(info, METHODS, **options), ParameterSpace(info, METHODS, **options)
    assert [gene.name for gene in line.spec] == [*(gene.name for gene in plain.spec), "lines/alpha", "lines/beta"]
    assert line.decode(line.spec.initial) == plain.decode(plain.spec.initial)
    drawn = line.spec.genome([*plain.spec.initial.values, 0.5, 0.0])
    halved = lambdas(line.decode(drawn))
    assert halved == {name: value / 2 for name, value in lambdas(plain.decode(plain.spec.initial)).items()}


def test_a_pool_of_one_layer() -> None:
    space = LinesSpace(pool(1), METHODS, parameters={"weight": 1.0})
    assert set(lambdas(space.decode(space.spec.genome([0.5, 1.0]))).values()) == {0.5}
    assert space.active(space.spec.initial) == {"lines/alpha"}


def test_equal_slices_have_no_line() -> None:
    info = replace(pool(3), constant=tuple(slice_ for slice_ in pool(3).slices if slice_.layer in (None, 0)))
    space = LinesSpace(info, METHODS, parameters={"weight": 1.0})
    found = lambdas(space.decode(space.spec.genome([0.5, 0.5])))
    assert found["embed"] == found["layers.0.attn"] == 1
    assert (found["layers.1.attn"], found["layers.2.mlp"]) == (0.75, 1)
    assert space.active(space.spec.initial) == {"lines/alpha", "lines/beta"}
    fixed = LinesSpace(info, METHODS, beta=0.3)
    assert "lines/beta" not in fixed.spec.named(fixed.spec.initial)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"method": "linear"},
            r"search_space.method is linear, which has no lambda; .*: dare_ties, task_arithmetic, ties",
        ),
        ({"method": ["ties", "slerp"]}, "search_space.method is slerp, which has no lambda"),
        ({"alpha": {"hihg": 1.0}}, r"search_space\.alpha has no key 'hihg'; did you mean 'high'"),
        ({"beta": {"low": 1.0, "high": 0.5}}, "goes from 1.0 to 0.5"),
    ],
)
def test_what_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LinesSpace(pool(), METHODS, **options)
