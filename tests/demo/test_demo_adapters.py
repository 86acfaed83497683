"""The demo's adapters, and Evo-Merging over them from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from evomerge.cli.main import main
from evomerge.demo.adapters import make_adapters
from evomerge.demo.pool import make_demo_pool
from evomerge.errors import ConfigError, OutputError
from evomerge.recipes.yaml_reader import read_recipe_file


@pytest.fixture(scope="module")
def quick_pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A quick pool with three adapters."""
    pool = make_demo_pool(tmp_path_factory.mktemp("demo") / "pool", 0, threads=1, quick=True, progress=False)
    make_adapters(pool, 0, 3, threads=1, quick=True)
    return pool


def weights(folder: Path) -> dict[str, torch.Tensor]:
    (own,) = folder.glob("00-*/adapter_model.safetensors")
    return load_file(own)


def test_adapters_do_not_depend_on_how_many_there_are(quick_pool: Path) -> None:
    first = weights(quick_pool / "adapters")
    assert len(first) == 2 * 7 * 6
    assert all(tensor.abs().sum() > 0 for tensor in first.values())  # it has learnt: B began at zero
    names = [path.name for path in (quick_pool / "adapters").iterdir()]
    make_adapters(quick_pool, 0, 3, threads=1, quick=True)
    assert [path.name for path in (quick_pool / "adapters").iterdir()] == names
    make_adapters(quick_pool, 0, 2, threads=1, quick=True)
    fewer = weights(quick_pool / "adapters")
    make_adapters(quick_pool, 0, 3, threads=1, quick=True)
    assert all(torch.equal(fewer[name], tensor) for name, tensor in first.items())


def test_others_are_not_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "adapters").mkdir()
    with pytest.raises(OutputError, match="holds no adapters of a demo"):
        make_adapters(tmp_path, 0, 4)
    with pytest.raises(ConfigError, match="1 adapters are asked for; 2 to 1000"):
        make_adapters(tmp_path, 0, 1)
    assert main(["demo", "--adapters", "4"]) == 2
    assert "--adapters is 4 without --pool-only" in capsys.readouterr().err


def test_stages_follow_each_other_and_the_winner_is_an_adapter(quick_pool: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    small = ["fitness.limit=2", "held_out.limit=2", "search.evaluations=9", "phases.keep.evaluations=3"]
    small += ["strategy.popsize=3", "phases.scale.strategy.popsize=3"]
    small += ["search_space.parameters.cross=true", f"pool.root='{quick_pool}'", f"run_dir='{run}'"]
    assert main(["search", "experiment=demo_adapters", *small]) == 0
    events = [json.loads(line) for line in (run / "ledger.jsonl").read_text().splitlines()]
    phases = [event for event in events if event["event"] == "phase"]
    kinds = [{name.rpartition("/")[2] for name in phase["genes"]} for phase in phases]
    assert kinds == [{"density"}, {"weight"}]
    asked = {e["candidate"]: e["genome"] for e in events if e["event"] == "asked" and e["split"] == "search"}
    told = [e for e in events if e["event"] == "told" and e["split"] == "search" and asked[e["candidate"]]]
    assert len(told) == 9
    for event in told:
        mean = sum(abs(value) for value in asked[event["candidate"]]) / 3
        assert event["penalised"]["score"] == pytest.approx(event["objectives"]["score"] - 0.05 * mean)
    # The winner has the best score of all phases as it is.
    best = max(told, key=lambda e: e["objectives"]["score"])
    improved = [event for event in events if event["event"] == "improved"]
    assert improved[-1]["objective"] == best["objectives"]["score"]

    assert main(["merge", str(run), str(tmp_path / "adapter"), "--format", "lora"]) == 0
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert settings["r"] == 4  # with cross terms the rank of one, whatever their number
    recipe = read_recipe_file(run / "best" / "recipe.yaml", "the winner")
    assert {entry.method for entry in recipe.slices} == {"lora_factors"}
