"""Heads of their own: which tensors they are, by labels, shapes, names and patterns; what pools refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_classifiers import LABELS, save, save_pool
from tiny_images import save_segmenter
from tiny_models import write_tokenizer
from transformers import ViTConfig, ViTForImageClassification, ViTModel

from evomerge.errors import ConfigError, PoolError
from evomerge.merge.planning.plan import make_plan
from evomerge.merge.resident.model import Resident
from evomerge.models.opening import open_pool, pool_of_recipe
from evomerge.models.pool import Pool
from evomerge.recipes.heads import Heads
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.switches import task_recipe

CLASSIFIER = ("classifier.weight", "classifier.bias")
POOLER = ("bert.pooler.dense.weight", "bert.pooler.dense.bias")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_pool(tmp_path_factory.mktemp("heads"))
    save(folder / "again", 7, LABELS["mood"])
    save(folder / "other", 8, ("no", "yes"))
    return folder


def opened(folder: Path, *names: str, base: str | None = None, **how: Any) -> Pool:
    return open_pool({name: name for name in names}, base, folder, fingerprints=False, **how)


def test_heads_of_other_labels_are_found_and_no_slice_has_them(folder: Path) -> None:
    pool = opened(folder, "mood", "topic")
    assert pool.info.heads == Heads(CLASSIFIER, ("mood", "topic"))
    named = {name for own in pool.info.tensors for name, _ in own}
    assert "bert.pooler.dense.weight" in named, "the pooler is the encoder's, and merged"
    assert not named & set(CLASSIFIER)
    assert pool.read_head("topic")["classifier.weight"].shape == (5, 16)
    assert pool.info.linear({"topic": 1.0}).config_from == "topic"
    assert pool.info.linear({"topic": 0.5, "mood": 0.5}).config_from == "mood"


def test_a_base_of_another_task_gives_no_head_and_what_it_lacks_is_carried(folder: Path) -> None:
    pool = opened(folder, "base", "mood", "topic", base="base")
    assert pool.info.heads == Heads((*POOLER, *CLASSIFIER), ("mood", "topic"))
    assert (pool.info.base, pool.info.config_from) == ("base", "mood")
    alone = opened(folder, "base", "mood", base="base")
    assert alone.info.heads == Heads((*POOLER, *CLASSIFIER), ("mood",))


def test_equal_labels_are_merged_unless_a_pattern_says_otherwise(folder: Path) -> None:
    assert opened(folder, "mood", "again").info.heads is None
    assert opened(folder, "mood", "again", heads="classifier*").info.heads == Heads(CLASSIFIER, ("mood", "again"))
    both = ["classifier.*", "bert.pooler*"]
    assert opened(folder, "mood", "again", heads=both).info.heads == Heads((*POOLER, *CLASSIFIER), ("mood", "again"))
    assert opened(folder, "mood", "other").info.heads == Heads(CLASSIFIER, ("mood", "other")), "other names"
    assert opened(folder, "mood", "other", heads=None).info.heads is None


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("clasifier*", r"pool.heads has 'clasifier\*', which is the name of no tensor; .*classifier.weight"),
        ("bert.encoder.layer.0*", "the name of a layer's tensor, bert.encoder.layer.0"),
    ],
)
def test_patterns_that_are_no_heads_are_refused(folder: Path, setting: str, said: str) -> None:
    with pytest.raises(PoolError, match=said):
        opened(folder, "mood", "topic", heads=setting)


@pytest.mark.parametrize("setting", [3, [], [" "], "", {"a": 1}])
def test_settings_that_are_none_are_refused_before_a_file_is_read(setting: Any) -> None:
    with pytest.raises(ConfigError, match=r"pool\.heads is"):
        open_pool({"a": "nowhere"}, heads=setting)


def test_other_shapes_are_refused_where_heads_are_merged(folder: Path) -> None:
    with pytest.raises(PoolError, match=r"'classifier.weight' has shape \(5, 16\) in model 'topic' and \(2, 16\)"):
        opened(folder, "mood", "topic", heads=None)


def test_a_head_that_is_not_as_its_configuration_says_is_refused(folder: Path, tmp_path: Path) -> None:
    save(tmp_path / "topic", 2, LABELS["topic"])
    path = tmp_path / "topic" / "config.json"
    content = json.loads(path.read_text())
    del content["id2label"]["4"]
    path.write_text(json.dumps(content))
    with pytest.raises(PoolError, match=r"'classifier.weight' is F32 of \(5, 16\), config.json makes it .*\(4, 16\)"):
        open_pool({"mood": str(folder / "mood"), "topic": str(tmp_path / "topic")}, fingerprints=False)


def test_vision_models_have_heads_of_their_own_too(tmp_path: Path) -> None:
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    torch.manual_seed(0)
    for name, count in (("two", 2), ("five", 5)):
        config = ViTConfig(image_size=8, patch_size=4, num_labels=count, **small)
        ViTForImageClassification(config).save_pretrained(tmp_path / name)
    ViTModel(ViTConfig(image_size=8, patch_size=4, **small), add_pooling_layer=False).save_pretrained(tmp_path / "base")
    pool = opened(tmp_path, "base", "two", "five", base="base")
    assert pool.info.heads == Heads(CLASSIFIER, ("two", "five"))
    assert str(pool.info.slices[-1]) == "final_norm"


def test_the_pool_of_a_recipe_is_that_which_it_was_made_of(folder: Path) -> None:
    pool = open_pool({name: name for name in ("base", "mood", "topic")}, "base", folder)
    recipe = pool.info.linear({"mood": 0.5, "topic": 0.5})
    for own, tasks in ((recipe, ("mood", "topic")), (task_recipe(recipe, "topic"), ("topic",))):
        again = pool_of_recipe(own)
        assert again.info.heads == Heads((*POOLER, *CLASSIFIER), tasks)
        assert again.info.config_from == tasks[0]
    assert isinstance(recipe, Recipe)


def test_language_models_never_have_heads_of_their_own_unasked(tmp_path: Path) -> None:
    from tiny_llama import save_llama

    for seed, name in enumerate(("one", "two")):
        save_llama(tmp_path / name, seed)
        path = tmp_path / name / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"id2label": {"0": name, "1": "x"}}))
    assert opened(tmp_path, "one", "two").info.heads is None
    write_tokenizer(tmp_path / "one")


def test_a_head_has_integers_where_its_module_has_them(tmp_path: Path) -> None:
    """The batches that a batch norm has seen are carried as they are stored; floats in their place are refused."""
    for seed, name in enumerate(("one", "two")):
        save_segmenter(tmp_path / name, seed)
    count, weight = "decode_head.batch_norm.num_batches_tracked", "decode_head.classifier.weight"
    file = tmp_path / "two" / "model.safetensors"
    tensors = load_file(file)
    save_file(tensors | {count: torch.tensor(7)}, file, {"format": "pt"})
    pool = opened(tmp_path, "one", "two", heads="decode_head*")
    assert pool.read_head("two")[count].equal(torch.tensor(7))
    resident = Resident(pool)
    for name, seen in (("two", 7), ("one", 0), ("two", 7)):
        resident.apply(make_plan(pool.info.linear({name: 1.0}), pool))
        there = resident.model.module.state_dict()[count]
        assert there.equal(torch.tensor(seen))
    resident.close()
    for changed, said in ((count, f"{count}' is F32 .* integers of"), (weight, f"{weight}' is I64 .* floats of")):
        other = {name: own.long() if name == weight else own.float() for name, own in tensors.items()}
        save_file(tensors | {changed: other[changed]}, file, {"format": "pt"})
        with pytest.raises(PoolError, match=said):
            opened(tmp_path, "one", "two", heads="decode_head*")
