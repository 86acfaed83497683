"""Files of mergekit's form with methods and parameters that mergekit does not have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from mergekit_plan import filled

from evomerge.errors import RecipeError
from evomerge.mergekit.reader import read_mergekit
from evomerge.mergekit.writer import to_mergekit
from evomerge.models.opening import open_pool
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.slices import SliceId

FILE = """
merge_method: delta_guided
base_model: BASE
models:
- {model: A, parameters: {weight: [0.5, 1.5]}}
- {model: B}
parameters: {power: 3, lambda: [{filter: mlp, value: 0.5}, {value: 1}]}
"""


@pytest.fixture(scope="module")
def folders(llamas: Callable[..., dict[str, Path]]) -> dict[str, Path]:
    return llamas(layers=3)


def read(text: str, folders: dict[str, Path]) -> Recipe:
    file = read_mergekit(filled(text, folders))
    return file.recipe(open_pool(file.models, file.base, dtype=file.dtype))


def test_methods_of_evomerges_are_read_as_mergekits_are(folders: dict[str, Path]) -> None:
    recipe = read(FILE, folders)
    assert {(own.method, own.base and own.base.model) for own in recipe.slices} == {("delta_guided", "base")}
    by_slice = {own.slice: own for own in recipe.slices}
    assert [dict(own.parameters)["lambda"] for own in (by_slice[SliceId("mlp", 1)], by_slice[SliceId("attn", 1)])] == [
        0.5,
        1.0,
    ]
    assert {dict(own.parameters)["power"] for own in recipe.slices} == {3}
    weights = [[dict(i.parameters)["weight"] for i in by_slice[SliceId("attn", layer)].inputs] for layer in range(3)]
    assert weights == [[0.5, 1.0], [1.0, 1.0], [1.5, 1.0]]
    with pytest.raises(RecipeError, match="its method 'delta_guided' is none of linear"):
        to_mergekit(recipe, open_pool({name: str(path) for name, path in folders.items()}, "base").layout)


def test_parameters_that_mergekit_does_not_have_are_evomerges(folders: dict[str, Path]) -> None:
    models = "merge_method: ties\nbase_model: BASE\nmodels: [{model: A, parameters: {weight: 1}}]\n"
    text = f"{models}parameters: {{scope: model}}"
    assert {dict(own.parameters)["scope"] for own in read(text, folders).slices} == {"model"}
    without = text.replace("parameters: {scope: model}", "")
    assert {dict(own.parameters)["scope"] for own in read(without, folders).slices} == {"tensor"}
    # mergekit's karcher knows no weights and passes them over; evomerge's has them.
    text = "merge_method: karcher\nmodels: [{model: A, parameters: {weight: 3}}, {model: B}]"
    file = read_mergekit(filled(text, folders))
    assert file.notes == ("models[0].parameters.weight is no parameter of karcher: ignored, as mergekit does",)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("delta_guided", "delta_guidd", "merge_method is 'delta_guidd'; did you mean 'delta_guided'"),
        ("delta_guided", "tall_switch", "'tall_switch', a switch on a merged model.*--switch tall_switch"),
        ("delta_guided", "fisher", "'fisher', which reads statistics of data"),
        ("power", "powr", r"parameters\.powr; did you mean 'power'"),
        ("power", "penalty", r"parameters\.penalty is no parameter of delta_guided; one of: lambda, power, weight"),
        ("weight: [0.5, 1.5]", "power: 2", r"models\[0\]\.parameters\.power is not given for a model; one of: weight"),
        ("power: 3", "power: 2.5", r"parameters\.power is 2\.5; a whole number"),
        ("power: 3", "power: 17", r"power is 17; allowed: a whole number in \[0"),
        ("delta_guided", "mwa", "parameters.power is no parameter of mwa; one of: metric, penalty, weight"),
        ("base_model: BASE\n", "", "models has no base_model; delta_guided needs one"),
    ],
)
def test_mistakes(folders: dict[str, Path], old: str, new: str, message: str) -> None:
    assert old in FILE
    with pytest.raises(RecipeError, match=message):
        read(FILE.replace(old, new), folders)


def test_a_base_that_a_method_does_not_have_is_no_input(folders: dict[str, Path]) -> None:
    text = "merge_method: ema\nbase_model: BASE\nmodels: [{model: A}, {model: B}]\nparameters: {rate: 0.3}"
    with pytest.raises(RecipeError, match="ema takes no base; leave it out, or list it among the models"):
        read(text, folders)
    assert [i.model for i in read(text.replace("base_model: BASE\n", ""), folders).slices[0].inputs] == ["a", "b"]
    listed = read(text.replace("[{model: A}", "[{model: BASE}, {model: A}"), folders)
    assert [i.model for i in listed.slices[0].inputs] == ["base", "a", "b"]
