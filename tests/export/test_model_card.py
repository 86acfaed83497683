"""Model cards: front matter, sources, scores and recipe, without paths."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard, metadata_load

from evomerge.export.model_card import ScoreRow, card_license, model_card, score_table
from evomerge.mergekit.writer import to_mergekit
from evomerge.models.opening import open_pool
from evomerge.models.pool import Pool
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.slices import Input, ModelRef, SliceId, SliceRecipe
from evomerge.recipes.yaml_reader import load_recipe

REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def pool(llamas: Callable[..., dict[str, Path]]) -> Pool:
    return open_pool({name: str(folder) for name, folder in llamas(layers=3).items()}, "base")


def card_of(recipe: Recipe, pool: Pool, **options: Any) -> tuple[dict[str, Any], str]:
    """The front matter and the text."""
    card = model_card(recipe, pool.layout, "merged", folders=options.pop("folders", {}), **options)
    matter, text = re.fullmatch(r"---\n(.*?)---\n\n(.*)", card, re.DOTALL).groups()  # type: ignore[union-attr]
    return yaml.safe_load(matter), text


def block(text: str) -> str:
    """The YAML block of a card."""
    return re.search(r"```yaml\n(.*?)```", text, re.DOTALL)[1]  # type: ignore[index]


def test_local_sources_are_named_without_their_paths(pool: Pool, llamas: Callable[..., dict[str, Path]]) -> None:
    recipe = pool.info.linear({"a": 0.25, "b": 0.75})
    matter, text = card_of(recipe, pool)
    assert matter == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["merge", "evomerge"],
    }
    parent = str(llamas(layers=3)["a"].parent)
    assert parent not in text
    assert f"| a | local folder `a` | `{recipe.ref('a').fingerprint}` | not stated |" in text
    assert yaml.safe_load(block(text)) == yaml.safe_load(to_mergekit(recipe, pool.layout).replace(f"{parent}/", ""))


def test_hub_sources_are_base_models_and_linked(pool: Pool) -> None:
    local = pool.info.linear({"a": 0.5, "b": 0.5})
    refs = {**dict(local.models), "a": ModelRef("org/a", REVISION), "base": ModelRef("org/base", REVISION)}
    matter, text = card_of(replace(local, models=tuple(refs.items())), pool)
    assert matter["base_model"] == ["org/base", "org/a"]
    assert matter["base_model_relation"] == "merge"
    assert f"| a | [org/a](https://huggingface.co/org/a) | `{REVISION}` | not stated |" in text
    sources = yaml.safe_load(block(text))["slices"][0]["sources"]
    assert [source["model"] for source in sources] == [f"org/a@{REVISION}", "b"]


def test_folders_of_one_name_go_by_the_names_of_the_recipe(pool: Pool) -> None:
    local = pool.info.linear({"a": 0.5, "b": 0.5})
    refs = {**dict(local.models), "a": ModelRef("/one/model"), "b": ModelRef("/two/model")}
    _, text = card_of(replace(local, models=tuple(refs.items())), pool)
    sources = yaml.safe_load(block(text))["slices"][0]["sources"]
    assert [source["model"] for source in sources] == ["a", "b"]


def test_a_recipe_beyond_mergekit_is_shown_as_it_is(pool: Pool, llamas: Callable[..., dict[str, Path]]) -> None:
    linear = pool.info.linear({"a": 0.5, "b": 0.5})
    slerp = SliceRecipe(SliceId("mlp", 1), "slerp", (Input("a"), Input("b")), (("t", 0.5),))
    recipe = replace(linear, slices=tuple(slerp if e.slice == slerp.slice else e for e in linear.slices))
    _, text = card_of(recipe, pool)
    assert "mergekit cannot express slice layers.1.mlp: its method is slerp, embed has linear" in text
    assert str(llamas(layers=3)["a"].parent) not in text
    shown = load_recipe(block(text))
    assert shown.hash == recipe.hash  # the fingerprints, not the places, are what counts
    assert shown.ref("a").location == "a"


def test_licences_of_the_sources_are_listed_and_stated_where_they_agree(pool: Pool, tmp_path: Path) -> None:
    recipe = pool.info.linear({"a": 0.5, "b": 0.5})
    folders = {name: (tmp_path / name,) for name, _ in recipe.models}
    for (folder,) in folders.values():
        folder.mkdir()
        (folder / "README.md").write_text("---\nlicense: apache-2.0\nlanguage: en\n---\n# A model\n")
    matter, text = card_of(recipe, pool, folders=folders)
    assert matter["license"] == "apache-2.0"
    (tmp_path / "a" / "README.md").write_text("---\nlicense: other\nlicense_name: research\n---\n")
    (tmp_path / "b" / "README.md").write_text("# No front matter\n")
    matter, text = card_of(recipe, pool, folders=folders)
    assert "license" not in matter
    fingerprint = recipe.ref("a").fingerprint
    assert f"| a | local folder `a` | `{fingerprint}` | other, research |" in text
    assert "| apache-2.0 |" in text
    assert "The licences are those that the sources' own cards state" in text


def test_adapters_are_sources_of_their_own(pool: Pool, tmp_path: Path) -> None:
    average = pool.info.linear({"a": 0.5, "b": 0.5})
    on_hub = ModelRef("org/a", REVISION, adapter=ModelRef("org/lora", REVISION))
    local = ModelRef("/models/b", None, "sha256:b", ModelRef("/adapters/b", None, "sha256:c"))
    recipe = replace(average, models=tuple({**dict(average.models), "a": on_hub, "b": local}.items()))
    folders = {"b": (tmp_path / "b", tmp_path / "c")}
    for folder, stated in zip(folders["b"], ("mit", "gpl-3.0"), strict=True):
        folder.mkdir()
        (folder / "README.md").write_text(f"---\nlicense: {stated}\n---\n")
    matter, text = card_of(recipe, pool, folders=folders)
    assert matter["base_model"] == ["org/a", "org/lora"]
    links = [f"[org/{name}](https://huggingface.co/org/{name})" for name in ("a", "lora")]
    assert f"| a | {links[0]} with the adapter {links[1]} | `{REVISION}` + `{REVISION}` | not stated |" in text
    assert (
        "| b | local folder `b` with the adapter local folder `b` | `sha256:b` + `sha256:c` | mit + gpl-3.0 |" in text
    )
    assert "/models" not in text
    assert "/adapters" not in text


@pytest.mark.parametrize("content", ["", "---\n", "---\n[:\n---\n", "---\n- a\n---\n", "---\nlicense: {a: 1}\n---\n"])
def test_malformed_cards_have_no_licence(tmp_path: Path, content: str) -> None:
    (tmp_path / "README.md").write_text(content)
    assert card_license(tmp_path) == {}


def test_scores_make_a_table_in_the_order_given(pool: Pool) -> None:
    rows = [ScoreRow("merged", {"math/acc": 0.51234, "code/acc": 0.25}), ScoreRow("a|b", {"math/acc": 0.5})]
    assert score_table(rows) == (
        "| model | math/acc | code/acc |\n| --- | ---: | ---: |\n| merged | 0.5123 | 0.2500 |\n| a\\|b | 0.5000 |  |"
    )
    recipe = pool.info.linear({"a": 1.0})
    _, text = card_of(recipe, pool, scores=rows, scores_title="Scores on other items")
    assert f"## Scores on other items\n\n{score_table(rows)}\n\n" in text
    assert "Scores" not in card_of(recipe, pool)[1]


def test_huggingface_hub_reads_the_front_matter(pool: Pool, tmp_path: Path) -> None:
    average = pool.info.linear({"a": 0.5, "b": 0.5})
    refs = {**dict(average.models), "a": ModelRef("org/a", REVISION), "base": ModelRef("org/base", REVISION)}
    recipe = replace(average, models=tuple(refs.items()))
    folders = {}
    for name, _ in recipe.models:
        (tmp_path / name).mkdir()
        (tmp_path / name / "README.md").write_text(
            "---\nlicense: other\nlicense_name: tongyi\nlicense_link: LICENSE\n---\n"
        )
        folders[name] = (tmp_path / name,)
    rows = [ScoreRow("evolved", {"gsm8k/exact_match,strict": 0.5125, "arc/acc": 0.25}), ScoreRow("a", {"arc/acc": 0.1})]
    text = model_card(recipe, pool.layout, "merged", folders=folders, scores=rows)
    (tmp_path / "README.md").write_text(text, encoding="utf-8")
    card = ModelCard.load(tmp_path / "README.md")  # a malformed model-index is an error here
    data = card.data
    assert data.base_model == ["org/base", "org/a"]
    assert data.get("base_model_relation") == "merge"
    assert (data.license, data.license_name, data.license_link) == ("other", "tongyi", "LICENSE")
    assert (data.library_name, data.pipeline_tag, data.tags) == (
        "transformers",
        "text-generation",
        ["merge", "evomerge"],
    )
    assert data.model_name == "merged"
    assert {(r.dataset_name, r.metric_type, r.metric_name, r.metric_value) for r in data.eval_results} == {
        ("gsm8k", "exact_match,strict", "exact_match,strict", 0.5125),
        ("arc", "accuracy", "acc", 0.25),
    }
    assert metadata_load(tmp_path / "README.md") == yaml.safe_load(data.to_yaml())
    again = ModelCard(str(card))
    assert again.data.to_dict() == data.to_dict()
    assert again.text == card.text


def test_it_warns_of_licences_that_do_not_go_together(pool: Pool, tmp_path: Path) -> None:
    recipe = pool.info.linear({"a": 0.5, "b": 0.5})
    stated = {"base": "apache-2.0", "a": "apache-2.0", "b": "mit"}
    folders = {}
    for name, licence in stated.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "README.md").write_text(f"---\nlicense: {licence}\n---\n")
        folders[name] = (tmp_path / name,)
    assert "## Licences" not in card_of(recipe, pool, folders=folders)[1]
    (tmp_path / "b" / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n")
    _, text = card_of(recipe, pool, folders=folders)
    assert "**These licences may not go together" in text
    assert "- b (cc-by-nc-4.0): no commercial use, and so none of the merge.\n" in text
    assert "not legal advice" in text
    _, text = card_of(recipe, pool)
    assert "- base, a, b: no licence is stated; ask the authors." in text
    assert "**These" not in text


def test_it_says_how_to_load_the_model(pool: Pool) -> None:
    _, text = card_of(pool.info.linear({"a": 1.0}), pool)
    assert 'AutoModelForCausalLM.from_pretrained("merged", dtype="auto")' in text


def test_a_path_is_told_in_words(pool: Pool) -> None:
    steps = [("a", 0, None), ("a", 1, None), ("b", 1, 0.8), ("b", 1, 0.8), ("a", 2, -0.4)]
    slices = [
        SliceRecipe(SliceId(c, place), "passthrough", (Input(model, layer),), scale=scale if c != "norm" else None)
        for place, (model, layer, scale) in enumerate(steps)
        for c in ("attn", "mlp", "norm")
    ]
    outer = [SliceRecipe(s, "passthrough", (Input("a"),)) for s in pool.info.slices if s.layer is None]
    _, text = card_of(pool.info.recipe([*slices, *outer]), pool)
    assert "## Path\n\nA path of 5 layers: 3 of a, 2 of b. In order, by their numbers there: " in text
    assert "there: a 0 to 1, b 1 (×1.25), b 1, a 2 (×-2.00).\n\nEmbeddings and final norm and head of a; × is" in text
    assert "## Path" not in card_of(pool.info.linear({"a": 0.5, "b": 0.5}), pool)[1]
