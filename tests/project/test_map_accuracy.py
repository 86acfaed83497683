"""`scripts/map_accuracy.py` on a landscape that is a formula: what its table is made of."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from evomerge.candidate import Split
from evomerge.genomes.genome import Gene, Genome, GenomeSpec
from scripts import map_accuracy

SPEC = GenomeSpec((Gene("all/math/weight", high=2.0), Gene("all/lang/weight")))
asked: list[tuple[Genome, Split]] = []


class _Formula:
    """Two skills, each of a scaling, and a third that wants half of both: logistic, so that MAP's fits are right."""

    def __init__(self, root: Path, genes: int, held_out: int | None) -> None:
        assert (genes, held_out) == (2, 20)
        self.space = SimpleNamespace(spec=SPEC)

    def scores(self, genome: Genome, split: Split = "search") -> Mapping[str, float]:
        asked.append((genome, split))
        a, b = genome.values[0] / 2, genome.values[1]
        inside = np.array([3 * a - b - 1, 3 * b - a - 1, 1 - 4 * (a - 0.5) ** 2 - 4 * (b - 0.5) ** 2])
        shift = 0.1 if split == "held_out" else 0.0
        return dict(zip(map_accuracy.TASKS, (1 / (1 + np.exp(-inside)) - shift).tolist(), strict=True))

    def worst(self, split: Split = "search") -> Mapping[str, float]:
        sources = [self.scores(Genome(values), split) for values in ((2.0, 0.0), (0.0, 1.0))]
        return {task: min(own[task] for own in sources) for task in map_accuracy.TASKS}


def _rows(monkeypatch: pytest.MonkeyPatch, **changed: Any) -> list[list[str]]:
    asked.clear()
    monkeypatch.setattr(map_accuracy, "Demo", _Formula)
    options = {"held_out": 20, "points": 30, "seeds": [0, 1], "strategies": ["map", "nsga2"], **changed}
    found = map_accuracy.rows(Path("seed3"), 2, 28, argparse.Namespace(**options))
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in found]


def test_every_search_has_a_row_with_its_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = _rows(monkeypatch)
    assert [row[:5] for row in rows] == [
        ["seed3", "2", name, seed, "28"] for seed in ("0", "1") for name in ("map", "nsga2")
    ]
    assert len({tuple(row[6:10]) for row in rows}) == 4  # a search of another seed is another search


def test_fits_that_are_right_rank_fresh_candidates_as_these_score(monkeypatch: pytest.MonkeyPatch) -> None:
    (row,) = _rows(monkeypatch, seeds=[0], strategies=["map"])
    assert min(map(float, row[10].split(","))) > 0.99
    assert min(map(float, row[11].split(","))) > 0.99


def test_volumes_are_of_the_front_above_the_base_and_above_the_worst_source(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted here by points drawn at random, of the 28 genomes that were asked after the 30 fresh candidates."""
    (row,) = _rows(monkeypatch, seeds=[0], strategies=["nsga2"])
    demo = _Formula(Path("seed3"), 2, 20)
    genomes = list(dict.fromkeys(genome for genome, _ in asked))[30:58]
    places = np.random.default_rng(0).random((200_000, 3))
    expected: list[float] = []
    for low in (lambda split: demo.scores(Genome((0.0, 0.0)), split), demo.worst):
        for split in ("search", "held_out"):
            point = np.array(list(low(split).values()))
            sides = np.array([list(demo.scores(genome, split).values()) for genome in genomes]) - point
            below = np.zeros(len(places), dtype=np.bool_)
            for own in sides:
                below |= (places < own).all(axis=1)
            expected.append(float(below.mean()))
    assert [float(cell) for cell in row[6:10]] == pytest.approx(expected, abs=3e-3)
    assert float(row[8]) > float(row[6]) > 0
