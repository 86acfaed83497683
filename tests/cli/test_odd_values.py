"""Values and files that make no sense end in one line that says so, and never in a wait."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
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
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("evomerge: error")]
        assert len(lines) == 1
        return lines[0]

    return run


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("search.evaluations=1" + "0" * 30, "1 to 1,000,000,000, which take twelve days"),
        ("search.seed=1" + "0" * 30, "0 to 2^63 - 1"),
        ("search.in_flight=1" + "0" * 12, "1 to 1,000,000, or null"),
        ("strategy.popsize=1000000000", "at most 1,000,000: populations of that size find no memory"),
        ("evaluator.timeout=nan", "evaluator.timeout is nan; seconds above 0, or null"),
        ("evaluator.timeout=inf", "seconds above 0, or null"),
        ("evaluator.threads=100000000", "1 to 4096, or null"),
        ("search.racing={first: 0.1, against: pruner, pruner: wilcoxn}", "did you mean 'wilcoxon'"),
        ("search.racing={first: null, against: pruner, pruner: wilcoxon}", "set search.racing.first=0.1"),
    ],
)
def test_values_out_of_any_bounds(error: Error, quick_pool: Path, word: str, says: str) -> None:
    assert says in error("validate", "experiment=demo", f"pool.root='{quick_pool}'", word)


def test_files_of_a_configuration_that_are_none(error: Error, tmp_path: Path) -> None:
    folder = tmp_path / "experiment"
    folder.mkdir()
    text = "# @package _global_\ndefaults: [demo]\nsearch: {evaluations: 7}\n"
    (folder / "marked.yaml").write_bytes(b"\xef\xbb\xbf" + text.encode())
    (folder / "twice.yaml").write_text(text.replace("7}", "7, evaluations: 8}"))
    (folder / "broken.yaml").write_text("search: [")
    (folder / "latin.yaml").write_bytes(b"# @package _global_\nname: caf\xe9\n")
    says = {
        "marked": "begins with a byte order mark",
        "twice": "found duplicate key evaluations",
        "broken": "is no YAML",
        "latin": "latin.yaml, line 2: byte 0xe9 is not UTF-8; text in UTF-8; save it so in your editor",
    }
    for name, part in says.items():
        text = error("validate", f"--config-dir={tmp_path}", f"experiment={name}")
        assert part in text
        assert name in text


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("search: {evaluations: 1:30}", "line 3: 1:30 would be read as 90, in base 60; a decimal number, or text in"),
        ("search:\n  evaluations: 010", "line 4: 010 would be read as 8, in base 8"),
        ("search: {evaluations: 0x1p3}", "search.evaluations is '0x1p3'; it should be a whole number"),
    ],
)
def test_numbers_of_yaml_that_are_not_what_they_look_like(error: Error, tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "budget").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(f"# @package _global_\ndefaults: [demo]\n{text}\n")
    assert says in error("validate", f"--config-dir={tmp_path}", "experiment=mine")
    lines = "# @package _global_\ndefaults: [demo, {override /budget: small}]\n"
    (tmp_path / "experiment" / "mine.yaml").write_text(lines)
    (tmp_path / "budget" / "small.yaml").write_text("\n\n" + text)
    if "read as" in says:  # a file that another one names
        assert says in error("validate", f"--config-dir={tmp_path}", "experiment=mine")


@pytest.mark.parametrize("place", ["ledger.lock", "log.txt", "best/recipe.yaml", "items/held_out-texts.json"])
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(
    error: Error, finished_run: Path, tmp_path: Path, place: str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    (run / place).unlink(missing_ok=True)
    os.mkfifo(run / place)
    for verb in ("status", "report", "resume"):
        assert f"{place} is no regular file" in error(verb, str(run))


@pytest.mark.parametrize("place", ["best", "items", "checkpoint"])
def test_a_file_in_the_place_of_a_folder(error: Error, finished_run: Path, tmp_path: Path, place: str) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    shutil.rmtree(run / place, ignore_errors=True)
    (run / place).write_text("x")
    for verb in ("status", "report", "resume"):
        assert f"{place} is no folder" in error(verb, str(run))


def test_a_line_break_in_a_name_makes_no_second_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "runs/a\nb"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("search.evaluations=ten", "search.evaluations is 'ten'; it should be a whole number"),
        ("search.ordered=maybe", "search.ordered is 'maybe'; it should be true or false"),
        ("search.seed=null", "search.seed is null; it should be a whole number"),
        ("pool.models=[base,math]", "a list is given, and it takes a mapping, as in {name: value}"),
        ("trackers={a: b}", "a list is given where a mapping stands, or a mapping where a list does"),
        ("fitness.limt=3", "did you mean 'fitness.limit'?"),
    ],
)
def test_values_of_the_wrong_type_are_said_plainly(error: Error, override: str, says: str) -> None:
    said = error("validate", "experiment=demo", override)
    assert says in said
    assert "reference_type" not in said


def test_a_pipe_is_not_said_to_be_missing(error: Error, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "pipe is no regular file" in error("merge", str(tmp_path / "pipe"), str(tmp_path / "out"))


@pytest.mark.parametrize(
    ("folder", "says"),
    [
        ("", "run_dir is empty"),
        ("taken/run", "taken is no folder"),
    ],
)
@pytest.mark.parametrize("verb", ["validate", "search"])
def test_a_folder_that_no_run_can_begin_in_is_said_first(
    error: Error, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str, folder: str, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("taken").write_text("")
    assert says in error(verb, "experiment=demo", f"run_dir='{folder}'")  # and not that there is no pool


def test_a_folder_that_is_not_empty_is_said_before_the_pool_is_read(error: Error, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "is not an empty folder" in error("search", "experiment=demo", f"run_dir='{tmp_path}'")


def test_files_that_name_themselves_are_said_to(error: Error, tmp_path: Path) -> None:
    (tmp_path / "strategy").mkdir()
    (tmp_path / "strategy" / "mine.yaml").write_text("defaults: [mine]\n")
    for verb in ("validate", "search"):
        line = error(verb, "--config-dir", str(tmp_path), "experiment=demo", "strategy=mine")
        assert "name each other, or themselves, in their defaults" in line


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["validate", "hydra.run.dir=/proc/x"], "/proc/x"),
        (["search", "-m", "hydra.sweeper.max_batch_size=-1", "search.seed=1,2"], "Hydra cannot begin: AssertionError"),
        (["validate", "--experimental-rerun", "a.pickle"], "unknown option --experimental-rerun"),
        (["demo", "--quick", "--pool-only", "--folder", "/dev/null"], "/dev/null cannot be read or written"),
    ],
)
def test_what_hydra_and_the_system_say_is_one_line(error: Error, words: list[str], says: str) -> None:
    assert says in error(*words)


def test_a_module_that_ends_the_program_is_not_taken_for_success(
    error: Error, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ends_all.py").write_text("import sys\nsys.exit(0)\n")
    monkeypatch.chdir(tmp_path)
    assert "SystemExit: 0 (ends_all.py:2)" in error("validate", "experiment=demo", "imports=[ends_all]")


def test_an_answer_that_finds_no_room_is_said() -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "evomerge", "--version"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    said = "the output cannot be read or written: No space left on device; a place that is there, and room in it"
    assert (done.returncode, done.stderr) == (2, f"evomerge: error: {said}\n")
