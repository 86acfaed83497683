"""Keys that a verb does not use, overrides that cannot be read, recipes of runs with nothing to compare."""

from __future__ import annotations

import json
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
