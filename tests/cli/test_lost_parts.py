"""A run that has lost a part, or a part of a run given in the place of the whole: said in one line, or mended."""

from __future__ import annotations

import filecmp
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from evomerge.api.recipe import load_recipe
from evomerge.cli.main import main
from evomerge.errors import EvomergeError
from evomerge.run.folder import RunFolder
from evomerge.run.inside import instead_of_part
from evomerge.run.ledger import read_ledger

Error = Callable[..., str]


@pytest.fixture
def error(capsys: pytest.CaptureFixture[str]) -> Error:
    def run(*words: str | Path) -> str:
        assert main(list(map(str, words))) == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("evomerge: error")]
        assert len(lines) == 1
        return lines[0]

    return run


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    """A copy that may be spoilt."""
    return Path(shutil.copytree(finished_run, tmp_path / "runs" / "spoilt"))


def test_a_ledger_that_was_emptied_is_not_searched_anew(error: Error, run: Path, quick_search: list[str]) -> None:
    (run / "ledger.jsonl").write_text("")
    before = sorted(path.name for path in run.rglob("*"))
    fork = ["search", f"from_run={run}", f"run_dir={run.parent / 'fork'}"]
    for words in (["resume", run], ["status", run], ["report", run], fork, ["validate", *quick_search, _warm(run)]):
        text = error(*words)
        assert f"{run / 'ledger.jsonl'} has no events, and items, best beside it say that there was a run" in text
        assert f"{run / 'best' / 'recipe.yaml'} is still the best recipe, which `evomerge merge`" in text
    assert sorted(path.name for path in run.rglob("*")) == before
    assert main(["merge", str(run / "best" / "recipe.yaml"), str(run.parent / "model")]) == 0  # as advised
    shutil.rmtree(run / "best")
    assert "and items beside it say that there was a run" in error("resume", run)


@pytest.mark.parametrize("instead", ["nothing", "a folder", "a link"])
def test_what_has_just_been_refused_is_not_suggested(instead: str, error: Error, run: Path) -> None:
    (run / "ledger.jsonl").unlink()
    if instead == "a folder":
        (run / "ledger.jsonl").mkdir()
    elif instead == "a link":
        (run / "ledger.jsonl").symlink_to("nowhere")
    for verb in ("status", "resume", "report", "export"):
        assert "did you mean" not in error(verb, run)
        assert "runs here" not in error(verb, run.parent / "nope") or verb != "export"
    (run.parent / "spoilty").mkdir()
    (run.parent / "spoilty" / "ledger.jsonl").write_text("")
    assert "did you mean 'spoilty'?" in error("status", run)


def test_a_ledger_of_something_else_is_said_once(error: Error, run: Path) -> None:
    (run / "ledger.jsonl").write_text("garbage\ngarbage\n")
    for verb in ("report", "status", "resume"):
        text = error(verb, run)
        assert text.endswith("only the last line may be incomplete; restore the file from a copy")
        assert text.count("ledger.jsonl") == 1


def test_a_list_of_models_that_is_gone(error: Error, run: Path) -> None:
    (run / "pool.json").unlink()
    text = error("resume", run, "search.evaluations=14")
    assert f"{run / 'pool.json'} is gone; the file that the search wrote" in text
    assert text.endswith("restore it from a copy, or begin a new run")


def _warm(run: Path) -> str:
    return f"search.warm_start=['{run}']"


@pytest.mark.parametrize("beginning", [b"", b'{"seq":0,"event":"star'])
def test_a_run_that_had_not_begun_is_none_that_was_emptied(beginning: bytes, tmp_path: Path) -> None:
    from evomerge.run.record import Record
    from evomerge.run.remains import require_ledger

    folder = RunFolder.create(tmp_path / "run")
    folder.ledger.write_bytes(beginning)
    require_ledger(folder, Record(folder).events)
    (folder.items / "search-0.safetensors").touch()
    with pytest.raises(EvomergeError, match="items beside it"):
        require_ledger(folder, Record(folder).events)


def test_resume_writes_the_best_again_from_what_is_recorded(error: Error, run: Path, finished_run: Path) -> None:
    shutil.rmtree(run / "best")
    winner = [event["candidate"] for event in read_ledger(run) if event["event"] == "improved"][-1]
    for words in (["merge", run, run.parent / "out"], ["export", run], ["evaluate", run]):
        text = error(*words)
        assert f"candidate {winner}, is in its ledger, and {run / 'best' / 'recipe.yaml'} is gone" in text
        assert f"`evomerge resume {run}` writes it again" in text
    with pytest.raises(EvomergeError, match="is gone"):
        load_recipe(run)
    assert main(["resume", str(run), "-q"]) == 0
    same = filecmp.dircmp(run / "best", finished_run / "best")
    assert [same.diff_files, same.left_only, same.right_only] == [[], [], []]
    assert (run / "ledger.jsonl").read_bytes() == (finished_run / "ledger.jsonl").read_bytes()


def test_items_that_are_gone_are_said_and_made_again(
    run: Path, finished_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(run / "items")
    made = len(list((finished_run / "items").glob("*.safetensors")))
    shutil.rmtree(run / "checkpoint", ignore_errors=True)
    assert main(["resume", str(run), "search.evaluations=13", "-q"]) == 0
    said = capsys.readouterr().err
    assert f"{run / 'items'} has none of the {made} files of per-item scores: what the search needs" in said
    assert said.count("is evaluated again\n") <= 3
    for file in (finished_run / "items").glob("search-*.safetensors"):
        assert (run / "items" / file.name).read_bytes() == file.read_bytes()


PARTS = {
    "ledger.jsonl": "the ledger",
    "config.yaml": "the configuration",
    "pool.json": "the list of models",
    "log.txt": "the log",
    "items": "a folder",
    "items/search-0.safetensors": "a file of per-item scores",
    "best": "a folder",
}


def test_every_verb_says_what_a_part_of_a_run_is(error: Error, finished_run: Path, tmp_path: Path) -> None:
    for name, what in PARTS.items():
        path = finished_run / name
        for words in (["status", path], ["export", path], ["evaluate", path], ["merge", path, tmp_path / "out"]):
            assert f"{path} is {what} of the run {finished_run}; " in error(*words)
    ledger = finished_run / "ledger.jsonl"
    for words in (["resume", ledger], ["report", ledger], ["search", f"from_run={ledger}"], ["import", ledger]):
        assert f"{ledger} is the ledger of the run {finished_run}; " in error(*words)
    for name in ("recipe.yaml", "mergekit.yaml"):
        assert main(["export", str(finished_run / "best" / name)]) == 0
        assert "is a file of the run" in error("status", finished_run / "best" / name)


def test_a_file_of_ones_own_is_no_part_of_a_run(finished_run: Path, tmp_path: Path, error: Error) -> None:
    assert instead_of_part(finished_run / "none.yaml") == ("", "")
    assert instead_of_part(finished_run) == ("", "")
    (tmp_path / "file").touch()
    assert f"{tmp_path / 'file'} is a file; the folder of a run" in error("status", tmp_path / "file")


def test_evaluate_says_first_what_is_not_there(
    error: Error, finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished_run, tmp_path / "runs" / "there")
    monkeypatch.chdir(tmp_path)
    assert "there is no run runs/nope; " in (text := error("evaluate", "runs/nope"))
    assert text.endswith("runs here: runs/there")
    assert "there is no file or folder org/name; " in error("evaluate", "org/name")
    for words in (["ther"], ["ther", "fitness.tasks=[x]"]):
        assert (text := error("evaluate", *words)).startswith("evomerge: error: there is no run ther; ")
        assert text.endswith("did you mean 'runs/there'?")
    for verb, name in (("merge", "ther"), ("merge", "runs/thre"), ("export", "ther")):
        words = [verb, name, "out"] if verb == "merge" else [verb, name]
        assert "did you mean 'runs/there'? runs here: runs/there" in error(*words)
    assert "did you mean" not in error("merge", "RUNx", "out")
    assert "argument --switch: it is 'emr_swich'; did you mean 'emr_switch'?" in error(
        *("merge", "runs/there", "out", "--switch", "emr_swich", "--all-tasks")
    )
    assert "there is no file nope.yaml; " in error("evaluate", "nope.yaml", "fitness.tasks=[x]")


@pytest.mark.parametrize(
    "words",
    [
        ["merge", "RUN", ""],
        ["merge", "", "out"],
        *(
            [verb, ""]
            for verb in ("export", "status", "report", "resume", "evaluate", "dashboard", "import", "methods")
        ),
        ["export", "RUN", "-o", ""],
        ["report", "RUN", "-o", ""],
        ["demo", "--folder", ""],
        ["evaluate", "RUN", "--log-samples", ""],
    ],
)
def test_nothing_empty_is_taken_for_the_current_folder(
    error: Error, finished_run: Path, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "it is empty, as a variable that is not set leaves it" in error(
        *(finished_run if word == "RUN" else word for word in words)
    )
    assert not list(tmp_path.iterdir())


def test_an_empty_run_to_begin_from(error: Error) -> None:
    assert "from_run is empty; a run folder" in error("search", "experiment=demo", "from_run=''")


def test_validate_checks_one_experiment(error: Error, quick_search: list[str]) -> None:
    for flag in ("-m", "--multirun"):
        assert f"`evomerge validate` was given {flag}; it looks at one experiment" in error(
            "validate", flag, *quick_search
        )


def test_nothing_is_written_over_a_run_or_a_model(error: Error, run: Path, quick_pool: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    assert main(["export", str(run), "-o", str(recipe)]) == 0
    model = tmp_path / "base"
    shutil.copytree(quick_pool / "base", model)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    samples = ["evaluate", recipe, f"experiment=demo pool.root={quick_pool}".split(), "--log-samples", run / "items"]
    samples = [word for words in samples for word in (words if isinstance(words, list) else [words])]
    for words in (
        ["export", run, "-o", run / "ledger.jsonl"],
        ["export", run, "--format", "mergekit", "-o", run / "best" / "mergekit.yaml"],
        ["export", run, "--format", "optuna", "-o", run / "pool.json"],
        ["export", run, "--format", "landscape", "-o", model / "model.safetensors"],
        ["export", recipe, "-o", recipe],
        ["report", run, "-o", run / "config.yaml"],
        ["report", run, "-o", model / "config.json"],
        ["import", recipe, "-o", recipe],
        ["merge", run, run / "items" / "model"],
        ["search", f"from_run={run}", f"run_dir={run / 'checkpoint' / 'fork'}"],
        samples,
    ):
        assert "name another" in error(*words), words
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    for place in (recipe, run / "mine.yaml", run / "mine.yaml"):
        assert main(["export", str(run), "-o", str(place)]) == 0
    for _ in range(2):
        assert main(["report", str(run)]) == 0
