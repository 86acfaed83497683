"""What evomerge does not read from mergekit files, in one line that names the key and the reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mergekit_plan import filled

from evomerge.errors import RecipeError
from evomerge.mergekit.reader import read_mergekit
from evomerge.models.opening import open_pool

FILE = """
merge_method: ties
base_model: BASE
slices:
- sources:
  - {model: A, layer_range: [0, 2], parameters: {weight: 0.5, density: [0.5, 1]}}
  - {model: BASE, layer_range: [0, 2]}
  parameters: {normalize: [{filter: mlp, value: true}, {value: false}]}
dtype: bfloat16
tokenizer_source: base
"""
STAGES = """
name: one
merge_method: passthrough
slices: [{sources: [{model: A, layer_range: [0, 2]}]}]
---
merge_method: linear
models: [{model: one, parameters: {weight: 0.5}}, {model: B, parameters: {weight: 0.5}}]
"""


def changed(old: str, new: str, file: str = FILE) -> str:
    assert old in file, old
    return file.replace(old, new, 1)


MALFORMED = {
    "empty": ("", "the file is empty; a mapping with merge_method"),
    "a list": ("[merge_method]", "the file is .*; a mapping with merge_method"),
    "two keys": (changed("dtype:", "dtype: float32\ndtype:"), "'dtype' on line 10 is given twice"),
    "an alias": (changed("base_model: BASE", "base_model: &x BASE") + "name: *x", "uses the alias"),
    "a typo": (changed("base_model", "base_modle"), "unknown key base_modle; did you mean 'base_model'"),
    "a typo in a slice": (changed("sources", "source"), r"key slices\[0\]\.source; did you mean 'sources'"),
    "a typo in a source": (
        changed("layer_range", "layers_range"),
        r"sources\[0\]\.layers_range; did you mean",
    ),
    "a typo in a parameter": (changed("density", "densty"), r"parameter slices\[0\]\.sources\[0\]\.parameters\.densty"),
    "a typo in a condition": (
        changed("filter", "filtre"),
        r"parameters\.normalize\[0\]\.filtre; did you mean",
    ),
    "no method": (changed("merge_method: ties\n", ""), "merge_method is missing"),
    "another method": (changed("ties", "tise"), "merge_method is 'tise'; did you mean 'ties'"),
    "nothing": ("{merge_method: linear}", "neither models, slices nor modules are given; one of the three"),
    "both": (FILE + "models: [{model: A}]", "models and slices are given; one of the three"),
    "no sources": (changed("sources:", "sources: []\n  x:"), r"slices\[0\]\.x|sources is \[\]"),
    "a range": (changed("[0, 2]", "[2, 2]"), r"sources\[0\]\.layer_range is \[2, 2\]; the first layer, counted from 0"),
    "half a range": (changed("[0, 2]", "[0]"), r"layer_range is \[0\]; two numbers"),
    "a negative range": (changed("[0, 2]", "[-1, 2]"), r"layer_range is \[-1, 2\]"),
    "text for a range": (changed("[0, 2]", "all"), r"layer_range is 'all'; two numbers"),
    "residual": (changed("  parameters", "  residual_weight: 0.5\n  parameters"), "residual_weight is given"),
    "dtype": (changed("bfloat16", "bf16"), "dtype is 'bf16'; did you mean"),
    "chat template": (FILE + "chat_template: auto", "chat_template is given; the result takes the chat template of"),
    "a token's source": (
        changed("tokenizer_source: base", "tokenizer: {tokens: {a: {sorce: A}}}"),
        r"unknown key tokenizer\.tokens\.a\.sorce; did you mean 'source'",
    ),
    "a token's kind": (
        changed("tokenizer_source: base", "tokenizer: {tokens: {a: {source: {kind: nought}}}}"),
        r"tokenizer\.tokens\.a\.source\.kind is 'nought'; one of: mean, model_token, zero",
    ),
    "a token without a name": (
        changed("tokenizer_source: base", "tokenizer: {tokens: {a: {source: {kind: model_token, model: A}}}}"),
        r"tokenizer\.tokens\.a\.source has token and token_id, or neither",
    ),
    "padding": (
        changed("tokenizer_source: base", "tokenizer: {pad_to_multiple_of: -8}"),
        r"tokenizer\.pad_to_multiple_of is -8; 1 to",
    ),
    "a key of evomerge's": (
        changed("tokenizer_source: base", "tokenizer: {source: A, base: A}"),
        r"unknown key tokenizer\.base",
    ),
    "a union of stages": (
        STAGES + "tokenizer_source: union\n",
        "tokenizer_source of the result makes a vocabulary, and the file has several stages",
    ),
    "two tokenizers": (FILE + "tokenizer: {source: base}", "tokenizer_source and tokenizer are given"),
    "a value": (changed("weight: 0.5", "weight: null"), r"parameters\.weight is None; a finite number"),
    "nan": (changed("weight: 0.5", "weight: .nan"), r"parameters\.weight is nan"),
    "a list of lists": (changed("[0.5, 1]", "[[0.5]]"), r"parameters\.density\[0\] is \[0\.5\]; a finite number"),
    "a mixture": (changed("[0.5, 1]", "[0.5, {value: 1}]"), r"parameters\.density\[0\] is 0\.5; a mapping"),
    "parameters": (changed("{weight: 0.5, density: [0.5, 1]}", "[0.5]"), r"parameters is \[0\.5\]; a mapping"),
    "a model": (changed("model: A", "model: 7"), r"sources\[0\]\.model is 7; a mapping with model"),
    "two adapters": (changed("model: A", "model: a+b+c"), r"model is 'a\+b\+c'; one model, or a model and an adapter"),
    "two revisions": (changed("model: A", "model: a@b@c"), "model is 'a@b@c'; path or path@revision"),
    "an architecture": (
        changed("model: A", "model: {model: a, override_architecture: LlamaForCausalLM}"),
        "override_architecture is given",
    ),
    "modules": ("{merge_method: linear, modules: {default: {}, vision: {}}}", "modules is .*; one module"),
    "a module": ("{merge_method: linear, modules: {vision: {}}}", r"modules\.vision is not a language model's"),
    "an empty module": ("{merge_method: linear, modules: {default: {}}}", r"modules\.default has both .* or neither"),
    "two results": (changed("name: one\n", "", STAGES), "2 stages have no name; one, the result"),
    "no result": (
        changed("---\n", "---\nname: two\n", STAGES).replace("model: one", "model: C"),
        "stages one, two are taken by no other",
    ),
    "a name twice": (changed("---\n", "---\nname: one\n", STAGES), "two stages are called 'one'"),
    "a circle": (changed("model: A", "model: one", STAGES), "stage one takes itself"),
    "a circle of two": (
        changed("model: A", "model: two", STAGES) + "---\nname: two\n" + STAGES.split("---\n")[1],
        "stage (one|two) takes itself",
    ),
    "a stage with a revision": (changed("model: one", "model: one@v1", STAGES), "stage one has a revision"),
    "a typo in a stage": (changed("slices", "slice", STAGES), "stage one: unknown key slice; did you mean 'slices'"),
    "a typo in the result": (changed("models", "model", STAGES), "document 2: unknown key model; did you mean"),
    "base without a base": (
        "{merge_method: linear, tokenizer_source: base, models: [{model: A}], parameters: {weight: 1}}",
        "tokenizer_source is base and there is no base_model",
    ),
    "an evomerge recipe": ("evomerge_recipe: 1", "unknown key evomerge_recipe"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_files_are_refused_in_one_line(name: str) -> None:
    text, message = MALFORMED[name]
    with pytest.raises(RecipeError, match=message) as raised:
        read_mergekit(text, "merge.yaml")
    assert str(raised.value).startswith("merge.yaml: ")
    assert "\n" not in str(raised.value)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damaged_files_are_refused_or_read_never_worse(data: st.DataObject) -> None:
    """Cut a piece out, or put one in: a file that is read or a `RecipeError`, nothing else."""
    text = data.draw(st.sampled_from([FILE, STAGES]))
    at = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(at, min(at + 12, len(text))))
    extra = data.draw(
        st.sampled_from(["", " ", "\n", "- ", ": ", "[", "{", "'", "&a ", "*a", "!!int ", "null", "1e999", "\x00", "3"])
    )
    try:
        read_mergekit(text[:at] + extra + text[end:])
    except RecipeError as error:
        assert "\n" not in str(error)  # noqa: PT017


def twice(name: str, model: str, layers: int) -> str:
    """A stage with the layers of a model twice."""
    source = f"{{sources: [{{model: {model}, layer_range: [0, {layers}]}}]}}"
    return f"{{name: {name}, merge_method: passthrough, slices: [{source}, {source}]}}"


TALL = [twice("s0", "A", 3), *(twice(f"s{i}", f"s{i - 1}", 3 * 2**i) for i in range(1, 12)), twice("s12", "s11", 1)]
DEEP = "\n---\n".join(
    f"{{name: s{i}, merge_method: passthrough, models: [{{model: {f's{i - 1}' if i else 'A'}}}]}}" for i in range(300)
)
MALFORMED["a deep chain"] = (DEEP, "takes stages that take others, 200 deep; 200 at most")
UNFIT = {
    "a tower": ("\n---\n".join(TALL), r"stage s11: the result has 12,288 layers; 10,000 at most"),
    "beyond the last layer": (changed("[0, 2]", "[2, 4]"), r"layer_range is \[2, 4\]; .* has 3 layers"),
    "other numbers of layers": (changed("[0, 2]", "[0, 3]"), r"slices\[0\] takes 3 and 2 layers; as many layers"),
    "the base is no source": (
        changed("  - {model: BASE, layer_range: [0, 2]}\n", ""),
        r"slices\[0\] lacks its base_model .*; mergekit wants it among the sources",
    ),
    "no base": (
        changed("base_model: BASE\n", "").replace("tokenizer_source: base", ""),
        "no base_model; ties",
    ),
    "a model twice": (changed("- {model: BASE", "- {model: A"), r"slices\[0\] has .*a twice"),
    "a required parameter": (changed("weight: 0.5, ", ""), r"slices\[0\]\.sources\[0\] has no weight for model\.embed"),
    "a required parameter for some": (
        changed("weight: 0.5", "weight: {filter: embed, value: 1}"),
        "has no weight for model.norm",
    ),
    "a word for a number": (changed("weight: 0.5", "weight: much"), r"parameters\.weight is 'much'; a number"),
    "a number for a truth value": (changed("value: true", "value: 2"), "normalize is 2; true or false"),
    "out of range": (changed("[0.5, 1]", "[0.5, 2]"), "density is 2.0; allowed: a number in"),
    "another depth": (
        "{merge_method: linear, models: [{model: A, layer_range: [0, 2]}], parameters: {weight: 1}}",
        r"models\[0\]\.layer_range is \[0, 2\]; .* has 3 layers, and models are taken whole; write slices",
    ),
    "half an iteration": (
        "{merge_method: karcher, models: [{model: A}, {model: B}], parameters: {max_iter: [1, 4]}}",
        r"parameters\.max_iter is 2\.5; a whole number",
    ),
    "a stage of another depth": (STAGES, r"models takes 2 and 3 layers; as many layers of every source"),
    "within a stage": (
        changed("[0, 2]", "[0, 4]", STAGES),
        r"^stage one: slices\[0\]\.sources\[0\]\.layer_range is \[0, 4\]",
    ),
    "three models": (
        "{merge_method: slerp, base_model: BASE, models: [{model: A}, {model: B}], parameters: {t: 0.5}}",
        "method 'slerp' was given 3 inputs; it takes 2",
    ),
}


@pytest.mark.parametrize("name", UNFIT)
def test_what_does_not_fit_the_models_is_refused(llamas: Callable[..., dict[str, Path]], name: str) -> None:
    text, message = UNFIT[name]
    read = read_mergekit(filled(text, llamas()))
    pool = open_pool(read.models, read.base)
    with pytest.raises(RecipeError, match=message) as raised:
        read.recipe(pool)
    assert "\n" not in str(raised.value)
