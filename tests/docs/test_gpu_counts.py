"""The table of what merging asks of a GPU is that of the code."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_table_is_up_to_date() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "gpu_counts.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"run `python scripts/gpu_counts.py`\n{done.stderr[-2000:]}"
