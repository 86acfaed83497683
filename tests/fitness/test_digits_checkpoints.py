"""Combinations of a perceptron's checkpoints, scored on digits, and the table of searches over them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from evomerge.errors import ConfigError
from evomerge.genomes.genome import Genome
from fitness.digits import DigitsFitness, load_images
from fitness.digits_checkpoints import CombinationFitness, TrainingCheckpoints
from fitness.digits_seeds import RandomSeeds
from scripts.lcsc_table import digits, row

HIDDEN = 12


def series(**settings: float) -> TrainingCheckpoints:
    return TrainingCheckpoints(**{"seed": 3, "count": 4, "hidden": HIDDEN, **settings})  # type: ignore[arg-type]


def loss_of(weights: torch.Tensor, images: np.ndarray, labels: np.ndarray) -> torch.Tensor:
    """The network of flat weights, in torch's words."""
    inner, first, outer, last = weights.split([64 * HIDDEN, HIDDEN, HIDDEN * 10, 10])
    units = torch.relu(torch.from_numpy(images) @ inner.view(64, HIDDEN) + first)
    return torch.nn.functional.cross_entropy(units @ outer.view(HIDDEN, 10) + last, torch.from_numpy(labels))


def test_checkpoints_are_those_of_torch_s_adam_on_the_same_images() -> None:
    images, labels = load_images("train")
    rng = np.random.default_rng([3, 1])
    (first,) = RandomSeeds(seed=3, count=1, std=0.05, hidden=HIDDEN).arrays()
    weights = torch.from_numpy(first.copy()).requires_grad_()
    adam, kept = torch.optim.Adam([weights], lr=0.002), []
    for step in range(1, 7):
        drawn = rng.integers(len(images), size=8)
        adam.zero_grad()
        loss_of(weights, images[drawn], labels[drawn]).backward()
        adam.step()
        kept += [weights.detach().numpy().copy()] if step % 2 == 0 else []
    found = series(count=3, every=2, rate=0.002).arrays()
    np.testing.assert_allclose(np.array(found), np.array(kept), rtol=1e-3, atol=1e-5)


def test_a_genome_is_scored_as_its_combination() -> None:
    networks = series()
    fitness = CombinationFitness(checkpoints=networks, cap=2.0, hidden=HIDDEN)
    one, two, three, four = networks.arrays()
    combined = (0.75 * one - 0.5 * two - 0.75 * three + 1.5 * four).astype(np.float32)
    found = fitness.score_genome(Genome((-0.5, -0.75, 1.5)))
    assert found.objectives == DigitsFitness(hidden=HIDDEN).score(combined).objectives
    assert found.objectives["accuracy"] != DigitsFitness(hidden=HIDDEN).score(four).objectives["accuracy"]


def test_settings_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match=r"one for each but the first.*search_space.names"):
        CombinationFitness(checkpoints=series(), cap=2.0, hidden=HIDDEN).score_genome(Genome((0.5,)))
    with pytest.raises(ConfigError, match="for 9 units"):
        CombinationFitness(checkpoints=series(), cap=2.0, hidden=9)
    with pytest.raises(ConfigError, match="count 1"):
        series(count=1)
    prints = {CombinationFitness(checkpoints=series(), cap=cap, hidden=HIDDEN).fingerprint() for cap in (1.0, 2.0)}
    assert len(prints) == 2


def test_the_table_has_a_row_for_each_search_and_one_for_all(tmp_path: Path) -> None:
    rows = digits(1, 24, tmp_path)
    assert [text.split(" | ")[0] for text in rows] == [
        *("| CMA-ES 0", "| CMA-ES, all 1", "| evolution 0", "| evolution, all 1"),
    ]
    assert " of 16 | " in rows[0]


def test_a_row_tests_the_winner_against_what_it_started_from() -> None:
    right = {"step-2": 40, "uniform average": 50, "EMA 0.5": 60, "EMA 0.9": 55, "LCSC": 70}
    models = {name: {"task": np.repeat([1.0, 0.0], [count, 100 - count])} for name, count in right.items()}
    cells = row("run", models, np.array([-0.5, 1.5])).strip("| ").split(" | ")
    assert cells[:5] == ["run", "0.400", "0.500", "0.600 (0.5)", "0.700"]
    assert cells[5:8] == ["+0.300 (1.9e-9)", "+0.200 (1.9e-6)", "+0.100 (0.002)"]  # 2 to the -29, -19 and -9
    assert cells[8:] == ["1 of 2", "1.50"]
