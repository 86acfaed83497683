"""The demo's training checkpoints, and a search over them from the command line."""

from __future__ import annotations

import itertools
import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from evomerge.cli.main import main
from evomerge.demo.checkpoints import make_checkpoints
from evomerge.demo.pool import make_demo_pool
from evomerge.errors import ConfigError, OutputError
from evomerge.recipes.yaml_reader import read_recipe_file
from evomerge.report.outcome import read_run


@pytest.fixture(scope="module")
def quick_pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A quick pool with four checkpoints."""
    pool = make_demo_pool(tmp_path_factory.mktemp("demo") / "pool", 0, threads=1, quick=True, progress=False)
    make_checkpoints(pool, 0, 4, threads=1, quick=True)
    return pool


def test_checkpoints_are_steps_of_one_training(quick_pool: Path) -> None:
    folder = quick_pool / "training"
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    assert names == ["checkpoint-1", "checkpoint-2", "checkpoint-3", "checkpoint-4"]
    weights = [load_file(quick_pool / "base" / "model.safetensors")]
    weights += [load_file(folder / name / "model.safetensors") for name in names]
    moved = [
        math.sqrt(sum(float((b[name] - a[name]).square().sum()) for name in a)) for a, b in itertools.pairwise(weights)
    ]
    assert all(0 < distance < 1 for distance in moved)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    assert make_checkpoints(quick_pool, 0, 4, threads=1, quick=True) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")} == before


def test_others_are_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "mine").write_text("")
    with pytest.raises(OutputError, match="holds no checkpoints of a demo"):
        make_checkpoints(tmp_path, 0, 4)
    with pytest.raises(ConfigError, match="1 checkpoints are asked for; 2 to 200"):
        make_checkpoints(tmp_path, 0, 1)
    assert main(["demo", "--checkpoints", "4"]) == 2


def test_a_search_over_them_is_compared_with_averages_and_goes_on(quick_pool: Path, tmp_path: Path) -> None:
    run, merged = tmp_path / "run", tmp_path / "merged"
    small = ["fitness.limit=2", "held_out.limit=2", "search.evaluations=6", "strategy.popsize=3"]
    asked = [f"pool.root='{quick_pool}'", "search_space.rates=[0.5]", *small, f"run_dir='{run}'"]
    assert main(["search", "experiment=lcsc", *asked]) == 0
    record = read_run(run)
    assert [model.name for model in record.baselines] == ["step-4", "uniform average", "EMA 0.5"]
    events = [json.loads(line) for line in (run / "ledger.jsonl").read_text().splitlines()]
    assert [event["source"] for event in events if event["event"] == "warm"] == [
        *("baseline step-4", "baseline uniform average", "baseline EMA 0.5"),
    ]
    recipe = read_recipe_file(run / "best" / "recipe.yaml", "the winner")
    weights = [float(dict(own.parameters)["weight"]) for own in recipe.slices[0].inputs]
    assert math.fsum(weights) == pytest.approx(1, abs=1e-12)

    # It goes on with what it began with, whatever the training has saved since.
    later = quick_pool / "training" / "checkpoint-5"
    shutil.copytree(quick_pool / "training" / "checkpoint-4", later)
    assert main(["resume", str(run), "search.evaluations=9"]) == 0
    shutil.rmtree(later)
    assert read_run(run).counts == {"ok": 9}

    assert main(["merge", str(run), str(merged)]) == 0
    recipe = read_recipe_file(run / "best" / "recipe.yaml", "the winner")
    weights = [float(dict(own.parameters)["weight"]) for own in recipe.slices[0].inputs]
    every = [load_file(quick_pool / "training" / f"checkpoint-{n}" / "model.safetensors") for n in range(1, 5)]
    found = load_file(merged / "model.safetensors")
    for name, tensor in found.items():
        expected = sum(weight * own[name].double() for weight, own in zip(weights, every, strict=True))
        torch.testing.assert_close(tensor.double(), expected, rtol=1e-5, atol=1e-6)
