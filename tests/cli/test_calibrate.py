"""From calibration items to a merged model, through the command line."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest

import evomerge
from evomerge.cli.main import main
from evomerge.models.statistics import INDEX
from evomerge.recipes.yaml_reader import read_recipe_file
from evomerge.report.status import read_status


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "statistics"


def calibration(pool: Path, split: str = "") -> list[str]:
    tasks = f"{pool}/tasks"
    files = f"{{math: '{tasks}/demo_e_maths{split}.jsonl', lang: ['{tasks}/demo_j_language{split}.jsonl']}}"
    return ["calibration=text", f"calibration.files={files}", "calibration.items=6"]


def space(method: str) -> list[str]:
    return ["search_space=parameter", f"search_space.method={method}", "search_space.components=all"]


def test_a_search_by_statistics_end_to_end(
    quick_pool: Path, quick_search: list[str], cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*quick_search, *calibration(quick_pool), *space("[fisher,regmean]"), "search.evaluations=6"]
    words += ["fitness.limit=4", "held_out.limit=4", "search_space.layer_group=all"]
    assert main(["validate", *words]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "fisher, gram of 2 models, 6 items" in shown
    assert not cache.exists()  # no model was loaded

    run = tmp_path / "run"
    assert main(["search", *words, f"run_dir='{run}'", "display=quiet"]) == 0
    shown = capsys.readouterr()
    assert "statistics of data made in" in shown.err
    assert "Statistics of data took" in shown.out
    took = read_status(run).as_dict()["calibration"]
    assert took["seconds"] > 0
    assert 0 < took["share"] < 1
    made = sorted(cache.glob(f"*/{INDEX}"))
    assert len(made) == 4  # of each model the squares and the inner products
    before = [path.stat().st_mtime_ns for path in made]

    assert main(["search", *words, "search.seed=5", f"run_dir='{tmp_path / 'other'}'", "display=quiet"]) == 0
    shown = capsys.readouterr()
    assert "statistics of data made in" not in shown.err
    assert "Statistics of data were there before" in shown.out
    assert main(["calibrate", *words]) == 0
    assert [path.stat().st_mtime_ns for path in sorted(cache.glob(f"*/{INDEX}"))] == before

    recipe = read_recipe_file(run / "best" / "recipe.yaml")
    assert recipe.calibration is not None
    assert len(recipe.calibration.statistics) == 4
    assert {entry.method for entry in recipe.slices} <= {"fisher", "regmean"}
    capsys.readouterr()
    assert main(["export", str(run), "--format", "mergekit"]) == 2
    assert "reads statistics of data, and mergekit has none" in capsys.readouterr().err


def test_a_recipe_says_how_its_statistics_are_made_again(
    quick_pool: Path,
    quick_search: list[str],
    cache: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = [*quick_search, *calibration(quick_pool), *space("regmean"), "search.evaluations=4", "fitness.limit=4"]
    words += ["fitness@held_out=null", "search.baselines=false", "display=quiet", f"run_dir='{tmp_path / 'run'}'"]
    assert main(["search", *words]) == 0
    assert main(["merge", str(tmp_path / "run"), str(tmp_path / "one")]) == 0

    monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path / "another"))
    capsys.readouterr()
    assert main(["merge", str(tmp_path / "run"), str(tmp_path / "two")]) == 2
    error = capsys.readouterr().err
    assert "the statistics (gram) of model 'math' are not there" in error
    assert not (tmp_path / "two").exists()
    command = shlex.split(error[error.index("evomerge calibrate") :])
    assert main(command[1:]) == 0
    assert main(["merge", str(tmp_path / "run"), str(tmp_path / "two")]) == 0
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two
    average = (quick_pool / "base" / "model.safetensors").read_bytes()
    assert one != average


def test_texts_of_unknown_words_are_said(
    quick_pool: Path, quick_search: list[str], cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Once for a file, whichever verb reads it and for however many models."""
    file = tmp_path / "foreign.txt"
    file.write_text("mostly words of a language\nthat nobody here has learnt\n")
    said = "100% of the tokens of"
    words = [*quick_search, *space("fisher"), "calibration=text", f"calibration.files=['{file}']"]
    for verb in ("validate", "calibrate"):
        assert main([verb, *words]) == 0
        assert " ".join(capsys.readouterr().err.split()).count(f"warning: calibration.files: {said}") == 1
    texts = f"fitness.texts={{own: {{file: '{file}'}}, again: {{file: '{file}'}}}}"
    pool = [word for word in quick_search if word.startswith("pool")]
    assert main(["validate", "pool=demo", "search_space=by_layer", *pool, "fitness=unlabelled", texts]) == 0
    assert " ".join(capsys.readouterr().err.split()).count(f"texts: {said}") == 1


def test_held_out_items_are_no_calibration_items(
    quick_pool: Path, quick_search: list[str], cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*quick_search, *space("fisher")]
    for verb in ("validate", "calibrate"):
        assert main([verb, *words, *calibration(quick_pool, "_held_out")]) == 2
        assert "held-out items are calibration items" in capsys.readouterr().err
    scored = ["calibration=lm_eval", f"calibration.include_path='{quick_pool}/tasks'", "calibration.split=scored"]
    assert main(["validate", *words, *scored, "calibration.tasks=[demo_e_maths_held_out]"]) == 2
    assert "held-out items are calibration items" in capsys.readouterr().err
    assert main(["validate", *words, *scored, "calibration.tasks=[demo_e_maths]"]) == 0
    assert not cache.exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([*space("fisher")], "the search reads statistics of data (fisher), and calibration is not set"),
        (["statistics.kinds=[hesian]"], "statistics.kinds has 'hesian'; did you mean 'hessian'?"),
        (
            ["statistics.kinds=[routing]", "calibration=text", "calibration.files=[x]"],
            "'routing' are asked of LlamaForCausalLM, in which no mixture of experts is found",
        ),
        ([*space("masked"), "statistics.learned=none.yaml"], "statistics.learned=none.yaml: none.yaml cannot be read"),
        ([*space("fisher"), "calibration=text", "calibration.files=[]"], "files is empty"),
        (
            [*space("fisher"), "calibration=text", "calibration.files=[none.jsonl]"],
            "'none.jsonl', which is not there",
        ),
        (
            [*space("fisher"), "calibration=text", "calibration.files={math: [x.txt]}"],
            "'x.txt', which is not there",
        ),
        (
            [*space("fisher"), "calibration=text", "calibration.files={math: [x.txt], lang: [x.txt], mth: [x.txt]}"],
            "calibration.files has 'mth'; did you mean 'math'?",
        ),
        ([*space("fisher"), "calibration=lm_eval", "calibration.tasks=[]"], "tasks is empty"),
        ([*space("fisher"), "calibration=text", "calibration.file=[x]"], "there is no key 'calibration.file'"),
        (
            [*space("fisher"), "statistics.labels=gold", "calibration=text", "calibration.files=[x]"],
            "statistics.labels",
        ),
    ],
)
def test_what_is_wrong_is_said(
    quick_search: list[str], words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["validate", *quick_search, *words]) == 2
    assert said in capsys.readouterr().err


def test_calibrate_alone_says_what_it_needs(
    quick_pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["calibrate", f"pool.models={{math: '{quick_pool}/math'}}", "pool.base=null"]) == 2
    assert "calibration is not set" in capsys.readouterr().err
    shutil.copytree(quick_pool / "math", tmp_path / "math", ignore=shutil.ignore_patterns("tokenizer*"))
    (tmp_path / "texts.txt").write_text("some words\n")
    texts = ["calibration=text", f"calibration.files=['{tmp_path}/texts.txt']"]
    assert main(["calibrate", f"pool.models={{math: '{tmp_path}/math'}}", "pool.base=null", *texts]) == 2
    assert "model 'math', which has no tokenizer; models with tokenizers; of models that" in capsys.readouterr().err


def test_from_python_kinds_have_their_own_names(quick_pool: Path, quick_search: list[str], cache: Path) -> None:
    """Curvature without an optimizer's state is the statistic of squared gradients, named curvature all the same."""
    words = [*quick_search, *calibration(quick_pool), "statistics.kinds=[fisher,curvature]"]
    made = evomerge.calibrate(*words, display="quiet")
    assert sorted(made) == ["lang", "math"]
    assert all(sorted(kinds) == ["curvature", "fisher"] for kinds in made.values())
    assert all((folder / INDEX).is_file() for kinds in made.values() for folder in kinds.values())
