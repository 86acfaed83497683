"""What no result may be written over: parts of runs, files of models, what is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from evomerge.errors import OutputError
from evomerge.run.outputs import check_output_file, check_output_folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "r1"
    for name in ("items", "best", "checkpoint", "my"):
        (folder / name).mkdir(parents=True)
    for name in ("ledger.jsonl", "config.yaml", "pool.json", "best/recipe.yaml", "items/search-1.safetensors"):
        (folder / name).write_text("x")
    return folder


OWN = ["ledger.jsonl", "ledger.lock", "config.yaml", "pool.json", "workers.json", "trackers.json", "log.txt"]
INSIDE = ["best/recipe.yaml", "best/mine.yaml", "items/search-1.safetensors", "items/new/x", "checkpoint/a.npz"]


@pytest.mark.parametrize("name", [*OWN, *INSIDE, "my/../ledger.jsonl", "my/../items/x.yaml"])
def test_what_a_run_keeps(name: str, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OutputError, match=r"is where the run .*r1 keeps its own "):
        check_output_file(run / name)
    (run / "ledger.jsonl").unlink()  # a run that has lost its ledger is one
    with pytest.raises(OutputError):
        check_output_file(run / name)
    monkeypatch.chdir(run / "items")
    with pytest.raises(OutputError):
        check_output_file(Path("x.yaml"))


@pytest.mark.parametrize("name", ["recipe.yaml", "report.html", "my/config.yaml", "my/log.txt", "../new.yaml"])
def test_what_may_be_written_in_a_run_folder(name: str, run: Path) -> None:
    check_output_file(run / name)
    (run / name).write_text("an earlier one")
    check_output_file(run / name)


def test_folders(run: Path) -> None:
    for name in ("items", "items/model", "best/model", "checkpoint"):
        with pytest.raises(OutputError):
            check_output_folder(run / name)
    check_output_folder(run / "model")
    check_output_folder(run)


def test_links_lead_to_what_is_kept(run: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(run / "ledger.jsonl")
    (tmp_path / "there").symlink_to(run)
    for place in (tmp_path / "link", tmp_path / "there" / "pool.json", tmp_path / "there" / "items" / "new"):
        with pytest.raises(OutputError):
            check_output_file(place)


def test_files_of_a_model(tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors", "tokenizer.json", "README.md", "evomerge_recipe.yaml"):
        (tmp_path / name).write_text("{}")
    for name in ("config.json", "model.safetensors", "README.md", "evomerge_recipe.yaml", "chat_template.jinja"):
        with pytest.raises(OutputError, match=r"a file of the model|among a model's files"):
            check_output_file(tmp_path / name)
    check_output_file(tmp_path / "mergekit.yaml")


def test_what_is_read_and_tasks(tmp_path: Path) -> None:
    recipe, task = tmp_path / "recipe.yaml", tmp_path / "task.yaml"
    recipe.write_text("evomerge_recipe: 1\n")
    task.write_text("# mine\ntask: sums\ndataset_path: json\n")
    with pytest.raises(OutputError, match=r"recipe\.yaml is what is read"):
        check_output_file(recipe, [tmp_path / "." / "recipe.yaml"])
    check_output_file(recipe, [tmp_path])
    check_output_file(recipe, [task])
    with pytest.raises(OutputError, match="describes a task of lm-eval"):
        check_output_file(task)
