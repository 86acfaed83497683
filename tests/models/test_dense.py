"""Dense layers of sentence-transformers: merged where models differ, kept, and refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_encoders import save_encoder, write_corpus
from transformers import AutoModel

from evomerge.candidate import Candidate
from evomerge.errors import ConfigError, PoolError, RecipeError
from evomerge.evaluation.worker import Worker
from evomerge.export.in_memory import merged_model
from evomerge.export.writer import write_model
from evomerge.mergekit.writer import to_mergekit
from evomerge.models.opening import open_pool, pool_of_recipe
from evomerge.models.pool_settings import check_dense
from evomerge.recipes.slices import SliceId
from evomerge.recipes.yaml_reader import dump_recipe, load_recipe
from evomerge.run.pool_content import pool_content, pool_info
from fitness.retrieval import RetrievalFitness

MODELS = {name: name for name in ("base", "one", "two")}
FILE = "2_Dense/model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for seed, name in enumerate(MODELS):
        save_encoder(tmp_path / name, seed, dense=5)
    write_corpus(tmp_path / "data")
    return tmp_path


def test_layers_that_differ_are_merged_with_the_models(folder: Path) -> None:
    pool = open_pool(MODELS, "base", folder, dense="auto")
    assert pool.info.dense == "merged"
    names = [name for name in pool.layout.tensors[SliceId("head")] if "Dense" in name]
    assert names == ["sentence_dense.2_Dense.linear.weight", "sentence_dense.2_Dense.linear.bias"]
    assert dict(pool.info.tensors[pool.info.slices.index(SliceId("head"))])[names[0]] == 5 * 16
    recipe = pool.info.linear({"one": 0.75, "two": 0.5})
    out = write_model(recipe, pool, folder / "out")
    one, two, found = (load_file(own / FILE) for own in (folder / "one", folder / "two", out))
    for name, tensor in found.items():
        assert torch.allclose(tensor, 0.75 * one[name] + 0.5 * two[name], atol=1e-6), name
    assert not any("dense." in name.lower() and "sentence" in name for name in load_file(out / "model.safetensors"))
    fitness = [RetrievalFitness([{"task": "find", "folder": str(folder / "data")}]) for _ in range(2)]
    candidate = Worker(pool, {"search": fitness[0]}, device="cpu").evaluate(Candidate(0, recipe))
    assert candidate.ok, candidate.error
    alone = open_pool({"out": "out"}, None, folder)
    written = Worker(alone, {"search": fitness[1]}, device="cpu").evaluate(
        Candidate(0, alone.info.linear({"out": 1.0}))
    )
    assert written.metrics == candidate.metrics
    assert type(merged_model(recipe, pool)) is type(AutoModel.from_pretrained(folder / "one"))


def test_a_recipe_says_what_became_of_them(folder: Path) -> None:
    pool = open_pool(MODELS, "base", folder, dense="auto")
    recipe = pool.info.linear({"one": 0.5, "two": 0.5})
    again = load_recipe(dump_recipe(recipe))
    assert again.dense == "merged"
    assert again.hash == recipe.hash
    assert pool_info(json.loads(json.dumps(pool_content(pool.info)))).dense == "merged"
    reopened = pool_of_recipe(again, folder)
    assert reopened.info.dense == "merged"
    kept = open_pool(MODELS, "base", folder, dense="kept")
    assert kept.info.dense == "kept"
    assert kept.info.linear({"one": 1.0}).hash != pool.info.linear({"one": 1.0}).hash
    with pytest.raises(RecipeError, match="dense is 'maybe'; merged or kept"):
        load_recipe(dump_recipe(recipe).replace("dense: merged", "dense: maybe"))
    with pytest.raises(RecipeError, match="mergekit merges models without dense layers"):
        to_mergekit(recipe, pool.layout)


def test_layers_are_kept_where_that_is_asked_for(folder: Path) -> None:
    pool = open_pool(MODELS, "base", folder, dense="kept")
    with pytest.warns(UserWarning, match=r"2_Dense/model.safetensors \(of base\) than in one and two"):
        out = write_model(pool.info.linear({"one": 0.5, "two": 0.5}), pool, folder / "out")
    assert (out / FILE).read_bytes() == (folder / "base" / FILE).read_bytes()
    (folder / "base" / "modules.json").unlink()
    with pytest.raises(PoolError, match="'base', which gives the configuration, has none"):
        open_pool(MODELS, "base", folder, dense="kept")


def test_layers_that_are_the_same_are_no_part_of_a_recipe(folder: Path) -> None:
    for name in ("one", "two"):
        (folder / name / FILE).write_bytes((folder / "base" / FILE).read_bytes())
    for setting in ("auto", "kept", "same"):
        pool = open_pool(MODELS, "base", folder, dense=setting)
        assert pool.info.dense is None
        assert pool.info.linear({"one": 1.0}).dense is None
    assert open_pool(MODELS, "base", folder, dense="merged").info.dense == "merged"


def test_layers_that_cannot_be_merged_are_named(folder: Path) -> None:
    with pytest.raises(PoolError, match="weights that model 'base' does not have"):
        open_pool(MODELS, "base", folder)
    save_encoder(folder / "wide", 7, dense=6)
    with pytest.raises(
        PoolError, match=r"those of model 'wide' are 2_Dense; as many, of the same widths: 2_Dense 16x5"
    ):
        open_pool({"base": "base", "wide": "wide"}, "base", folder, dense="auto")
    save_encoder(folder / "plain", 8)
    with pytest.raises(PoolError, match=r"those of model 'plain' are none; .*pool.dense=kept"):
        open_pool({"base": "base", "plain": "plain"}, "base", folder, dense="auto")
    save_file({"linear.weight": torch.zeros(5, 16)}, folder / "two" / FILE)
    with pytest.raises(PoolError, match=r"model 'two': .* has none for linear.bias; floats of \(5,\)"):
        open_pool(MODELS, "base", folder, dense="auto")
    save_encoder(folder / "bare", 9)
    (folder / "words").mkdir()
    for file in (folder / "bare").glob("*.*"):
        if file.name != "modules.json":
            shutil.copy(file, folder / "words")
    for models in ({"plain": "plain", "bare": "bare"}, {"words": "words"}):
        with pytest.raises(PoolError, match=r"pool.dense is 'merged', and no model has dense layers .*pool.dense=auto"):
            open_pool(models, None, folder, dense="merged")
    with pytest.raises(ConfigError, match=r"pool.dense is 'keep'.*kept"):
        check_dense("keep")
