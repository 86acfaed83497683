"""Protocols on their stand-ins, from the command line: what is in the tables is what is in the ledgers."""

from __future__ import annotations

import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evomerge.cli.main import main
from evomerge.comparison import running
from evomerge.comparison.folder import FILE
from evomerge.comparison.found import name_of
from evomerge.comparison.plan import Plan
from evomerge.comparison.settings import names
from evomerge.errors import OutputError
from evomerge.report.history import read_history
from evomerge.run.items import read_items

QUICK = ["protocol.quick=true", "display=quiet"]
"""Models that have hardly learnt anything."""


def small(name: str) -> list[str]:
    """A few candidates of every search."""
    numbers = {
        "gpt2_glue": ["search_by_model", "search_by_layer", "search_methods", "search_tsv"],
        "clip_b32": ["search_by_model"],
        "clip_l14": ["search_by_model"],
        "evollm": ["parameters", "paths", "both"],
        "mergebench": ["search_by_model"],
        "m2n2": ["m2n2", "cma_es"],
        "alignment_3h": ["front"],
        "long_to_short": ["front"],
        "scale": ["search_by_model"],
    }[name]
    return [f"protocol.searches.{own}.evaluations={16 if own == 'front' else 12}" for own in numbers]


def rows_of(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / "table.csv").open() as file:
        return {row["name"]: row for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def glue(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A protocol that has been run, and its words."""
    root = tmp_path_factory.mktemp("protocol")
    grids = "{task_arithmetic: {grid: {lambda: [0.1, 0.3]}}, ties: {grid: {lambda: [0.1, 0.3]}}}"
    less = ["~protocol.methods.fisher", "~protocol.methods.regmean", f"protocol.methods={grids}"]
    less += ["~protocol.searches.search_methods", "~protocol.searches.search_tsv"]  # statistics of data, and a like one
    words = [*QUICK, *small("gpt2_glue"), *less, f"pool.root='{root / 'pool'}'"]
    folder = root / "run"
    assert main(["protocol", "gpt2_glue", "--stand-in", *words, f"run_dir='{folder}'"]) == 0
    return folder, words


def test_every_number_is_an_evaluation_of_a_ledger(glue: tuple[Path, list[str]]) -> None:
    folder, _ = glue
    test = read_history(folder / "test")
    trials = {trial.candidate: trial for trial in [*test.baselines.values(), *test.trials]}
    rows = rows_of(folder)
    tasks = ["cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2"]
    assert {"base", *tasks, "simple_average", "ties", "task_arithmetic", "ties, tuned"} <= set(rows)
    for row in rows.values():
        trial = trials[int(row["candidate"])]
        assert row["recipe_hash"] == trial.recipe_hash or (row["kind"] in ("base", "source") and row["recipe_hash"])
        assert row["run"] == "test"
        scores = [float(row[task]) for task in tasks]
        assert scores == [trial.metrics[f"{task}/accuracy"] for task in tasks]
        items = read_items(folder / "test", trial.candidate, digest=trial.digest)
        assert scores == pytest.approx([items[f"{task}/accuracy"].mean() for task in tasks])
        assert float(row["average"]) == pytest.approx(np.mean(scores))
    assert "uniform average" not in rows  # it is the simple_average


def test_winners_are_those_of_their_runs(glue: tuple[Path, list[str]]) -> None:
    folder, _ = glue
    rows, grid = rows_of(folder), read_history(folder / "grid")
    assert grid.stopped is not None
    assert len(grid.trials) == 4
    for method in ("ties", "task_arithmetic"):
        own = [trial for trial in grid.trials if name_of(trial).startswith(f"{method} ")]
        best = max(own, key=lambda trial: trial.objectives["score"])
        row = rows[f"{method}, tuned"]
        assert int(row["chosen_candidate"]) == best.candidate
        assert int(row["candidates"]) == 2
    search = read_history(folder / "search-search_by_layer")
    row = rows["search_by_layer"]
    assert int(row["chosen_candidate"]) == search.winner
    winner = next(trial for trial in search.trials if trial.candidate == search.winner)
    assert row["recipe_hash"] == winner.recipe_hash
    assert int(row["candidates"]) == 12
    if sys.platform == "linux":
        assert int(row["search_peak_bytes"]) > 2**26
        assert int(row["peak_bytes"]) > 2**26


def test_the_table_stands_beside_the_published_one(glue: tuple[Path, list[str]]) -> None:
    folder, _ = glue
    text = (folder / "table.md").read_text()
    assert "0 of " in text
    assert "test items are items of the search" in text
    assert "A stand-in: tiny models" in text
    row = rows_of(folder)["simple_average"]
    assert f"{100 * float(row['cola']):.1f} / 55.0" in text
    assert "rank correlation" in text
    assert (folder / "table.html").read_text().count("<table>") == 3


def test_status_resume_and_report_know_it(glue: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    folder, _ = glue
    before = (folder / "table.csv").read_bytes()
    assert main(["status", str(folder)]) == 0
    said = capsys.readouterr().out
    assert "grid: ended, 4 of 4 candidates" in said
    assert "To go on" not in said
    assert main(["resume", str(folder), "-q"]) == 0
    assert (folder / "table.csv").read_bytes() == before
    (folder / "table.md").unlink()
    assert main(["report", str(folder)]) == 0
    assert (folder / "table.md").is_file()


@pytest.mark.parametrize("words", [["merge", "{}", "out"], ["export", "{}"], ["evaluate", "{}"]])
def test_the_run_of_a_protocol_is_no_run_of_a_search(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("grid", "search-one", "test"):
        (tmp_path / "run" / name).mkdir(parents=True)
        (tmp_path / "run" / name / "ledger.jsonl").write_text("")
    (tmp_path / "run" / FILE).write_text("evomerge_protocol: 1\n")
    assert main([word.format(tmp_path / "run") for word in words]) == 2
    said = capsys.readouterr().err
    assert "is the run of a protocol; a part of it that searched" in said
    assert str(tmp_path / "run" / "search-one") in said


def test_a_file_of_ones_own_and_what_it_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "protocol").mkdir()
    file = tmp_path / "protocol" / "ours.yaml"
    file.write_text("defaults:\n  - override /fitness@held_out: lm_eval\nprotocol: {title: ours}\n")
    assert main(["protocol", "ours", "--config-dir", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "# @package _global_" in said
    assert len(said.strip().splitlines()) == 1
    assert main(["protocol", "gpt2_glue", "--validate", "--pool", str(tmp_path / "none")]) == 2
    assert "--pool" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_that_was_cut_goes_on_and_comes_to_the_same(
    glue: tuple[Path, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = glue
    cut = tmp_path / "cut"
    shutil.copytree(folder, cut)
    for part in ("test", "search-search_by_layer"):
        shutil.rmtree(cut / part)
    (cut / "test").mkdir()  # killed before there was a ledger
    ledger = cut / "search-search_by_model" / "ledger.jsonl"
    lines = ledger.read_text().splitlines(keepends=True)
    told = [place for place, line in enumerate(lines) if '"told"' in line]
    ledger.write_text("".join(lines[: told[5] + 1]))
    shutil.rmtree(ledger.parent / "checkpoint", ignore_errors=True)
    for name in ("table.csv", "table.md", "table.html"):
        (cut / name).unlink()
    assert main(["status", str(cut)]) == 0
    said = capsys.readouterr().out
    assert "search-search_by_layer: not begun" in said
    assert f"To go on: evomerge resume {cut}" in said
    assert main(["resume", str(cut), "-q"]) == 0
    scores = ["kind", "cola", "qqp", "average", "normalised", "forgetting", "recipe_hash", "chosen_candidate"]
    found, expected = rows_of(cut), rows_of(folder)
    assert {name: [row[key] for key in scores] for name, row in found.items()} == {
        name: [row[key] for key in scores] for name, row in expected.items()
    }


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["protocol"], "no protocol is named"),
        (["protocol", "gpt2_glu"], "'gpt2_glue'"),
        (["protocol", "gpt2_glue", "--stand-in", "protocol.methods.ties.metod=x"], "metod"),
        (["protocol", "gpt2_glue", "--stand-in", "+protocol.titel=x"], "titel"),
        (
            [
                "protocol",
                "gpt2_glue",
                "--stand-in",
                "protocol.searches.own={words: ['search_space=by_leyer'], evaluations: 4}",
            ],
            "by_layer",
        ),
        (["protocol", "gpt2_glue", "--stand-in", "search.evaluations=0"], "search.evaluations is 0"),
        (["protocol", "gpt2_glue", "--stand-in", "protocol=evollm"], "the protocol is named without a key"),
        (["protocol", "pool.root=x", "gpt2_glue"], "before the overrides"),
        (["resume", "none"], "none"),
    ],
)
def test_mistakes_are_answered_in_one_line_and_nothing_is_made(
    words: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    said = capsys.readouterr().err
    assert says in said
    assert len(said.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_folder_in_use_is_refused(glue: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    folder, words = glue
    assert main(["protocol", "gpt2_glue", "--stand-in", *words, f"run_dir='{folder}'"]) == 2
    assert f"`evomerge resume {folder}` goes on with it" in capsys.readouterr().err


def test_a_folder_that_another_began_meanwhile_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run"

    def made(plan: Plan, say: object) -> None:
        folder.mkdir()
        (folder / FILE).write_text("evomerge_protocol: 1\n")

    monkeypatch.setattr(running, "_make_models", made)
    monkeypatch.setattr(running, "_check_parts", lambda plan, folder, say: None)
    with pytest.raises(OutputError, match="goes on with it"):
        running.begin(Plan.of("gpt2_glue_stand_in", [f"run_dir='{folder}'"]), folder)
    assert [path.name for path in folder.iterdir()] == [FILE]


ALL = pytest.mark.nightly


@ALL
@pytest.mark.parametrize("name", names())
def test_every_protocol_ends_on_its_stand_in(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    words = [*QUICK, *small(name), f"pool.root='{tmp_path / 'pool'}'", f"run_dir='{folder}'"]
    assert main(["protocol", name, "--stand-in", *words]) == 0
    rows = rows_of(folder)
    assert not [row["error"] for row in rows.values() if row["error"]]
    assert all(row["average"] for row in rows.values())
    if name in ("alignment_3h", "long_to_short"):
        assert sum(key.startswith("front, ") for key in rows) == 3


@ALL
def test_a_kill_loses_nothing(glue: tuple[Path, list[str]], tmp_path: Path) -> None:
    folder, words = glue
    run = tmp_path / "run"
    command = [sys.executable, "-m", "evomerge", "protocol", "gpt2_glue", "--stand-in", *words, f"run_dir='{run}'"]
    process = subprocess.Popen(command, env={**os.environ, "HF_HUB_OFFLINE": "1"}, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (run / "search-search_by_model" / "ledger.jsonl").is_file() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert main(["resume", str(run), "-q"]) == 0
    found, expected = rows_of(run), rows_of(folder)
    columns: list[Any] = ["cola", "average", "recipe_hash"]
    assert {name: [row[key] for key in columns] for name, row in found.items()} == {
        name: [row[key] for key in columns] for name, row in expected.items()
    }
