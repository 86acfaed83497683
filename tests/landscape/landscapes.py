"""A small landscape: two tasks of which one is better where two weights are near 0.7, the other where a method is."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np

from evomerge.genomes.genome import Gene, GenomeSpec
from evomerge.landscape.file import write_landscape
from evomerge.landscape.fitting import Evaluated, fit_landscape
from evomerge.landscape.landscape import Landscape
from evomerge.objectives import MetricShare, Objective

GENES = (
    Gene("math/weight", low=0.0, high=2.0, initial=0.5, resolution=0.01),
    Gene("code/weight", low=0.0, high=1.0, spread=0.1),
    Gene("layers.0/method", "categorical", choices=("linear", "ties", "slerp")),
    Gene("layers.0/taken", "boolean", initial=True),
)
COUNTS = {"a": 40, "b": 20}


def evaluated(count: int = 150, seed: int = 3) -> Evaluated:
    """Candidates drawn uniformly, with items drawn by difficulties of their own."""
    rng = np.random.default_rng(seed)
    genomes = [GenomeSpec(GENES).sample(rng) for _ in range(count)]
    math, code = (np.array([float(genome.values[i]) for genome in genomes]) for i in (0, 1))
    ties = np.array([genome.values[2] == "ties" for genome in genomes])
    levels = {"a": 2 - 3 * (math - 0.7) ** 2, "b": -1 + code + 2 * ties}
    items = {}
    for task, count_ in COUNTS.items():
        chance = 1 / (1 + np.exp(rng.normal(0, 1.5, count_) - levels[task][:, None]))
        items[f"{task}/acc"] = (rng.random(chance.shape) < chance).astype(np.float64)
    targets = {name: values.mean(axis=1) for name, values in items.items()}
    shares = [MetricShare("a/acc", 0.75, objective="score"), MetricShare("b/acc", 0.25, objective="score")]
    return Evaluated(GENES, genomes, [Objective("score")], shares, targets, items)


@cache
def landscape(count: int = 150) -> Landscape:
    """Fitted to them."""
    return fit_landscape(evaluated(count))


def landscape_file(folder: Path) -> Path:
    """Written to a file."""
    return write_landscape(landscape(), folder / "small.npz")
