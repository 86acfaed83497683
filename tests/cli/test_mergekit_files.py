"""The verbs on mergekit's files: merge, export, evaluate and import."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from evomerge.cli.main import main
from evomerge.recipes.yaml_reader import load_recipe


@pytest.fixture
def merge_file(quick_pool: Path, tmp_path: Path) -> Path:
    """A mergekit file beside links to its models."""
    for name in ("base", "math", "lang"):
        (tmp_path / name).symlink_to(quick_pool / name)
    file = tmp_path / "merge.yaml"
    file.write_text("""
merge_method: task_arithmetic
base_model: base
models:
- {model: math, parameters: {weight: [0.25, 0.75]}}
- {model: lang, parameters: {weight: [{filter: mlp, value: 0.5}, {value: 0.25}], density: 1}}
out_dtype: float32
""")
    return file


def test_a_mergekit_file_is_merged(merge_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["merge", str(merge_file), str(out)]) == 0
    ignored = "models[1].parameters.density is no parameter of task_arithmetic: ignored, as mergekit does"
    assert capsys.readouterr().err == f"note: {merge_file}: {ignored}\n"
    merged, base, math, lang = (
        load_file(folder / "model.safetensors") for folder in (out, *(tmp_path / n for n in ("base", "math", "lang")))
    )
    embedded, inner = "model.embed_tokens.weight", "model.layers.5.mlp.down_proj.weight"
    for name, weights in ((embedded, (0.25, 0.25)), (inner, (0.75, 0.5))):
        expected = base[name] + weights[0] * (math[name] - base[name]) + weights[1] * (lang[name] - base[name])
        torch.testing.assert_close(merged[name], expected)


def test_it_is_exported_both_ways(merge_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ours, back = tmp_path / "recipe.yaml", tmp_path / "back.yaml"
    assert main(["export", str(merge_file), "-o", str(ours)]) == 0
    assert main(["export", str(ours), "--format", "mergekit", "-o", str(back)]) == 0
    capsys.readouterr()
    assert main(["export", str(back), "--format", "evomerge"]) == 0
    printed = capsys.readouterr()
    assert load_recipe(printed.out).hash == load_recipe(ours.read_text()).hash
    assert printed.err == ""
    assert yaml.safe_load(back.read_text())["merge_method"] == "task_arithmetic"


def test_it_is_evaluated(merge_file: Path, quick_pool: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = merge_file.read_text().replace("[0.25, 0.75]", "0").replace("value: 0.5", "value: 0").replace("0.25", "0")
    merge_file.write_text(text)
    settings = ["experiment=demo", f"pool.root='{quick_pool}'", "evaluator.device=cpu", "fitness.limit=8", "--json"]
    scores = []
    for target in (merge_file, quick_pool / "base"):  # nothing is added to the base
        assert main(["evaluate", str(target), *settings]) == 0
        scores.append(json.loads(capsys.readouterr().out))
    assert scores[0] == scores[1]


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("merge_method", "merge_method: linear\nmerge_method", "'merge_method' on line 3 is given twice"),
        ("base_model: base", "base_model: bas", "bas"),
        ("weight: [0.25, 0.75]", "wieght: 1", "models[0].parameters.wieght; did you mean 'weight'"),
        ("out_dtype", "tokenizer_source: unio\nout_dtype", "unio"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    merge_file: Path, old: str, new: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    merge_file.write_text(merge_file.read_text().replace(old, new, 1))
    assert main(["export", str(merge_file)]) == 2
    *_, error = capsys.readouterr().err.splitlines()
    assert error.startswith("evomerge: error: ")
    assert says in error


def test_an_imported_experiment_is_valid_and_runs(
    quick_pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evolve.yml").write_text(f"""
genome:
  models: [{quick_pool}/math, {quick_pool}/lang]
  base_model: {quick_pool}/base
  merge_method: task_arithmetic
  layer_granularity: 3
  filters: [self_attn, mlp]
tasks:
- {{name: demo_e_maths, metric: 'acc,none'}}
- {{name: demo_j_language, weight: 0.5}}
limit: 20
apply_chat_template: false
""")
    found = ["--config-dir", "my", "experiment=found", "evaluator.device=cpu"]
    tasks = str(quick_pool / "tasks")
    assert main(["import", "evolve.yml", "--include-path", tasks, "-o", "my/experiment/found.yaml"]) == 0
    assert "evomerge search --config-dir my experiment=found" in capsys.readouterr().err
    assert main(["validate", *found]) == 0
    assert "16" in capsys.readouterr().out  # genes: two models, three components in two groups, and two outside
    assert main(["search", *found, "search.evaluations=4", "strategy.popsize=4", "run_dir=run"]) == 0
    assert (tmp_path / "run" / "best" / "mergekit.yaml").is_file()


def test_import_refuses_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "evolve.yml"
    file.write_text("genome: {models: [a], merge_method: linear, smoth: true}\ntasks: [x]\n")
    assert main(["import", str(file)]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert "unknown key genome.smoth; did you mean 'smooth'" in error
    assert main(["import", str(tmp_path / "none.yml")]) == 2
    assert "there is no file" in capsys.readouterr().err
