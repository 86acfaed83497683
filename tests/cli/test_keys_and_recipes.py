"""Keys that a verb does not use, overrides that cannot be read, recipes of runs with nothing to compare."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from evomerge.cli.main import main

Error = Callable[..., str]


@pytest.fixture
def error(capsys: pytest.CaptureFixture[str]) -> Error:
    """Runs a command that must fail with one line, and returns the line."""

    def run(*words: str) -> str:
        assert main(list(words)) == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1, lines
        return lines[0]

    return run


@pytest.mark.parametrize(
    "key", ["search.seed=3", "strategy.popsize=4", "pool.base=math", "evaluator.cache=1GB", "name=x"]
)
def test_evaluate_refuses_what_it_does_not_use(error: Error, quick_pool: Path, key: str) -> None:
    text = error("evaluate", str(quick_pool / "math"), "experiment=demo", f"pool.root='{quick_pool}'", key)
    assert f"does not use {key.partition('=')[0]}; keys that it uses: fitness, held_out" in text


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("evaluator.quantise=int8", "does not use evaluator.quantise; it always scores in full precision"),
        ("evaluator.quantise_held_out=true", "evaluator.quantise_held_out; it always scores in full precision"),
        ("evaluator.engine=vllm", "evaluator.engine is 'vllm'; `evomerge evaluate` scores with transformers"),
    ],
)
def test_evaluate_is_in_full_precision_and_with_transformers(
    error: Error, quick_pool: Path, key: str, said: str
) -> None:
    assert said in error("evaluate", str(quick_pool / "math"), "experiment=demo", f"pool.root='{quick_pool}'", key)


def test_evaluate_takes_an_experiment_for_the_recipe_of_a_run_and_not_for_the_run(
    error: Error, finished_run: Path, quick_pool: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["experiment=demo", f"pool.root='{quick_pool}'", "fitness.limit=3", "--json"]
    text = error("evaluate", str(finished_run), *words)
    assert f"experiment=demo was given with a run; the configuration is that of {finished_run}; give keys" in text
    file = finished_run / "best" / "recipe.yaml"
    assert str(file) in text
    assert main(["evaluate", str(file), *words]) == 0
    beside = capsys.readouterr().out
    assert main(["evaluate", str(finished_run), "fitness.limit=3", "--json"]) == 0
    assert json.loads(beside) == json.loads(capsys.readouterr().out)


def test_a_run_with_another_engine_is_scored_with_transformers_where_asked(
    error: Error,
    finished_run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    written = (run / "config.yaml").read_text()
    other = written.replace("engine: transformers", "engine: vllm").replace(
        "engine_args: {}", "engine_args: {max_model_len: 64}"
    )
    assert other.count("vllm") == other.count("max_model_len: 64") == 1
    (run / "config.yaml").write_text(other)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "vllm" else find(name, *more))
    assert "set evaluator.engine=transformers" in error("evaluate", str(run), "fitness.limit=3")
    assert "with transformers, or vllm as in the run" in error("evaluate", str(run), "evaluator.engine=server")
    scores = []
    for words in ([str(run), "evaluator.engine=transformers"], [str(finished_run)]):
        assert main(["evaluate", *words, "fitness.limit=3", "--json"]) == 0
        scores.append(json.loads(capsys.readouterr().out))
    assert scores[0] == scores[1]


def test_evaluate_scores_in_the_dtype_that_it_is_given(
    error: Error, quick_pool: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", "math", "experiment=demo", f"pool.root='{quick_pool}'", "fitness.limit=8", "--json"]
    scores = {}
    for dtype in ("float32", "bfloat16"):
        assert main([*words, f"pool.dtype={dtype}"]) == 0
        scores[dtype] = json.loads(capsys.readouterr().out)["objectives"]["score"]
    assert scores["float32"] != scores["bfloat16"]
    assert scores["float32"] == pytest.approx(scores["bfloat16"], abs=0.2)
    assert "pool.dtype is 'float99'; did you mean 'float32'?" in error(*words, "pool.dtype=float99")


def test_a_value_with_marks_is_shown_as_typed_and_with_the_quotes_that_it_needs(error: Error) -> None:
    text = error("validate", "experiment=demo", "pool.models.a=epoch=1-step=20")
    assert "cannot read the override 'pool.models.a=epoch=1-step=20'" in text
    assert """pool.models.a='"epoch=1-step=20"'""" in text
    assert "++" not in text


def test_a_model_named_null(error: Error) -> None:
    text = error("validate", "experiment=demo", "pool.models={base: base, null: math}")
    assert "names are words: null, true and numbers are none; one of them as a name: pool.models.NAME=" in text


def test_a_run_with_nothing_to_compare_can_be_merged_and_exported(
    quick_search: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    words = [word for word in quick_search if not word.startswith(("search.evaluations", "strategy"))]
    bare = ["strategy=random", "search.evaluations=2", "search.baselines=false", "held_out=null", "fitness.limit=4"]
    assert main(["search", *words, *bare, f"run_dir='{run}'"]) == 0
    assert main(["merge", str(run), str(tmp_path / "model")]) == 0
    assert main(["merge", str(run / "best" / "recipe.yaml"), str(tmp_path / "again")]) == 0
    for folder in ("model", "again"):
        assert (tmp_path / folder / "model.safetensors").is_file()
        assert "| held" not in (tmp_path / folder / "README.md").read_text()
    for kind in ("evomerge", "mergekit", "optuna"):
        assert main(["export", str(run), "--format", kind, "-o", str(tmp_path / kind)]) == 0
    assert "Traceback" not in capsys.readouterr().err
