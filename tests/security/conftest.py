"""A stranger's run: a folder whose every file was written by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from evomerge.run.folder import RunFolder
from evomerge.run.ledger import SCHEMA
from evomerge.run.ledger_file import encode

CONFIG = """\
name: theirs
run_dir: runs/theirs
search: {evaluations: 4}
search_space: {_target_: search_spaces.parameter.ParameterSpace}
strategy: {_target_: evomerge.strategies.random_search.RandomSearch}
fitness: {_target_: fitness.lm_eval_tasks.LmEvalFitness, tasks: [gsm8k]}
evaluator: {_target_: evomerge.evaluation.local.LocalEvaluator}
"""


@pytest.fixture
def stranger(tmp_path: Path) -> Callable[..., RunFolder]:
    """A function that writes a run folder; ``config`` takes the place of what stands under the same keys."""

    def make(config: str = "", name: str = "theirs") -> RunFolder:
        folder = RunFolder.create(tmp_path / name)
        keys = {line.partition(":")[0] for line in config.splitlines() if not line.startswith((" ", "-"))}
        kept = [line for line in CONFIG.splitlines() if line.partition(":")[0] not in keys]
        folder.config.write_text("\n".join([*kept, config]) + "\n")
        folder.ledger.write_bytes(encode({"seq": 0, "event": "started", "schema": SCHEMA, "evaluations": 4}))
        return folder

    return make


@pytest.fixture
def marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that comes to be when ``stranger_code.py``, in the current folder, is run."""
    file = tmp_path / "was_run"
    (tmp_path / "stranger_code.py").write_text(
        f"import pathlib\n\npathlib.Path({str(file)!r}).touch()\n\n\n"
        "class Part:\n    pass\n\n\ndef part(*a, **k):\n    pass\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return file
