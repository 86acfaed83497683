from __future__ import annotations

import json

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.recipes.method_spec import ByTensor
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.slices import Input, ModelRef, SliceId, SliceRecipe, parameters

SLICES = (SliceId("embed"), *(SliceId(part, layer) for layer in (0, 1) for part in ("attn", "mlp")), SliceId("head"))
MODELS = (("base", ModelRef("b", fingerprint='sha256:"é"')), ("math", ModelRef("org/math", "c0ffee")))
NUMBERS = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False), st.integers(-(2**60), 2**60), st.booleans(), st.text(max_size=4)
)
TENSORS = st.lists(st.tuples(st.text(min_size=1, max_size=3), NUMBERS), max_size=3)
VALUES = st.one_of(NUMBERS, st.builds(lambda some, last: ByTensor((*some, (None, last))), TENSORS, NUMBERS))
PARAMETERS = st.dictionaries(st.text(max_size=6), VALUES, max_size=3).map(parameters)
INPUTS = st.builds(Input, st.sampled_from(["base", "math"]), st.one_of(st.none(), st.integers(0, 9)), PARAMETERS)
SCALES = st.one_of(st.none(), st.sampled_from([-1, 2.0, 0.1]))


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    groups = draw(st.lists(st.tuples(st.lists(INPUTS, min_size=1, max_size=3), PARAMETERS), min_size=1, max_size=3))
    chosen = [draw(st.sampled_from(groups)) for _ in SLICES]
    bases = [draw(st.one_of(st.none(), INPUTS)) for _ in SLICES]
    slices = [
        SliceRecipe(slice_, draw(st.text(max_size=5)), tuple(inputs), own, base, draw(SCALES))
        for slice_, (inputs, own), base in zip(SLICES, chosen, bases, strict=True)
    ]
    tokenizer = draw(st.sampled_from([None, "base", "math"]))
    return Recipe(MODELS, tuple(slices), "bfloat16", "base", draw(st.integers(0, 2**62)), tokenizer_from=tokenizer)


def number(value: object) -> object:
    if isinstance(value, str | bool):
        return value
    assert isinstance(value, int | float)
    return float(value) + 0.0 if isinstance(value, float) or abs(value) <= 2**53 else value


def plain(value: object) -> object:
    if not isinstance(value, ByTensor):
        return number(value)
    entries = [[part, number(scalar)] for part, scalar in value.entries]
    rest = entries.pop()
    while entries and repr(entries[-1][1]) == repr(rest[1]):
        entries.pop()
    return [*entries, rest] if entries else rest[1]


def content(recipe: Recipe) -> dict[str, object]:
    """What the text is to say, as Python values."""
    identity = {name: ref.identity for name, ref in recipe.models}

    def source(entry: Input, slice_: SliceId) -> list[object]:
        layer = slice_.layer if entry.layer is None else entry.layer
        return [identity[entry.model], layer, [[name, plain(value)] for name, value in entry.parameters]]

    slices = [
        [
            str(entry.slice),
            entry.method,
            [source(each, entry.slice) for each in entry.inputs],
            [[name, plain(value)] for name, value in entry.parameters],
            None if entry.base is None else source(entry.base, entry.slice),
            None if entry.scale is None else number(entry.scale),
        ]
        for entry in recipe.slices
    ]
    found = {"dtype": recipe.dtype, "seed": recipe.seed, "config_from": identity["base"], "slices": slices}
    return found | ({"tokenizer_from": identity["math"]} if recipe.tokenizer_from == "math" else {})


@given(recipes())
@settings(max_examples=150, deadline=None)
def test_the_text_is_json_of_the_content(recipe: Recipe) -> None:
    assert recipe.canonical_text() == json.dumps(content(recipe), separators=(",", ":"), sort_keys=True)


def test_numbers_of_numpy_are_spelled_as_python_s() -> None:
    own = parameters({"a": np.float64(0.1), "b": np.float64(1e300)})
    slices = (SliceRecipe(SliceId("embed"), "linear", (Input("base", None, own),)),)
    assert '[["a",0.1],["b",1e+300]]' in Recipe(MODELS, slices, "bfloat16", "base").canonical_text()
