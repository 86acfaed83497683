"""A sample of what ``scripts/kill_searches.py --command`` does a hundred times; see docs/reliability.md."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_command_killed_at_any_instant_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    """Kills while it starts, while it searches and while it writes a checkpoint."""
    words = ["--kills", "4", "--each", "4", "--strategy", "m2n2", "--evaluations", "200", "--seed", "1"]
    command = [sys.executable, ROOT / "scripts" / "kill_searches.py", *words, "--keep", tmp_path / "runs"]
    command += ["--command", "experiment=m2n2_digits"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=600, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 kills of a living process" in done.stdout
    checkpoints = list((tmp_path / "runs" / "m2n2").glob("*/checkpoint/*/manifest.json"))
    assert checkpoints
