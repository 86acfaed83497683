"""Searches for a path from the command line: models of several depths, and what is refused before a model is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_models import TinyModel
from transformers import AutoModelForCausalLM

from evomerge.cli.main import main
from evomerge.export.writer import write_model
from evomerge.models.opening import open_pool
from evomerge.recipes.yaml_reader import load_recipe
from evomerge.run.ledger import read_ledger
from search_spaces.path_pool import ALONE, PathPool
from search_spaces.paths import Step, path_slices

EXPERIMENT = ["experiment=demo_data_flow", "pool=custom"]


def overrides(tasks: Path, run: Path, models: dict[str, Path]) -> list[str]:
    (tasks / "tasks").mkdir(exist_ok=True)
    named = ", ".join(f"{name}: '{folder}'" for name, folder in models.items())
    return [*EXPERIMENT, f"pool.root='{tasks}'", f"pool.models={{{named}}}", f"run_dir='{run}'"]


def test_models_of_several_depths_from_the_search_to_a_model(
    quick_pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pool = open_pool({"math": str(quick_pool / "math")})
    order = [0, 1, 1, *range(2, pool.info.layers), pool.info.layers - 1]
    steps = [Step("math", layer) for layer in order]
    whole = PathPool.of(pool.info, None, ALONE)
    deep = write_model(whole.recipe(path_slices(steps, whole, "math", "math")), pool, tmp_path / "deep")

    run, out = tmp_path / "run", tmp_path / "merged"
    models = {"math": quick_pool / "math", "deep": deep, "lang": quick_pool / "lang"}
    # Not the input model first: with so few evaluations it would win, and has no path.
    plain = ["search_space.gentle_start=false", "strategy.start=0.7"]
    more = ["search.evaluations=4", "strategy.popsize=4", "search_space.max_layers=12", "search.seed=1", *plain]
    assert main(["search", *overrides(quick_pool, run, models), *more]) == 0
    told = [entry for entry in read_ledger(run) if entry["event"] == "told" and entry["split"] == "search"]
    assert len(told) == 4 + 3  # the sources too
    assert any(entry["status"] == "ok" for entry in told)
    assert main(["merge", str(run), str(out)]) == 0
    recipe = load_recipe((run / "best" / "recipe.yaml").read_text())
    layers = [entry for entry in recipe.slices if entry.slice.component == "attn"]
    assert "## Path\n\nA path of" in (out / "README.md").read_text()
    assert f"A path of {len(layers)} layers" in (out / "README.md").read_text()
    module: Any = AutoModelForCausalLM.from_pretrained(out)
    assert module.config.num_hidden_layers == len(module.model.layers) == len(layers)
    opened = open_pool({name: str(folder) for name, folder in models.items()})
    for entry in layers:
        source = entry.slice.layer if entry.inputs[0].layer is None else entry.inputs[0].layer
        own = module.model.layers[entry.slice.layer].self_attn.q_proj.weight  # which no scale changes
        assert own.equal(opened.read(entry.inputs[0].model, f"model.layers.{source}.self_attn.q_proj.weight"))
    capsys.readouterr()
    assert main(["status", str(run)]) == 0
    assert "A path of" in capsys.readouterr().out


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert main(["validate", *arguments]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("evomerge: error:")]
    return line


@pytest.mark.parametrize(
    ("kind", "both", "second", "says"),
    [
        ("llama", {}, {"hidden_size": 32}, "model 'b' has head_dim 8 in config.json, 'a' has 4"),
        ("llama", {}, {"rope_theta": 77.0}, "model 'b' has rope_parameters.rope_theta 77.0 in config.json, 'a' has"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, {}, "its layer 1 computes something else than layer 0"),
    ],
)
def test_models_that_no_path_joins(
    kind: str,
    both: dict[str, Any],
    second: dict[str, Any],
    says: str,
    tiny_model: TinyModel,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    models = {"a": tiny_model("a", kind, **both), "b": tiny_model("b", kind, 1, **both, **second)}
    assert says in refused(overrides(tmp_path, tmp_path / "run", models), capsys)


@pytest.mark.parametrize(
    ("limit", "says"),
    [
        ("search_space.max_layers=1", "the shortest: the path has 2 layers"),
        ("search_space.min_layers=99", "the longest: the path has 4 layers"),
        ("search_space.max_parameters=10", "the path makes a model of"),
    ],
)
def test_limits_that_leave_no_path(
    limit: str, says: str, tiny_model: TinyModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = {"a": tiny_model("a"), "b": tiny_model("b", seed=1)}
    assert says in refused([*overrides(tmp_path, tmp_path / "run", models), limit], capsys)


def test_layers_with_settings_of_their_own(
    tiny_model: TinyModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = {"a": tiny_model("a"), "b": tiny_model("b", seed=1)}
    for folder in models.values():
        content = json.loads((folder / "config.json").read_text())
        content["per_layer_config"] = {"1": {"rms_norm_eps": 1e-3}}
        (folder / "config.json").write_text(json.dumps(content))
    assert "'rms_norm_eps' is a per-layer attribute" in refused(overrides(tmp_path, tmp_path / "run", models), capsys)
