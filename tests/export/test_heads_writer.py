"""One encoder and the heads, in memory and on disk: the models that plain transformers makes of them by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_classifiers import LABELS, save_pool
from transformers import AutoModelForSequenceClassification

import evomerge
from evomerge.errors import RecipeError
from evomerge.export.adapter_writer import write_adapter
from evomerge.export.heads_writer import write_all_heads
from evomerge.export.in_memory import merged_model
from evomerge.merge.planning.plan import make_plan
from evomerge.merge.resident.model import Resident
from evomerge.mergekit.writer import to_mergekit
from evomerge.models.opening import open_pool
from evomerge.models.pool import Pool
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.switches import task_recipe, with_dtype, with_switch

IDS = torch.tensor([[1, 7, 8, 30, 2], [1, 12, 13, 4, 2]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pool(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def pool(folder: Path) -> Pool:
    return open_pool({name: name for name in ("base", *LABELS)}, "base", folder)


@pytest.fixture(scope="module")
def recipe(pool: Pool) -> Recipe:
    return pool.info.linear({"mood": 0.25, "topic": 0.75})


def by_hand(folder: Path, weights: dict[str, float], task: str) -> torch.Tensor:
    """Logits of a task's own model, whose encoder is a weighted sum; pooler and classifier stay, the base has none."""
    models = {name: AutoModelForSequenceClassification.from_pretrained(folder / name) for name in LABELS}
    states = {name: model.state_dict() for name, model in models.items()}
    merged = dict(states[task])
    for name in merged:
        if not name.startswith(("classifier.", "bert.pooler.")):
            merged[name] = sum(weight * states[source][name] for source, weight in weights.items())
    models[task].load_state_dict(merged)
    with torch.no_grad():
        found: torch.Tensor = models[task](IDS).logits
    return found


@torch.no_grad()
def logits(module: torch.nn.Module) -> torch.Tensor:
    found: torch.Tensor = module(IDS).logits
    return found


def test_a_resident_model_has_one_head_after_the_other(pool: Pool, folder: Path, recipe: Recipe) -> None:
    resident = Resident(pool)
    for task in ("mood", "topic", "mood"):
        count = resident.apply(make_plan(task_recipe(recipe, task), pool))
        module = resident.model.module
        torch.testing.assert_close(logits(module), by_hand(folder, {"mood": 0.25, "topic": 0.75}, task))
        assert list(module.config.id2label.values()) == list(LABELS[task])
        assert module.num_labels == module.classifier.out_features == len(LABELS[task])
    assert count.computed == 0, "the encoder was there"
    for task in LABELS:
        resident.apply(make_plan(pool.info.linear({task: 1.0}), pool))
        torch.testing.assert_close(logits(resident.model.module), by_hand(folder, {task: 1.0}, task))
    resident.close()


def test_folders_share_the_encoder_and_load_as_complete_models(
    pool: Pool, folder: Path, recipe: Recipe, tmp_path: Path
) -> None:
    sizes = write_all_heads(recipe, pool, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["README.md", "evomerge_recipe.yaml", *LABELS]
    first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    places = {(tmp_path / "out" / task / first).stat().st_ino for task in LABELS}
    assert len(places) == 1, "one file"
    head = load_file(tmp_path / "out" / "topic" / second)
    assert head.keys() == {"classifier.weight", "classifier.bias", "bert.pooler.dense.weight", "bert.pooler.dense.bias"}
    source = load_file(folder / "topic" / "model.safetensors")
    assert all(torch.equal(tensor, source[name]) for name, tensor in head.items()), "carried as it is"
    assert sizes.parts == {"mood": 4 * (16 * 18 + 18), "topic": 4 * (16 * 21 + 21)}
    for task in LABELS:
        model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out" / task)
        torch.testing.assert_close(logits(model), by_hand(folder, {"mood": 0.25, "topic": 0.75}, task))
        assert list(model.config.id2label.values()) == list(LABELS[task])
        memory = merged_model(task_recipe(recipe, task), pool)
        assert all(torch.equal(own, model.state_dict()[name]) for name, own in memory.state_dict().items())
    again = evomerge.load_recipe(tmp_path / "out" / "evomerge_recipe.yaml")
    assert again.tasks == ("mood", "topic")
    again.task("topic").save(tmp_path / "topic", pool)
    alone = load_file(tmp_path / "topic" / "model.safetensors")
    assert all(torch.equal(tensor, alone[name]) for name, tensor in head.items())
    assert "## Head" in (tmp_path / "topic" / "README.md").read_text()


def test_copies_are_made_where_there_are_no_links(
    pool: Pool, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr("os.link", refuse)
    write_all_heads(recipe, pool, tmp_path / "out")
    files = [tmp_path / "out" / task / "model-00001-of-00002.safetensors" for task in LABELS]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert files[0].stat().st_ino != files[1].stat().st_ino


def test_heads_follow_the_dtype_of_the_result(pool: Pool, recipe: Recipe, tmp_path: Path) -> None:
    write_all_heads(with_dtype(recipe, "bfloat16"), pool, tmp_path / "out")
    head = load_file(tmp_path / "out" / "mood" / "model-00002-of-00002.safetensors")
    assert {tensor.dtype for tensor in head.values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "out" / "mood" / "config.json").read_text())["dtype"] == "bfloat16"


def test_a_source_sparsified_against_its_base_is_a_recipe(pool: Pool, folder: Path) -> None:
    """Self-merging: what is left of one task vector, by magnitude, in a recipe of one source."""
    text = f"""
evomerge_recipe: 1
dtype: float32
config_from: topic
models:
  base: {{location: {folder / "base"}}}
  topic: {{location: {folder / "topic"}}}
heads:
  tensors: [bert.pooler.dense.weight, bert.pooler.dense.bias, classifier.weight, classifier.bias]
  tasks: [topic]
slices:
- slices: [embed, layers.0-1.attn+mlp+norm]
  method: ties
  base: base
  parameters: {{normalize: false, lambda: 1.0}}
  inputs: [{{model: topic, parameters: {{weight: 1.0, density: 0.25}}}}]
"""
    (folder / "self.yaml").write_text(text)
    model = evomerge.load_recipe(folder / "self.yaml").merge()
    base, own = (load_file(folder / name / "model.safetensors") for name in ("base", "topic"))
    name = "bert.encoder.layer.0.attention.self.query.weight"
    delta = own[name] - base[name]
    kept = delta.abs() >= delta.abs().flatten().sort(descending=True).values[delta.numel() // 4 - 1]
    torch.testing.assert_close(model.state_dict()[name], base[name] + delta * kept)
    assert torch.equal(model.state_dict()["classifier.weight"], own["classifier.weight"])


def test_what_has_no_room_for_heads_says_so(pool: Pool, recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="heads of their own, and an adapter of the base has no room"):
        write_adapter(task_recipe(recipe, "mood"), pool, tmp_path / "adapter")
    with pytest.raises(RecipeError, match="mergekit merges all tensors"):
        to_mergekit(recipe, pool.layout)
    with pytest.raises(RecipeError, match=r"heads of their own and a switch.*write each model with --task"):
        write_all_heads(with_switch(recipe, "emr_switch", {"mood": {}, "topic": {}}, "base"), pool, tmp_path / "all")
    merged = open_pool({name: str(pool.folder(name)) for name in LABELS}, fingerprints=False)
    with pytest.raises(RecipeError, match=r"carries the heads bert\.pooler.*; those of the pool: classifier"):
        make_plan(recipe_of(merged, recipe), merged)


def recipe_of(pool: Pool, recipe: Recipe) -> Recipe:
    """A recipe of the models that another pool has."""
    return replace(pool.info.linear({"mood": 0.5, "topic": 0.5}), heads=recipe.heads)
