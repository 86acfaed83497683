"""The script that draws docs/alignment.md's tables, on numbers that can be seen."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scripts.alignment_barrier import SHARES, along, barrier


def test_the_barrier_is_above_the_line_between_the_ends() -> None:
    assert barrier(2 - SHARES) == pytest.approx(0)  # worse at one end is no barrier
    losses = 2 - SHARES
    losses[5] = 4.0  # half way, where the line has 1.5
    assert barrier(losses) == pytest.approx(2.5)


def test_scores_along_a_line() -> None:
    one, other = {"w": torch.tensor([0.0, 2.0])}, {"w": torch.tensor([1.0, 0.0])}
    found = along(one, other, lambda state: (float(state["w"][0]), float(state["w"][1])))
    np.testing.assert_allclose(found, [SHARES, 2 - 2 * SHARES], atol=1e-6)
