"""Merge methods of one's own, from a module beside the experiment, through every verb that needs them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from evomerge.cli.main import main
from evomerge.merge.methods import METHODS, registry
from evomerge.models.opening import open_pool
from evomerge.recipes.slices import Input, SliceRecipe
from evomerge.recipes.yaml_reader import dump_recipe, load_recipe

MODULE = '''
import torch

from evomerge.merge.methods import merge_method
from evomerge.recipes.method_spec import ParameterSpec

SHARE = ParameterSpec("share", 0.5, low=0.2, high=0.8, minimum=0.0, maximum=1.0, searched=True, summary="of the second")


@merge_method("blend", SHARE, summary="the larger magnitude, a little", min_inputs=2, max_inputs=2, elementwise=True)
def blend(inputs, base, *, context, share):
    """A share of the element that is larger, the rest of the other."""
    first, second = inputs
    return torch.where(first.abs() > second.abs(), torch.lerp(second, first, share), torch.lerp(first, second, share))
'''
ROOT = Path(__file__).parents[2]


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with a module that adds the method ``blend``; forgotten afterwards."""
    (tmp_path / "own_methods.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    registry._METHODS.pop("blend", None)
    sys.modules.pop("own_methods", None)


@pytest.fixture
def recipe(own: Path, quick_pool: Path) -> Path:
    """A recipe file that blends every slice."""
    pool = open_pool({name: str(quick_pool / name) for name in ("base", "math", "lang")}, base="base")
    plain = pool.info.linear({"math": 1.0})
    inputs = (Input("math"), Input("lang"))
    slices = tuple(SliceRecipe(entry.slice, "blend", inputs, (("share", 0.75),)) for entry in plain.slices)
    (own / "recipe.yaml").write_text(dump_recipe(replace(plain, slices=slices)))
    return own / "recipe.yaml"


def evomerge(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command as its installed script does: without the current folder among Python's paths (-P)."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}
    command = [sys.executable, "-P", "-m", "evomerge.cli.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_a_recipe_with_a_method_of_ones_own_is_merged(own: Path, recipe: Path, quick_pool: Path) -> None:
    done = evomerge("merge", "recipe.yaml", "out", "--import", "own_methods")
    assert done.returncode == 0, done.stderr
    merged, first, second = (
        load_file(f / "model.safetensors") for f in (own / "out", *map(quick_pool.joinpath, ("math", "lang")))
    )
    for name in ("model.embed_tokens.weight", "model.layers.3.mlp.down_proj.weight"):
        larger = first[name].abs() > second[name].abs()
        expected = torch.where(
            larger, 0.25 * second[name] + 0.75 * first[name], 0.25 * first[name] + 0.75 * second[name]
        )
        torch.testing.assert_close(merged[name], expected, rtol=1e-5, atol=1e-7)


def test_without_the_module_the_error_says_what_is_missing(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["merge", str(recipe), "out"]) == 2
    error = capsys.readouterr().err
    assert "unknown merge method 'blend'" in error
    assert "a method of your own needs --import ITS_MODULE" in error


@pytest.mark.parametrize(
    "arguments", [["merge", "x.yaml", "out"], ["export", "x.yaml"], ["evaluate", "."], ["methods"]]
)
def test_a_module_that_is_not_there(own: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*arguments, "--import", "own_method"]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("evomerge: error: --import: there is no module 'own_method'")
    assert "did you mean 'own_methods'" in error
    assert "\n" not in error


def test_validate(own: Path, quick_search: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    space = ["imports=[own_methods]", "search_space.method=[task_arithmetic,blend]", "search_space.components=all"]
    assert main(["validate", *quick_search, *space, "search_space.parameters.blend.share.high=0.7"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "genes" in line)
    # Embeddings with the final norm, and each of 6 layers: a method, two weights and a share.
    assert line.split()[-2] == str(7 * 4)


def test_a_search_for_methods_and_their_parameters(
    own: Path, quick_search: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    space = ["imports=[own_methods]", "search_space.method=[task_arithmetic,blend]", "search_space.components=all"]
    assert main(["search", *quick_search, *space, "search.evaluations=4", "run_dir=run"]) == 0, capsys.readouterr().err
    assert "evomerge merge run OUT --import own_methods" in capsys.readouterr().out
    found = load_recipe((own / "run" / "best" / "recipe.yaml").read_text())
    assert {entry.method for entry in found.slices} <= {"task_arithmetic", "blend"}
    assert "imports:\n- own_methods\n" in (own / "run" / "config.yaml").read_text()
    # What the run imported is imported again when that is asked for.
    assert main(["evaluate", "run", "--json"]) == 2
    assert "imports.0: own_methods" in capsys.readouterr().err
    assert main(["evaluate", "run", "--json", "--import", "own_methods"]) == 0


def test_workers_import_the_modules_too(own: Path, quick_search: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from evomerge.config.compose import compose_config
    from evomerge.evaluation.cache_settings import CacheSettings
    from evomerge.session.parts import build_parts

    overrides = [
        *quick_search,
        "imports=[own_methods]",
        "evaluator=ray",
        "search_space=parameter",
        "search_space.method=blend",
    ]
    parts = build_parts(compose_config(overrides))
    build = parts.evaluator._build  # what travels to a worker
    registry._METHODS.pop("blend")
    sys.modules.pop("own_methods")
    monkeypatch.chdir("/")
    build(device="cpu", threads=None, cache=CacheSettings())
    assert METHODS["blend"].spec.parameter("share") is not None
