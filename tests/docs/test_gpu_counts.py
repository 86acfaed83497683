"""The table of what merging asks of a GPU is that of the code."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
METHODS = ["linear", "slerp", "task_arithmetic", "ties", "dare_ties", "breadcrumbs", "della", "tsv_m"]


@pytest.mark.slow
@pytest.mark.parametrize("methods", [METHODS, pytest.param([], marks=pytest.mark.nightly, id="all")])
def test_the_table_is_up_to_date(methods: list[str]) -> None:
    command = [sys.executable, str(ROOT / "scripts" / "gpu_counts.py"), "--check", *methods]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"run `python scripts/gpu_counts.py`\n{done.stderr[-2000:]}"
