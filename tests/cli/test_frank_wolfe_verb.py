"""FW-Merging through the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from evomerge.cli.main import main
from evomerge.recipes.yaml_reader import read_recipe_file


def test_from_the_command_line(
    quick_pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path / "cache"))
    tasks = f"{quick_pool}/tasks"
    files = f"{{math: '{tasks}/demo_e_maths.jsonl', lang: ['{tasks}/demo_j_language.jsonl']}}"
    words = ["experiment=demo", f"pool.root='{quick_pool}'", "fitness@held_out=null", "calibration=text"]
    words += [f"calibration.files={files}", "calibration.items=3"]
    out = tmp_path / "recipe.yaml"
    assert main(["frank-wolfe", str(out), *words, "--iterations", "2", "--step", "0.5"]) == 0
    shown = capsys.readouterr().out
    assert "gap" in shown
    recipe = read_recipe_file(out)
    weights = {float(dict(own.parameters)["weight"]) for entry in recipe.slices for own in entry.inputs}  # type: ignore[arg-type]
    assert weights <= {0.125, 0.375, 0.625, 0.875}
    for wrong, said in (
        ([str(out), *words], "is there already"),
        ([str(tmp_path / "no" / "x.yaml"), *words], "is not there"),
        ([str(tmp_path / "x.yaml"), *words, "--step", "2"], "--step 2"),
        ([str(tmp_path / "x.yaml"), "experiment=demo", f"pool.root='{quick_pool}'"], "calibration is not set"),
    ):
        assert main(["frank-wolfe", *wrong]) == 2
        assert said in capsys.readouterr().err
