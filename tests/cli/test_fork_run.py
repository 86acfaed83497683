"""``evomerge search from_run=RUN``."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from evomerge.cli.main import main
from evomerge.run.folder import RunFolder
from evomerge.run.ledger import canonical_events


def test_the_command_forks_a_run(finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fork = tmp_path / "fork"
    arguments = ["search", f"from_run={finished_run}", "search.evaluations=14", f"run_dir={fork}"]
    assert main(arguments) == 0
    before, after = canonical_events(RunFolder(finished_run)), canonical_events(RunFolder(fork))
    assert after[0].pop("from_run")["run"] == str(finished_run)
    known = sum(1 for event in before if event.get("split") != "held_out") - 1  # and its ``stopped``
    pruned = [{k: v for k, v in event.items() if k != "evaluations"} for event in after]
    assert pruned[:known] == [{k: v for k, v in event.items() if k != "evaluations"} for event in before[:known]]
    assert after[-1]["evaluations"] == 14

    shutil.copytree(fork, tmp_path / "copy")  # it stands for itself
    assert main(["resume", str(tmp_path / "copy"), "search.evaluations=15"]) == 0
    for words, reason in (
        (["experiment=demo"], "the configuration is that of"),
        (["-m"], "from_run was given with -m"),
        (["search.sede=1"], "search.sede"),
        (["fitness.batch_size=1"], "from_run: the fitness has fingerprint"),
    ):
        assert main([*arguments[:2], f"run_dir={tmp_path / 'refused'}", *words]) == 2
        assert reason in capsys.readouterr().err
        shutil.rmtree(tmp_path / "refused", ignore_errors=True)
