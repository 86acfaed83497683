"""From calibration items to a recipe, a search that begins with it, and a model, through the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from evomerge.cli.main import main
from evomerge.recipes.yaml_reader import read_recipe_file
from evomerge.run.folder import RunFolder
from evomerge.run.ledger import read_ledger


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def words(pool: Path, out: Path, *more: str, split: str = "") -> list[str]:
    tasks = f"{pool}/tasks"
    files = f"{{math: '{tasks}/demo_e_maths{split}.jsonl', lang: ['{tasks}/demo_j_language{split}.jsonl']}}"
    items = ["calibration=text", f"calibration.files={files}", "calibration.items=6"]
    return [*items, "learning.steps=3", "learning.batch=2", f"learning.out='{out}'", *more]


def test_weights_are_the_first_candidate_of_a_search(
    quick_pool: Path, quick_search: list[str], cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, run = tmp_path / "learned.yaml", tmp_path / "run"
    assert main(["learn", *quick_search, *words(quick_pool, out)]) == 0
    shown = capsys.readouterr()
    assert "divergence" in shown.out
    assert "expert_merging: 16 numbers, 6 items of math, 6 items of lang" in shown.err
    recipe = read_recipe_file(out)
    assert recipe.calibration is None
    weights = {dict(own.parameters)["weight"] for entry in recipe.slices for own in entry.inputs}
    assert len(weights) == 16
    assert all(0.05 < float(str(weight)) < 0.15 for weight in weights)

    search = ["search.evaluations=4", "fitness.limit=4", "fitness@held_out=null", "search.baselines=false"]
    begun = [f"search.warm_start=['{out}']", f"run_dir='{run}'", "display=quiet"]
    assert main(["search", *quick_search, *search, *begun]) == 0
    first = next(event for event in read_ledger(RunFolder.open(run)) if event["event"] == "asked")
    assert first["recipe_hash"] == recipe.hash

    again = tmp_path / "again.yaml"
    assert main(["learn", *quick_search, *words(quick_pool, again)]) == 0  # what was learnt is kept
    assert again.read_bytes() == out.read_bytes()
    assert main(["learn", *quick_search, *words(quick_pool, out)]) == 2
    assert "is there already" in capsys.readouterr().err
    other = ["search_space.components=all", "search_space.layer_group=all"]
    assert main(["validate", *quick_search, *other, f"search.warm_start=['{out}']"]) == 2
    assert "is not in the search space" in capsys.readouterr().err


@pytest.mark.parametrize(("method", "reads"), [("concrete", "masked"), ("dam", "columns")])
def test_masks_and_columns_are_merged_and_searched_with(
    method: str,
    reads: str,
    quick_pool: Path,
    quick_search: list[str],
    cache: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "learned.yaml"
    assert main(["learn", *quick_search, *words(quick_pool, out, f"learning.method={method}")]) == 0
    assert f"search_space.method={reads} statistics.learned=" in " ".join(capsys.readouterr().out.split())
    assert main(["merge", str(out), str(tmp_path / "model")]) == 0
    merged, base = (load_file(own / "model.safetensors") for own in (tmp_path / "model", quick_pool / "base"))
    assert any(not torch.equal(merged[name], base[name]) for name in base)

    space = ["search_space=parameter", f"search_space.method={reads}", "search_space.components=all"]
    space += ["search_space.layer_group=all", "search.evaluations=4", "fitness.limit=4", "fitness@held_out=null"]
    assert main(["validate", *quick_search, *space]) == 2
    assert "statistics.learned is not set" in capsys.readouterr().err
    run = tmp_path / "run"
    told = [f"statistics.learned='{out}'", f"run_dir='{run}'", "display=quiet", "search.baselines=false"]
    assert main(["search", *quick_search, *space, *told]) == 0
    best = read_recipe_file(run / "best" / "recipe.yaml")
    assert best.calibration == read_recipe_file(out).calibration
    assert {entry.method for entry in best.slices} == {reads}


def test_what_is_wrong_is_said_before_models_are_loaded(
    quick_pool: Path, quick_search: list[str], cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "learned.yaml"
    for more, said in (
        (words(quick_pool, out, split="_held_out"), "held-out items are calibration items"),
        (words(quick_pool, out, "search_space=ties"), "by ties"),
        (words(quick_pool, out, "search_space=slerp"), "by slerp"),
        (words(quick_pool, out, "pool.base=null"), "the pool has no base"),
        (words(quick_pool, out, "learning.method=dam2"), "learning.method is 'dam2'"),
        (words(quick_pool, out, "learning.checkpoint=0"), "learning.checkpoint is 0"),
        (words(quick_pool, tmp_path / "no" / "x.yaml"), "is not there"),
        ([f"learning.out='{out}'"], "calibration is not set"),
    ):
        assert main(["learn", *quick_search, *more]) == 2, said
        assert said in capsys.readouterr().err
    assert not out.exists()
    assert not cache.exists()
