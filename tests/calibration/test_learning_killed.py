"""What is learnt by gradients, killed where a state was just written or is half written: the same bytes in the end."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from calibration.dying import DYING
from tiny_models import TinyModel

from evomerge.calibration.learning.loop import STATE

KILLED = (
    f"import torch\ntorch.set_num_threads(1)\n{DYING}"
    + """
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
    step = dying(left)
    usual, tensors = METHODS[method], Tensors(pool, module)
    factors = MaskFactors(tensors, 0.0, 0.5, 3) if method == "concrete" else ColumnFactors(tensors, module, 0.5, 0.1)
    Path(folder).mkdir(parents=True, exist_ok=True)
    with files.held(Path(folder)):
        learn(module, tensors, factors, Objective(module, usual), items, steps=6, batch=2, rate=usual.rate, seed=3,
              folder=Path(folder), every=1, progress=step)

draw = random.Random(5)
for method in ("concrete", "dam"):
    assert child(work, method, f"{root}/whole-{method}", 0) == 0
    print(killed(work, method, f"{root}/killed-{method}", most=60, draw=lambda: draw.randrange(1, 6)))
"""
)


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
