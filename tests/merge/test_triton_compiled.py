"""What the kernels for GPUs are compiled to: the instructions and the bytes, which can be read without a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton", reason="needs Triton, which the dev extra installs on Linux")

TENSORS = {  # read and written, and ranks of two bytes beside them
    "linear, 3 sources": (3, 0),
    "slerp": (2, 0),
    "task arithmetic, base + 2": (3, 0),
    "TIES, base + 2": (3, 0),
    "breadcrumbs, base + 2": (3, 0),
    "TIES, found there": (3, 0),
    "sums of magnitudes": (2, 0),
    "DARE-linear, base + 2": (3, 0),
    "DARE-TIES, base + 3": (4, 0),
    "DELLA, base + 2": (3, 2),
}
WIDTH = {"bfloat16": 2, "float16": 2, "float32": 4}


@pytest.fixture(scope="module")
def compiled() -> list[dict[str, Any]]:
    script = Path(__file__).with_name("triton_compiled.py")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    assert {each["mix"] for each in found} == set(TENSORS)
    return found


@pytest.mark.slow
def test_every_operation_is_rounded_by_itself(compiled: list[dict[str, Any]]) -> None:
    rounded = {f"{operation}.rn.f32" for operation in ("add", "sub", "mul", "div")} | {
        "add.rn.f64"
    }  # no fma, no .ftz, no .approx
    for each in compiled:
        assert set(each["arithmetic"]) <= rounded, each


@pytest.mark.slow
def test_every_source_is_read_once_and_the_result_written_once(compiled: list[dict[str, Any]]) -> None:
    for each in compiled:
        if each["mix"] in ("TIES, found there", "sums of magnitudes"):  # a few numbers for each program besides
            continue
        width, (sources, ranks) = WIDTH[each["dtype"]], TENSORS[each["mix"]]
        # The bounds by rank, four bytes of a table as long as a row, stay in the cache.
        assert each["read"] == sources * width + ranks * (2 + 4), each
        assert each["written"] == width, each


@pytest.mark.slow
def test_other_parameters_are_no_other_kernel(compiled: list[dict[str, Any]]) -> None:
    assert {each["kernels"] for each in compiled} == {1}
