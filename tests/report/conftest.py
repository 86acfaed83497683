from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evomerge.candidate import Candidate, Evaluation, Split
from evomerge.genomes.genome import Genome
from evomerge.recipes.pool_info import PoolInfo
from evomerge.recipes.slices import ModelRef, SliceId
from evomerge.run.folder import RunFolder
from evomerge.run.ledger import Ledger

INFO = PoolInfo(
    tuple((name, ModelRef(f"models/{name}", None, f"sha256:{name}")) for name in ("math", "language", "start")),
    ("math", "language"),
    "start",
    (SliceId("embed"),),
    1,
    "float32",
)

Right = Mapping[str, Mapping[str, int]]
MakeRun = Callable[..., Path]


def scores(candidate: int, split: Split, values: Mapping[str, np.ndarray]) -> Evaluation:
    """An evaluation whose metrics are the means of these per-item values."""
    metrics = {name: float(items.mean()) for name, items in values.items()}
    objective = float(np.mean(list(metrics.values())))
    return Evaluation(candidate, "ok", split, {"score": objective}, metrics, values, {"model": 1.0})


def right(of: int, count: int, shift: int = 0) -> np.ndarray:
    """0/1 items of which `count` in a row are right, beginning at `shift`."""
    return np.roll(np.repeat([1.0, 0.0], [count, of - count]), shift)


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Writes a run folder: models by name with their per-item values by ``task/metric``; the last is the winner."""

    def make(
        models: Mapping[str, Mapping[str, np.ndarray]], *, held_out: bool = True, name: str = "demo", **started: Any
    ) -> Path:
        folder = RunFolder.create(tmp_path / name)
        folder.write_pool(INFO)
        folder.best_recipe.write_text("evomerge_recipe: 1\n")
        recipe = INFO.linear({"math": 1.0})
        *baselines, winner = models
        with Ledger(folder) as ledger:
            ledger.append("started", seed=0, objectives={"score": "maximize"}, **started)
            for index, model in enumerate(baselines):
                ledger.log_asked(Candidate(index, recipe, name=model))
                ledger.log_told(scores(index, "search", models[model]))
            ledger.log_asked(Candidate(10, recipe, Genome((0.1,))))
            ledger.log_told(Evaluation(10, "failed", error="NaN"))
            ledger.log_asked(Candidate(11, recipe, Genome((0.5,))))
            ledger.log_told(scores(11, "search", models[winner]))
            ledger.append("improved", candidate=11, objective=0.5, recipe_hash=recipe.hash)
            if held_out:
                for index, model in enumerate(baselines):
                    ledger.log_asked(Candidate(index, recipe, name=model), "held_out")
                    ledger.log_told(scores(index, "held_out", models[model]))
                ledger.log_asked(Candidate(11, recipe, Genome((0.5,)), name="best"), "held_out")
                ledger.log_told(scores(11, "held_out", models[winner]))
            ledger.append("stopped", reason="budget", evaluations=2)
        return folder.path

    return make


@pytest.fixture
def demo_models() -> dict[str, dict[str, np.ndarray]]:
    """Three tasks of 200 items; the evolved merge is best on the mean and on the cross task."""

    def model(*counts: int) -> dict[str, np.ndarray]:
        names = ("english_sorting", "j_language", "j_sorting")
        return {
            f"{name}/acc": right(200, count, shift=5 * i)
            for i, (name, count) in enumerate(zip(names, counts, strict=True))
        }

    return {
        "math": model(198, 126, 30),
        "language": model(40, 190, 30),
        "start": model(150, 158, 60),
        "uniform average": model(154, 170, 104),
        "evolved": model(192, 168, 132),
    }
