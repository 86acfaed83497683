"""Pools of models that see: what is merged, what is kept, and plain language models beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor
from vlm_models import IMAGE, KINDS, ROWS, build_vlm, save, save_vlm, save_words

from evomerge.errors import ConfigError, PoolError, RecipeError
from evomerge.evaluation.engine_settings import EngineSettings
from evomerge.export.in_memory import merged_model
from evomerge.export.writer import write_model
from evomerge.merge.planning.plan import make_plan
from evomerge.merge.resident.model import Resident
from evomerge.models.opening import open_pool, pool_of_recipe
from evomerge.recipes.slices import Input, SliceRecipe
from evomerge.recipes.yaml_reader import dump_recipe, load_recipe
from evomerge.session.engines import check_held

SOME = [pytest.param(kind, marks=[] if kind in ("llava", "qwen2_vl") else pytest.mark.slow) for kind in sorted(KINDS)]
UP = "model.layers.0.mlp.up_proj.weight"
EYES = {
    "llava": ("model.vision_tower.*",),
    "llava_next": ("model.vision_tower.*",),
    "qwen2_vl": ("model.visual.patch_embed.*", "model.visual.blocks.*"),
    "smolvlm": ("model.vision_model.*",),
    "gemma3": ("model.vision_tower.*",),
}
"""What is kept where all models have a projector."""


def average(*modules: Any) -> dict[str, torch.Tensor]:
    states = [module.state_dict() for module in modules]
    return {name: torch.stack([state[name] for state in states]).mean(0) for name in states[0]}


def load(folder: Path) -> Any:
    return AutoModelForImageTextToText.from_pretrained(folder).eval()


@pytest.mark.parametrize("kind", SOME)
def test_language_models_and_projectors_are_merged_and_eyes_kept(kind: str, tmp_path: Path) -> None:
    folders = {name: str(save_vlm(tmp_path / name, kind, seed)) for seed, name in enumerate("ab")}
    pool = open_pool(folders)
    assert pool.info.kept is not None
    assert (pool.info.kept.tensors, pool.info.kept.model) == (EYES[kind], "a")
    assert pool.layout.layers == 2
    assert all("layers" not in name or "language" in name or "text" in name for name in pool.layout.parameters.values())
    made = merged_model(pool.info.linear({"a": 0.5, "b": 0.5}), pool).state_dict()
    mine, both = load(tmp_path / "a").state_dict(), average(load(tmp_path / "a"), load(tmp_path / "b"))
    kept = [name for name in made if pool.info.kept.has(name)]
    assert len(kept) > 5
    for name, tensor in made.items():
        torch.testing.assert_close(
            tensor, mine[name] if name in kept else both[name], msg=lambda text, n=name: n + text
        )


@pytest.mark.parametrize("kind", SOME)
def test_plain_language_models_are_merged_with_the_language_part(kind: str, tmp_path: Path) -> None:
    """Task arithmetic of a model that sees and a plain one, from a plain base: names of tensors differ."""
    tied = {"tie_word_embeddings": True} if kind == "smolvlm" else {}  # SmolLM2 is tied, SmolVLM is not
    folders = {
        "base": str(save_words(tmp_path / "base", kind, 3)),
        "plain": str(save_words(tmp_path / "plain", kind, 4, **tied)),
        "sees": str(save_vlm(tmp_path / "sees", kind, 5)),
    }
    pool = open_pool(folders, base="base")
    assert pool.info.kept is not None
    assert pool.info.config_from == pool.info.kept.model == "sees"
    from transformers import AutoModelForCausalLM

    words = {n: AutoModelForCausalLM.from_pretrained(tmp_path / n).state_dict() for n in ("base", "plain")}
    sees = load(tmp_path / "sees").state_dict()
    recipe = pool.info.linear({"plain": 0.25, "sees": 0.75})
    made = merged_model(recipe, pool).state_dict()
    language = "model.text_model." if kind == "smolvlm" else "model.language_model."
    merged = 0
    for name, tensor in made.items():
        inner = f"model.{name.removeprefix(language)}" if name.startswith(language) else name
        if inner in words["plain"]:
            merged += 1
            plain = words["plain"][inner].clone()
            if plain.shape[0] == ROWS:  # the plain model's tokenizer has no image token: its row is the other's
                plain[IMAGE] = sees[name][IMAGE]
            torch.testing.assert_close(tensor, 0.25 * plain + 0.75 * sees[name])
        else:
            assert pool.info.kept.has(name)
            assert torch.equal(tensor, sees[name])
    assert merged == len(words["plain"])


def test_all_are_merged_where_nothing_is_kept(tmp_path: Path) -> None:
    folders = {name: str(save_vlm(tmp_path / name, "llava", seed)) for seed, name in enumerate("ab")}
    pool = open_pool(folders, kept=None)
    assert pool.info.kept is None
    made = merged_model(pool.info.linear({"a": 0.5, "b": 0.5}), pool).state_dict()
    for name, tensor in average(load(tmp_path / "a"), load(tmp_path / "b")).items():
        torch.testing.assert_close(made[name], tensor)


def test_what_is_kept_can_be_named_and_come_from_another(tmp_path: Path) -> None:
    folders = {name: str(save_vlm(tmp_path / name, "llava", seed)) for seed, name in enumerate("ab")}
    pool = open_pool(folders, kept=["model.multi_modal_projector.*", "model.vision_tower.*"], kept_from="b")
    recipe = pool.info.linear({"a": 0.5, "b": 0.5})
    assert (recipe.config_from, recipe.kept) == ("b", ("model.multi_modal_projector.*", "model.vision_tower.*"))
    made, theirs = merged_model(recipe, pool).state_dict(), load(tmp_path / "b").state_dict()
    name = "model.multi_modal_projector.linear_1.weight"
    assert torch.equal(made[name], theirs[name])
    again = load_recipe(dump_recipe(recipe))
    assert (again, again.hash) == (recipe, recipe.hash)
    assert recipe.hash != open_pool(folders, kept=None).info.linear({"a": 0.5, "b": 0.5}).hash


def test_eyes_may_be_others_than_the_kept_ones(tmp_path: Path) -> None:
    """Another LLaVA on another tower: only its language model is asked for, and its projector is left alone."""
    folders = {"a": str(save_vlm(tmp_path / "a", "llava", 0)), "b": str(save_vlm(tmp_path / "b", "llava_next", 1))}
    pool = open_pool(folders)
    assert pool.info.kept is not None
    assert pool.info.kept.tensors == ("model.vision_tower.*", "model.multi_modal_projector.*")
    made = merged_model(pool.info.linear({"a": 0.5, "b": 0.5}), pool).state_dict()
    both = [load(tmp_path / name).state_dict() for name in "ab"]
    name = "model.language_model.layers.1.mlp.up_proj.weight"
    torch.testing.assert_close(made[name], (both[0][name] + both[1][name]) / 2)


def test_exports_load_and_open_again(tmp_path: Path) -> None:
    folders = {"base": str(save_words(tmp_path / "base", "llava", 1)), "sees": str(save_vlm(tmp_path / "sees"))}
    folders["plain"] = str(save_words(tmp_path / "plain", "llava", 2))
    pool = open_pool(folders, base="base")
    recipe = pool.info.linear({"plain": 0.5, "sees": 0.5})
    out = write_model(recipe, pool, tmp_path / "out")
    assert {"processor_config.json", "tokenizer.json"} <= {file.name for file in out.iterdir()}
    assert "Those of sees as they were: `model.vision_tower.*`" in (out / "README.md").read_text()
    wanted = merged_model(recipe, pool).state_dict()
    found = load(out).state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    again = pool_of_recipe(recipe)
    assert (again.info.kept, again.info.config_from) == (pool.info.kept, "sees")
    with pytest.raises(RecipeError, match=r"the recipe keeps model\.vision.*; what the pool keeps: nothing"):
        merged_model(recipe, open_pool({"sees": folders["sees"]}, kept=None))


def test_paths_go_through_the_layers_of_the_language_model(tmp_path: Path) -> None:
    """Layer 0 of the one that sees, layers 1 and 0 of the plain one, in memory and as written."""
    folders = {"sees": str(save_vlm(tmp_path / "sees")), "plain": str(save_words(tmp_path / "plain", "llava", 2))}
    pool = open_pool(folders)
    assert not pool.residual.immovable
    assert not pool.residual.unscalable
    origins = [("sees", 0), ("plain", 1), ("plain", 0)]
    slices = []
    for own in pool.info.slices_at(3):
        source = Input("sees") if own.layer is None else Input(*origins[own.layer])
        slices.append(SliceRecipe(own, "passthrough", (source,), scale=1.5 if str(own) == "layers.1.mlp" else None))
    recipe = pool.info.recipe(slices)
    written = load(write_model(recipe, pool, tmp_path / "out"))
    assert written.config.text_config.num_hidden_layers == len(written.model.language_model.layers) == 3
    plain = load_file(tmp_path / "plain" / "model.safetensors")
    name = "layers.1.mlp.down_proj.weight"
    found = written.state_dict()
    torch.testing.assert_close(found[f"model.language_model.{name}"], 1.5 * plain[f"model.{name}"])
    torch.testing.assert_close(found["model.language_model.layers.2.mlp.up_proj.weight"], plain[UP])
    resident = Resident(pool)
    resident.apply(make_plan(recipe, pool))
    inputs = AutoProcessor.from_pretrained(tmp_path / "out")(
        text="w5 <image> w6", images=Image.new("RGB", (9, 12), (200, 10, 90)), return_tensors="pt"
    )
    with torch.no_grad():
        torch.testing.assert_close(resident.model.module(**inputs).logits, written(**inputs).logits)
    resident.close()


def test_deeper_language_models_and_other_rows(tmp_path: Path) -> None:
    """A plain model of three layers and fewer rows beside one that sees, of two."""
    folders = {
        "sees": str(save_vlm(tmp_path / "sees")),
        "deep": str(save_words(tmp_path / "deep", "llava", 2, num_hidden_layers=3, vocab_size=41)),
    }
    with pytest.warns(match=r"the rows of embeddings are made 44 in all \(deep has 41\)"):
        pool = open_pool(folders)
    assert pool.info.depths == (("deep", 3),)
    assert pool.read("deep", pool.layout.of_slice(pool.info.slices[0])[0]).shape == (44, 16)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kept": "model.visoin_tower.*"}, r"pool\.kept has 'model\.visoin_tower\.\*', which is the name of no tensor"),
        ({"kept": "model.language_model.layers.*"}, r"which is the name of a layer's tensor, model\.language"),
        ({"kept": 3}, r"pool\.kept is '3'; auto, null, or patterns"),
        ({"kept_from": "c"}, r"pool\.kept_from is 'c'; .*a"),
        ({"kept_from": "a", "kept": None}, r"pool\.kept_from is 'a', and nothing is kept"),
        (
            {"kept_from": "words"},
            r"pool\.kept_from is 'words', and 'words' has no part that looks at images; .*one of a",
        ),
        ({"kept": "model.vision_tower.*"}, r"model 'words' has no tensor for 'multi_modal_projector"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], message: str, two: dict[str, str]) -> None:
    with pytest.raises((ConfigError, PoolError), match=message):
        open_pool(two, **settings)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("two")
    return {"a": str(save(build_vlm("llava", 0), root / "a")), "words": str(save_words(root / "words", "llava", 1))}


def test_engines_that_hold_no_modules_are_refused(two: dict[str, str]) -> None:
    with pytest.raises(
        ConfigError, match=r"evaluator\.engine is vllm, and the pool keeps model\.vision_tower\.\* of a"
    ):
        check_held(EngineSettings("vllm"), open_pool({"a": two["a"]}), [], [])
