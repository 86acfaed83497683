"""The script for a day with a GPU ends on the CPU with every step run."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_every_step_runs_on_the_processor(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "scripts" / "gpu_check.py"), "--device", "cpu", "--out", "found.json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    found = json.loads((tmp_path / "found.json").read_text())
    assert list(found) == ["environment", "merges", "placements", "bits", "lm_eval", "memory", "ray"]
    assert set(found["bits"].values()) - {found["bits"]["step s"]} == {0.0}
    assert found["lm_eval"]["equal"]
    assert found["memory"]["succeeded"] == found["memory"]["of"]
    assert set(found["ray"]) == {"ok", "step s"}
    assert "| merges | linear GB/s |" in done.stdout
