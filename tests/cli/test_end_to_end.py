"""From a search to a model that plain transformers loads and the stock lm_eval command scores the same."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from evomerge.cli.main import main
from evomerge.recipes.yaml_reader import load_recipe
from evomerge.run.ledger import read_ledger

TASKS = ("demo_e_maths", "demo_j_language", "demo_j_maths")


@pytest.fixture(scope="module")
def merged(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("merged") / "model"
    assert main(["merge", str(finished_run), str(out)]) == 0
    return out


def told(run: Path, split: str, candidate: int) -> dict[str, float]:
    events = [e for e in read_ledger(run) if e["event"] == "told" and e["split"] == split]
    return next(e["metrics"] for e in events if e["candidate"] == candidate)


def best(run: Path) -> int:
    return [e["candidate"] for e in read_ledger(run) if e["event"] == "improved"][-1]


def test_the_run_folder_holds_everything(finished_run: Path) -> None:
    names = {str(p.relative_to(finished_run)) for p in finished_run.rglob("*") if p.is_file()}
    assert {"config.yaml", "pool.json", "ledger.jsonl", "best/recipe.yaml", "best/mergekit.yaml"} <= names
    events = list(read_ledger(finished_run))
    assert (events[0]["event"], events[-1]["event"]) == ("started", "stopped")
    assert sum(e["event"] == "told" for e in events) == 4 + 12 + 5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("split", "suffix"), [pytest.param("search", "", marks=pytest.mark.nightly), ("held_out", "_held_out")]
)
def test_the_stock_command_prints_the_same_scores(
    finished_run: Path, merged: Path, quick_pool: Path, tmp_path: Path, split: str, suffix: str
) -> None:
    command = [
        *(sys.executable, "-m", "lm_eval", "--model", "hf", "--model_args", f"pretrained={merged},dtype=float32"),
        *("--tasks", ",".join(task + suffix for task in TASKS), "--include_path", str(quick_pool / "tasks")),
        *("--batch_size", "64", "--device", "cpu", "--output_path", str(tmp_path / "scores.json")),
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "HF_HUB_OFFLINE": "1"}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (file,) = tmp_path.rglob("scores*.json")
    results = json.loads(file.read_text())["results"]
    stock = {
        f"{task}/{key.removesuffix(',none')}": value
        for task, values in results.items()
        for key, value in values.items()
        if key.endswith(",none") and "stderr" not in key
    }
    assert len(stock) == 6  # three tasks, two metrics each
    assert told(finished_run, split, best(finished_run)) == stock


def test_evaluate_gives_the_same_scores_as_the_search(
    finished_run: Path, merged: Path, quick_search: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    expected = told(finished_run, "search", best(finished_run))
    for target, overrides in ((finished_run, []), (merged, quick_search[:3])):
        assert main(["evaluate", str(target), "--json", *overrides]) == 0
        assert json.loads(capsys.readouterr().out)["metrics"] == expected


def test_searches_share_forwards_and_held_out_scores_do_not(
    finished_run: Path, quick_search: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main(["search", *quick_search, "fitness.forwards=auto", f"run_dir='{run}'"]) == 0
    told_ = [event for event in read_ledger(run) if event["event"] == "told"]
    for event in told_:
        tokens = event["tokens"]
        assert (tokens["run"] < 0.9 * tokens["stock"]) == (event["split"] == "search")
        assert event["split"] == "search" or tokens["run"] == tokens["stock"]
    for exact, shared in zip(
        [event for event in read_ledger(finished_run) if event["event"] == "told"][:4], told_, strict=False
    ):  # the baselines
        assert shared["objectives"]["score"] == pytest.approx(exact["objectives"]["score"], rel=1e-5)
    capsys.readouterr()
    assert main(["evaluate", str(run), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["objectives"]["score"]
    assert found == pytest.approx(
        told_[[e["candidate"] for e in told_].index(best(run))]["objectives"]["score"], rel=1e-5
    )


def test_the_merged_model_is_the_recipe(finished_run: Path, merged: Path, quick_pool: Path) -> None:
    recipe = load_recipe((finished_run / "best" / "recipe.yaml").read_text())
    result = AutoModelForCausalLM.from_pretrained(merged).state_dict()
    sources = {
        name: AutoModelForCausalLM.from_pretrained(quick_pool / name).state_dict() for name in dict(recipe.models)
    }
    (embed,) = [entry for entry in recipe.slices if str(entry.slice) == "embed"]
    name = "model.embed_tokens.weight"
    expected = sources["base"][name].clone()
    for entry in embed.inputs:
        expected += dict(entry.parameters)["weight"] * (sources[entry.model][name] - sources["base"][name])
    torch.testing.assert_close(result[name], expected, rtol=1e-5, atol=1e-7)


def test_the_model_card_has_the_scores_and_sources(merged: Path) -> None:
    card = (merged / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert {"merge", "evomerge"} <= set(front["tags"])
    for word in ("math", "lang", "uniform average", "demo_j_maths_held_out"):
        assert word in card


def test_exported_recipes_are_the_run_s(finished_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(finished_run)]) == 0
    assert capsys.readouterr().out == (finished_run / "best" / "recipe.yaml").read_text()
    assert main(["export", str(finished_run / "best" / "recipe.yaml"), "--format", "mergekit"]) == 0
    assert capsys.readouterr().out == (finished_run / "best" / "mergekit.yaml").read_text()


def test_the_same_seed_gives_the_same_ledger(finished_run: Path, quick_search: list[str], tmp_path: Path) -> None:
    from evomerge.run.ledger import canonical_events

    assert main(["search", *quick_search, f"run_dir='{tmp_path / 'again'}'"]) == 0
    assert canonical_events(tmp_path / "again") == canonical_events(finished_run)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.nightly), 2])
def test_ray_gives_the_same_ledger(finished_run: Path, quick_search: list[str], tmp_path: Path, workers: int) -> None:
    from evomerge.run.ledger import canonical_events

    overrides = ["evaluator=ray", f"evaluator.workers={workers}", f"run_dir='{tmp_path / 'ray'}'"]
    assert main(["search", *quick_search, *overrides]) == 0
    assert canonical_events(tmp_path / "ray") == canonical_events(finished_run)


def test_sweeps_get_a_folder_each(quick_search: list[str], tmp_path: Path) -> None:
    overrides = ["search.evaluations=4", "search.seed=1,2", f"run_dir='{tmp_path / 'sweep'}'"]
    assert main(["search", "-m", *quick_search, *overrides]) == 0
    seeds = [next(iter(read_ledger(tmp_path / "sweep" / str(job))))["seed"] for job in (0, 1)]
    assert seeds == [1, 2]
