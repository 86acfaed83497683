"""The stock mergekit commands on many files, and how close their tensors are to ours."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import torch

# One process for all files: starting mergekit takes far longer than these merges.
RUN_ALL = """
import sys
from mergekit.scripts.multimerge import main as multi
from mergekit.scripts.run_yaml import main
for config, out in zip(sys.argv[1::2], sys.argv[2::2]):
    stages = [line for line in open(config) if line.startswith("name:")]
    if stages:
        multi([config, "--intermediate-dir", out + "-stages", "--out-path", out, "--quiet"], standalone_mode=False)
    else:
        main([config, out, "--quiet"], standalone_mode=False)
"""


def run_mergekit(runs: Mapping[Path, Path]) -> None:
    """Run `mergekit-yaml` on every file, or `mergekit-multi` on those with stages, writing its folder."""
    command = [sys.executable, "-c", RUN_ALL, *(str(path) for pair in runs.items() for path in pair)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr


def assert_close(mine: torch.Tensor, other: torch.Tensor, name: str) -> None:
    """Float32: relative 1e-5; where large terms cancel, the rounding of the terms remains (10 ulps of the typical)."""
    scale = float(mine.square().mean().sqrt())
    torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6 * scale, msg=lambda text: f"{name}: {text}")
