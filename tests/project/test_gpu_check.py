"""The script for a day with a GPU ends on the CPU with every step run."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_step_that_there_is_not_is_answered_with_the_nearest() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "gpu_check.py"), "--only", "merge"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "there is no step 'merge'; did you mean 'merges'?" in done.stderr


@pytest.mark.nightly
@pytest.mark.slow
def test_every_step_runs_on_the_processor(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "scripts" / "gpu_check.py"), "--device", "cpu", "--out", "found.json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    found = json.loads((tmp_path / "found.json").read_text())
    steps = ["environment", "merges", "large", "placements", "bits", "lm_eval", "batches", "shared", "path"]
    assert list(found) == [*steps, "memory", "ray"]
    assert set(found["bits"].values()) - {found["bits"]["step s"]} == {0.0}
    assert found["lm_eval"]["equal"]
    assert found["lm_eval"]["again"]
    assert set(found["batches"]) == {"tokens/s at 16", "tokens/s at 64", "tokens/s at 256", "step s"}
    assert found["shared"]["apart at most"] < 0.05
    assert found["path"]["texts equal"]
    assert found["path"]["logits equal"]
    assert found["memory"]["succeeded"] == found["memory"]["of"]
    assert found["ray"]["succeeded"] == found["ray"]["of"] == 10
    assert (found["ray"]["ended"], found["ray"]["processes"]) == (["kill", "assert"], 4)
    assert "| merges | linear GB/s |" in done.stdout
