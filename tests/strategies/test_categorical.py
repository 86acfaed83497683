from __future__ import annotations

import math

import numpy as np
import pytest

from evomerge.strategies.variation.categorical import Categorical

HALVES = np.array([0.6, 0.4])


def test_choices_are_equally_likely_at_first() -> None:
    drawn = Categorical([2, 5]).sample(np.random.default_rng(0), 10_000)
    assert drawn.shape == (10_000, 2)
    for column, count in zip(drawn.T, (2, 5), strict=True):
        # Standard errors are below 0.005.
        assert np.abs(np.bincount(column, minlength=count) / 10_000 - 1 / count).max() < 0.02


def test_samples_follow_the_probabilities() -> None:
    learned = Categorical([3])
    learned.probabilities[0] = np.array([0.7, 0.0, 0.3])
    drawn = learned.sample(np.random.default_rng(1), 10_000)[:, 0]
    assert np.bincount(drawn, minlength=3) / 10_000 == pytest.approx([0.7, 0.0, 0.3], abs=0.02)


def test_one_step_computed_by_hand() -> None:
    """Two choices at 1/2, all weight on the first: gradient (1/2, -1/2), whose Fisher length is 1."""
    learned = Categorical([2, 2])
    learned.learn(np.array([[0, 0], [0, 1]]), np.array([0.5, 0.5]))
    # Of the second variable the gradient is 0. Of the first: 0.5 / sqrt(.5) + sqrt(.5) * 0.5 / (.5 + sqrt(.5)) = 1, so
    # a step of length 1 adds 1/2 and the margin, 1 - sqrt(0.73), takes its part of it back.
    least = 1 - math.sqrt(0.73)
    assert learned.probabilities[0] == pytest.approx([1 - least, least])
    assert learned.probabilities[1] == pytest.approx([0.5, 0.5])


def test_weights_without_a_preference_change_nothing() -> None:
    learned = Categorical([2])
    learned.learn(np.array([[0], [1]]), np.array([0.5, 0.5]))
    assert learned.probabilities[0].tolist() == [0.5, 0.5]


def test_no_choice_is_ever_given_up() -> None:
    learned = Categorical([2, 4, 3])
    for _ in range(200):
        learned.learn(np.array([[1, 2, 0], [1, 2, 0]]), HALVES)
    least = 1 - 0.73 ** (1 / 3)
    for p, best, count in zip(learned.probabilities, (1, 2, 0), (2, 4, 3), strict=True):
        assert p.sum() == pytest.approx(1)
        assert p.argmax() == best
        assert np.delete(p, best) == pytest.approx(np.full(count - 1, least / (count - 1)))
    chance = math.prod(p.max() for p in learned.probabilities)
    assert chance == pytest.approx(0.73)  # of the likeliest choice everywhere


def test_noise_makes_steps_small() -> None:
    learned, rng = Categorical([2, 3, 3, 4]), np.random.default_rng(0)
    moved = []
    for _ in range(600):
        before = np.concatenate(learned.probabilities)
        learned.learn(learned.sample(rng, 12)[:6], np.full(6, 1 / 6))
        moved.append(np.abs(np.concatenate(learned.probabilities) - before).sum())
        assert min(p.min() for p in learned.probabilities) > 0
    assert np.mean(moved[-100:]) < 0.5 * np.mean(moved[:10])


def test_no_variables() -> None:
    assert Categorical([]).sample(np.random.default_rng(0), 5).shape == (5, 0)
