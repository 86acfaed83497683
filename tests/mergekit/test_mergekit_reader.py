"""mergekit files are read as mergekit itself plans them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from mergekit_plan import assert_reads_as, filled

from evomerge.mergekit.document import looks_like_mergekit
from evomerge.mergekit.reader import read_mergekit
from evomerge.mergekit.references import name_models, read_reference
from evomerge.mergekit.writer import to_mergekit
from evomerge.models.opening import open_pool
from evomerge.models.pool import Pool
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.yaml_reader import dump_recipe, load_recipe

FILES = {
    "linear": """
merge_method: linear
models:
- {model: BASE, parameters: {weight: 1}}
- {model: A, parameters: {weight: 1e-1}}
parameters: {normalize: false}
dtype: float16
""",
    "a base that is an input, settings of the whole file": """
merge_method: linear
base_model: BASE
models: [{model: A}, {model: B, parameters: {weight: 0.7}}]
parameters: {weight: 0.25, int8_mask: true}
""",
    "gradients": """
merge_method: slerp
base_model: A
models: [{model: B}, {model: A}]
parameters:
  t:
  - {filter: self_attn, value: [0, 0.5, 0.3, 0.7, 1]}
  - {filter: mlp, value: [1, 0.5, 0.7, 0.3, 0]}
  - {value: 0.5}
dtype: bfloat16
""",
    "slices, filters by projection, one setting": """
merge_method: ties
base_model: BASE
slices:
- sources:
  - {model: A, layer_range: [0, 2], parameters: {density: [1, 0.1], weight: {filter: q_proj, value: 0.3}}}
  - {model: B, layer_range: [1, 3], parameters: {weight: [{filter: k_proj, value: 0.9}, {filter: '*', value: 0.2}]}}
  - {model: BASE, layer_range: [0, 2]}
  parameters: {weight: 0.5, normalize: [true, false]}
- sources:
  - {model: BASE, layer_range: [2, 3]}
  - {model: B, layer_range: [2, 3], parameters: {weight: [0.25, 0.75], density: 0.5}}
parameters: {lambda: [{filter: norm, value: 0.5}], rescale: true}
dtype: float32
""",
    "filters with numbers, of the sources' own layers": """
merge_method: linear
slices:
- sources:
  - {model: A, layer_range: [0, 3], parameters: {weight: [{filter: layers.2., value: 0.3}, {value: 0.6}]}}
  - {model: B, layer_range: [0, 3], parameters: {weight: [{filter: '1.mlp', value: 0.1}, {value: 0.4}]}}
- sources:
  - {model: A, layer_range: [1, 3], parameters: {weight: [{filter: layers.2., value: 0.3}, {value: 0.6}]}}
  - {model: B, layer_range: [0, 2], parameters: {weight: [{filter: layers.0.mlp.up, value: 0.1}, {value: 0.4}]}}
  parameters: {normalize: [{filter: layers.4, value: false}, {value: true}]}
""",
    "a module": """
merge_method: dare_ties
base_model: BASE
modules:
  default:
    parameters: {weight: 0.5, lambda: 2}
    slices:
    - sources:
      - {model: A, layer_range: [0, 3], parameters: {density: [0.9, 0.5]}}
      - {model: BASE, layer_range: [0, 3]}
parameters: {lambda: 3, rescale: [false, true]}
""",
    "a stack": """
merge_method: passthrough
base_model: B
slices:
- sources: [{model: A, layer_range: [0, 2]}]
- sources: [{model: B, layer_range: [1, 3], parameters: {scale: [{filter: o_proj, value: 0.5}, {value: 1}]}}]
- sources: [{model: A, layer_range: [1, 3]}]
""",
    "nuslerp without a base": """
merge_method: nuslerp
models: [{model: A, parameters: {weight: [0, 1]}}, {model: B, parameters: {weight: 0.5}}]
parameters: {nuslerp_flatten: false, nuslerp_row_wise: '1'}
""",
    "nuslerp with a base": """
merge_method: nuslerp
base_model: BASE
models: [{model: A, parameters: {weight: 0.4}}, {model: B, parameters: {weight: 0.5}}]
""",
    "a base in one slice": """
merge_method: multislerp
slices:
- base_model: BASE
  sources:
  - {model: A, layer_range: [1, 3], parameters: {weight: 1}}
  - {model: BASE, layer_range: [0, 2]}
  - {model: B, layer_range: [1, 3], parameters: {weight: 2}}
- sources:
  - {model: A, layer_range: [0, 1], parameters: {weight: 1}}
  - {model: B, layer_range: [0, 1], parameters: {weight: 2}}
parameters: {normalize_weights: false, eps: 1e-7}
""",
    "karcher": "{merge_method: karcher, models: [{model: A}, {model: B}, {model: BASE}], parameters: {max_iter: 5}}",
    "della": """
merge_method: della
base_model: BASE
models:
- {model: A, parameters: {weight: 0.5, density: 0.5, epsilon: 0.1}}
- {model: B, parameters: {weight: 0.25, density: 0.7}}
""",
    "breadcrumbs": """
merge_method: breadcrumbs_ties
base_model: BASE
models: [{model: A, parameters: {weight: 0.5, density: 0.9, gamma: 0.02}}]
""",
    "model_stock": "{merge_method: model_stock, base_model: BASE, models: [{model: A}, {model: B}]}",
    "nearswap": "{merge_method: nearswap, base_model: BASE, models: [{model: A}], parameters: {t: 0.001}}",
    "arcee_fusion": "{merge_method: arcee_fusion, base_model: BASE, models: [{model: A}]}",
    "ram": "{merge_method: ram, base_model: BASE, models: [{model: A}, {model: B}], parameters: {epsilon: 1e-4}}",
    "ramplus": "{merge_method: ramplus_tl, base_model: BASE, models: [{model: A}], parameters: {r: 0.2}}",
    "sce": "{merge_method: sce, base_model: BASE, models: [{model: A}, {model: B}], parameters: {select_topk: 0.1}}",
}


@pytest.fixture(scope="module")
def folders(llamas: Callable[..., dict[str, Path]]) -> dict[str, Path]:
    return llamas(layers=3)


def read(text: str) -> tuple[Recipe, Pool]:
    file = read_mergekit(text)
    pool = open_pool(file.models, file.base, dtype=file.dtype)
    return file.recipe(pool), pool


@pytest.mark.parametrize("name", FILES)
def test_files_mean_what_mergekit_plans(folders: dict[str, Path], name: str) -> None:
    text = filled(FILES[name], folders)
    recipe, pool = read(text)
    assert_reads_as(recipe, pool.layout, text)


@pytest.mark.parametrize("name", FILES)
def test_what_was_read_is_written_and_read_the_same(folders: dict[str, Path], name: str) -> None:
    recipe, pool = read(filled(FILES[name], folders))
    again, _ = read(to_mergekit(recipe, pool.layout))
    assert again.hash == recipe.hash
    assert load_recipe(dump_recipe(recipe)) == recipe


STAGES = """
# The order of documents does not matter.
merge_method: slerp
base_model: both
models: [{model: both}, {model: C}]
parameters: {t: 0.3}
out_dtype: bfloat16
---
name: taller
merge_method: passthrough
slices:
- sources: [{model: A, layer_range: [0, 2]}]
- sources: [{model: A, layer_range: [1, 3]}]
dtype: float32
---
name: both
merge_method: ties
base_model: BASE
slices:
- sources:
  - {model: taller, layer_range: [1, 4], parameters: {weight: [0.2, 0.8], density: 0.5}}
  - {model: BASE, layer_range: [0, 3]}
tokenizer_source: B
---
"""


def test_stages_are_intermediates(folders: dict[str, Path]) -> None:
    file = read_mergekit(filled(STAGES, folders))
    assert list(file.models) == ["base", "a", "b", "c"]
    assert (file.base, file.dtype, file.notes) == ("base", "bfloat16", ())
    pool = open_pool(file.models, file.base, dtype=file.dtype)
    recipe = file.recipe(pool)
    assert list(recipe.stages) == ["taller", "both"]
    taller, both = recipe.stages.values()
    assert [e.inputs[0].layer for e in taller.slices if e.slice.component == "attn"] == [None, None, 1, 2]
    assert [i.model for i in both.slices[0].inputs] == ["taller"]
    assert [(e.inputs[0].layer, e.base.layer if e.base else 0) for e in both.slices if e.slice.component == "mlp"] == [
        (1, None),
        (2, None),
        (3, None),
    ]
    weights = [dict(e.inputs[0].parameters)["weight"] for e in both.slices if e.slice.component == "mlp"]
    assert weights == [0.2, 0.5, 0.8]
    assert [i.model for i in recipe.slices[0].inputs] == ["both", "c"]
    assert [r.dtype for r in (taller, both, recipe)] == ["float32", "float32", "bfloat16"]
    # An intermediate brings the configuration of its base and the tokenizer that it was given.
    assert (recipe.config_from, recipe.tokenizer_from) == ("base", "b")
    again, _ = read(to_mergekit(recipe, pool.layout))
    assert again.hash == recipe.hash
    assert load_recipe(dump_recipe(recipe)) == recipe


def test_the_result_is_what_no_other_takes(folders: dict[str, Path]) -> None:
    named = filled(STAGES.replace("merge_method: slerp", "name: last\nmerge_method: slerp"), folders)
    assert read(named)[0].hash == read(filled(STAGES, folders))[0].hash
    spare = STAGES + "name: spare\nmerge_method: linear\nmodels: [{model: D, parameters: {weight: 1}}]\n"
    file = read_mergekit(filled(spare, folders))
    assert file.notes == ("stage spare is left out: the result does not take it",)
    assert "D" not in file.models.values()


def test_what_mergekit_passes_over_is_noted(folders: dict[str, Path]) -> None:
    text = """
merge_method: slerp
base_model: BASE
models: [{model: A, parameters: {weight: 1, t: 0.1}}, {model: BASE}]
parameters: {t: 0.5, normalize: true, int8_mask: true}
"""
    assert read_mergekit(filled(text, folders)).notes == (
        "parameters.normalize is no parameter of slerp: ignored, as mergekit does",
        "models[0].parameters.weight is no parameter of slerp: ignored, as mergekit does",
        "models[0].parameters.t is not given for a model: ignored, as mergekit does",
    )


def test_the_tokenizer_of_a_model(folders: dict[str, Path]) -> None:
    text = "{merge_method: linear, base_model: BASE, parameters: {weight: 1}, models: [{model: A}, {model: B}]%s}"
    none, base, own, other = (
        read(filled(text % more, folders))[0]
        for more in ("", ", tokenizer_source: base", ", tokenizer_source: A", ", tokenizer: {source: C}")
    )
    assert [r.tokenizer_from for r in (none, base, own, other)] == [None, None, "a", "c"]
    assert none.hash == base.hash


def test_models_are_named_after_their_folders() -> None:
    given = ["/x/models/a/", "org/a", "org/a@v1", "../a b?", "org/a+org/lora", "org/a+b@r", "/", "stage"]
    assert list(name_models((read_reference(text, "model") for text in given), taken=["stage"]).values()) == [
        "a",
        "a-2",
        "a-3",
        "a-b",
        "a-lora",
        "a-b-2",
        "model",
        "stage-2",
    ]


@pytest.mark.parametrize(
    ("content", "location"),
    [
        ("org/a", "org/a"),
        ("org/a@main", "org/a@main"),
        ("org/a@main+org/b@v2", "org/a@main+org/b@v2"),
        ({"model": "org/a@main"}, "org/a@main"),
        ({"model": {"path": "/data/a+b@2"}}, "/data/a+b@2"),
        ({"model": {"path": "org/a", "revision": "v1"}, "lora": {"path": "org/b"}}, "org/a@v1+org/b"),
    ],
)
def test_references(content: object, location: str) -> None:
    assert str(read_reference(content, "model")) == location


def test_folders_are_found_from_here_first_then_beside_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folders: dict[str, Path]
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here / "a", there / "a", there / "b", there / "c"):
        folder.mkdir(parents=True)
    monkeypatch.chdir(here)
    text = "{merge_method: linear, parameters: {weight: 1}, models: [{model: a}, {model: b}, {model: d}, {model: a+c}]}"
    assert list(read_mergekit(text, folder=there).models.values()) == ["a", str(there / "b"), "d", f"a+{there / 'c'}"]


def test_files_are_told_apart() -> None:
    assert looks_like_mergekit("# a merge\nmerge_method: linear\n")
    assert looks_like_mergekit("models: []\nmerge_method : linear")
    assert looks_like_mergekit("{merge_method: linear, models: []}")
    assert not looks_like_mergekit("evomerge_recipe: 1\nmodels: {merge_method: 1}\n")
    assert not looks_like_mergekit("")
