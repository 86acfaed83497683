"""What is learnt by gradients, killed where a state was just written or is half written: the same bytes in the end."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tiny_models import TinyModel

from evomerge.calibration.learning.loop import STATE

KILLED = """
import os, random, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from evomerge.calibration import files
from evomerge.calibration.encoding import Encoded
from evomerge.calibration.learning.factors import ColumnFactors, MaskFactors
from evomerge.calibration.learning.loop import learn
from evomerge.calibration.learning.objective import Objective
from evomerge.calibration.learning.settings import METHODS
from evomerge.calibration.learning.tensors import Tensors
from evomerge.merge.resident.loading import load_on
from evomerge.models.opening import open_pool

base, a, b, root = sys.argv[1:]
pool = open_pool({"base": base, "a": a, "b": b}, base="base", dtype="float32")
module = load_on("cpu", pool, None)
module.config.use_cache = False
items = {name: [Encoded((1, 5 + n % 30, 9 + start, 30 - n), 1) for n in range(6)] for start, name in enumerate("ab")}

def work(method, folder, left):
    # Dies where a state was just put in place, is half written, or a step was just made.
    def step(*_):
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
    replace, save = os.replace, files.save_file
    def replaced(*names):
        step()
        replace(*names)
        step()
    def torn(tensors, path, metadata):
        save(tensors, path, metadata=metadata)
        if left == 1:
            os.truncate(path, os.path.getsize(path) // 2)
        step()
    files.os.replace, files.save_file = replaced, torn
    usual, tensors = METHODS[method], Tensors(pool, module)
    factors = MaskFactors(tensors, 0.0, 0.5, 3) if method == "concrete" else ColumnFactors(tensors, module, 0.5, 0.1)
    Path(folder).mkdir(parents=True, exist_ok=True)
    with files.held(Path(folder)):
        learn(module, tensors, factors, Objective(module, usual), items, steps=6, batch=2, rate=usual.rate, seed=3,
              folder=Path(folder), every=1, progress=step)

def child(method, folder, left):
    pid = os.fork()
    if pid == 0:
        try:
            work(method, folder, left)
            os._exit(0)
        except BaseException as error:
            print(repr(error), flush=True)
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

draw = random.Random(5)
for method in ("concrete", "dam"):
    assert child(method, f"{root}/whole-{method}", 0) == 0
    kills = 0
    for _ in range(60):
        status = child(method, f"{root}/killed-{method}", draw.randrange(1, 6))
        if status == 0:
            break
        assert status == -signal.SIGKILL, status
        kills += 1
    print(kills)
"""


@pytest.mark.slow
def test_killed_many_times_it_learns_the_same(tiny_model: TinyModel, tmp_path: Path) -> None:
    models = [str(tiny_model(name, seed=seed)) for seed, name in enumerate(("base", "a", "b"))]
    ran = subprocess.run(
        [sys.executable, "-c", KILLED, *models, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert min(int(kills) for kills in ran.stdout.split()) >= 5
    for method in ("concrete", "dam"):
        whole, killed = (tmp_path / f"{name}-{method}" for name in ("whole", "killed"))
        assert (killed / STATE).read_bytes() == (whole / STATE).read_bytes()
        assert sorted(own.name for own in killed.iterdir()) == sorted(own.name for own in whole.iterdir())
