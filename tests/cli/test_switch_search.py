"""A search over models with a switch, each task with its own; what it finds, written as one task's model and as all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import evomerge
from evomerge.cli.main import main
from evomerge.recipes.switches import switch_of
from evomerge.recipes.yaml_reader import load_recipe
from evomerge.run.ledger import canonical_events, read_ledger

PARTS = {"demo_e_maths": "math", "demo_j_language": "lang"}


@pytest.fixture(scope="module")
def search(quick_pool: Path) -> list[str]:
    few = ["search.evaluations=6", "strategy.popsize=3", "fitness.limit=6", "held_out.limit=4", "fitness.batch_size=6"]
    return ["experiment=demo_switch", f"pool.root='{quick_pool}'", "fitness.forwards=exact", *few]


@pytest.fixture(scope="module")
def run(search: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("switch") / "run"
    assert main(["search", *search, f"run_dir='{folder}'"]) == 0
    return folder


def told(folder: Path, split: str) -> list[dict[str, Any]]:
    return [event for event in read_ledger(folder) if event["event"] == "told" and event["split"] == split]


def equal(one: Path, other: Path) -> bool:
    tensors, others = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    return tensors.keys() == others.keys() and all(tensor.equal(others[name]) for name, tensor in tensors.items())


def test_each_task_is_scored_with_its_own_switch(
    run: Path, search: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = load_recipe((run / "best" / "recipe.yaml").read_text())
    switch = switch_of(recipe)
    assert switch is not None
    assert switch.tasks == ("math", "lang")
    best = max(told(run, "search"), key=lambda event: (event["candidate"] >= 0, event["objectives"]["score"]))
    best = next(e for e in told(run, "search") if e["candidate"] == json.loads((run / "best" / "best.json").read_text())["candidate"]) if (run / "best" / "best.json").is_file() else best  # fmt: skip
    capsys.readouterr()
    assert main(["evaluate", str(run), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    for task, source in PARTS.items():
        assert main(["merge", str(run), str(tmp_path / source), "--task", source]) == 0
        capsys.readouterr()
        alone = ["fitness.include_path=", f"fitness.tasks=[{{task: {task}, metrics: {{acc: 1.0, perplexity: 1.0}}}}]"]
        overrides = [*search[:3], *search[5:], f"fitness.include_path='{search[1].split(chr(39))[1]}/tasks'", alone[1]]
        assert main(["evaluate", str(tmp_path / source), "--json", *overrides]) == 0
        one = json.loads(capsys.readouterr().out)["metrics"]
        assert one == {key: value for key, value in found["metrics"].items() if key.startswith(f"{task}/")}
    assert not equal(tmp_path / "math", tmp_path / "lang")
