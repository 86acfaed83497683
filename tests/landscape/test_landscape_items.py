"""Items: difficulties, what is expected of each, and what is drawn."""

from __future__ import annotations

import math

import numpy as np
import pytest

from evomerge.landscape.items import ItemModel


def test_difficulties_are_logits_of_what_missed() -> None:
    """Of three models: all right, one right, none right; shares 3.5/4, 1.5/4 and 0.5/4 with half a model added."""
    values = np.array([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    logits = np.array([math.log(p / (1 - p)) for p in (3.5 / 4, 1.5 / 4, 0.5 / 4)])
    np.testing.assert_allclose(ItemModel.of(values, values.mean(axis=1)).offsets, logits.mean() - logits)


@pytest.mark.parametrize("score", [0.0, 1e-9, 0.2, 0.5, 0.93, 1.0])
def test_probabilities_have_the_score_as_their_mean(score: float) -> None:
    items = ItemModel(np.array([-3.0, -0.5, 0.5, 3.0]))
    expected = items.expected(score)
    assert expected.mean() == pytest.approx(score, abs=1e-12)
    assert (np.diff(expected) <= 0).all(), "harder items are right less often"
    if 0.1 < score < 0.99:  # the logits of two items differ by their difficulties
        logits = np.log(expected / (1 - expected))
        np.testing.assert_allclose(logits[0] - logits, [0.0, 2.5, 3.5, 6.0], atol=1e-6)


def test_what_is_drawn_is_right_as_often_as_expected() -> None:
    items, rng = ItemModel(np.array([-2.0, 0.0, 2.0])), np.random.default_rng(0)
    drawn = np.array([items.drawn(0.4, rng.random(3), rng.standard_normal(3)) for _ in range(4000)])
    assert set(np.unique(drawn)) == {0.0, 1.0}
    np.testing.assert_allclose(drawn.mean(axis=0), items.expected(0.4), atol=0.03)  # four deviations of 0.008
    p = items.expected(0.4)
    assert items.error(0.4) == pytest.approx(math.sqrt((p * (1 - p)).sum()) / 3)
    assert drawn.mean(axis=1).std() == pytest.approx(items.error(0.4), rel=0.05)


def test_items_that_are_numbers_have_offsets_and_noise() -> None:
    scores = np.array([1.0, 2.0])
    values = np.array([[1.5, 0.5], [2.3, 1.7]])  # from the score: +0.5, -0.5; +0.3, -0.3
    items = ItemModel.of(values, scores)
    np.testing.assert_allclose(items.offsets, [0.4, -0.4])
    assert items.deviations is not None
    np.testing.assert_allclose(items.deviations, [0.1, 0.1])
    np.testing.assert_allclose(items.expected(3.0), [3.4, 2.6])
    np.testing.assert_allclose(items.drawn(3.0, np.zeros(2), np.array([1.0, -2.0])), [3.5, 2.4])
    assert items.error(3.0) == pytest.approx(math.sqrt(0.02) / 2)
