"""Strengths from comparisons, against scipy's maximum and logistic regression; who is compared with whom."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from sklearn.linear_model import LogisticRegression

from evomerge.run.ratings.bradley_terry import SPREAD, by_comparison, chances, strength
from evomerge.run.ratings.pairs import Pairs, choose, paired, preferred, read_pairs, swapped
from evomerge.run.ratings.rules import Text


@pytest.mark.parametrize("raters", [1, 3])
def test_strength_is_where_the_posterior_is_largest(raters: int) -> None:
    rng = np.random.default_rng(raters)
    others = rng.normal(1.0, 0.5, 12)
    wins = rng.integers(0, raters + 1, 12) / raters
    middle = others.mean()

    def lost(s: float) -> float:
        p = 1 / (1 + np.exp(others - s))
        return float(
            -raters * (wins * np.log(p) + (1 - wins) * np.log(1 - p)).sum() + (s - middle) ** 2 / (2 * SPREAD**2)
        )

    assert strength(list(wins), list(others), raters) == pytest.approx(minimize_scalar(lost).x, abs=1e-6)


def test_strength_against_equal_opponents_is_scikit_learns() -> None:
    wins = [1, 1, 0, 1, 1, 0, 1]
    model = LogisticRegression(C=SPREAD**2, fit_intercept=False, tol=1e-10).fit(np.ones((7, 1)), wins)
    assert strength(wins, [0.7] * 7) == pytest.approx(0.7 + model.coef_[0, 0], abs=1e-5)


def test_who_wins_or_loses_all_is_finite_and_ties_are_the_middle() -> None:
    assert strength([0.5, 0.5], [1.0, 1.0]) == pytest.approx(1.0)
    best, worst = strength([1.0] * 5, [2.0] * 5), strength([0.0] * 5, [2.0] * 5)
    assert best - 2.0 == pytest.approx(2.0 - worst)
    assert 5 * (1 - float(chances(best, np.array([2.0]))[0])) == pytest.approx((best - 2.0) / SPREAD**2)
    assert strength([1.0] * 10_000, [0.0] * 10_000, 50) < 20
    assert strength([0.0, 1.0], [300.0, -300.0]) == pytest.approx(0.0, abs=1e-6)
    assert strength([], []) == 0.0


def test_the_spread_of_comparisons_is_that_of_the_strength() -> None:
    rng = np.random.default_rng(7)
    others = np.tile([0.0, 0.5, 1.0], 40)
    found, told = [], []
    for _ in range(300):
        wins = (rng.random(120) < chances(0.8, others)).astype(float)
        values = by_comparison(list(wins), list(others))
        found.append(strength(list(wins), list(others)))
        told.append(values.var(ddof=1) / len(values))
    assert np.sqrt(np.mean(told)) == pytest.approx(np.std(found), rel=0.1)
    assert np.mean(found) == pytest.approx(0.8, abs=0.05)


def test_opponents_are_the_best_two_and_the_middle_one() -> None:
    assert choose({}, 3) == Pairs()
    assert choose({"a": 0.0}, 3) == Pairs(("a",) * 3, (0.0,) * 3)
    known = {"a": 0.0, "b": 2.0, "c": 1.0, "d": -1.0, "e": 0.5}
    assert choose(known, 4) == Pairs(("b", "c", "e", "b"), (2.0, 1.0, 0.5, 2.0))


def test_who_is_shown_first_tells_nothing_and_is_taken_back() -> None:
    texts = [Text(item, "t", "p", "mine") for item in range(200)]
    shown = paired(texts, ["theirs"] * 200, "abc")
    first = Counter(own.text for own in shown)
    assert 70 < first["mine"] < 130
    assert {(own.text, own.other) for own in shown} == {("mine", "theirs"), ("theirs", "mine")}
    scores = [1.0 if own.text == "mine" else 0.0 for own in shown]
    assert preferred(scores, "abc") == [1.0] * 200
    assert swapped("abc", 3) is swapped("abc", 3)


def test_pairs_are_read_as_they_were_written(tmp_path: Path) -> None:
    own = Pairs(("a", "b"), (0.25, -1.0))
    own.write(tmp_path / "p.json")
    assert read_pairs(tmp_path / "p.json") == own
    (tmp_path / "p.json").write_text('{"against": ["a"], "strengths": []}')
    assert read_pairs(tmp_path / "p.json") is None
    assert read_pairs(tmp_path / "none.json") is None
    assert own.strength({"x": [1.0, 0.5], "y": [0.0, 0.5]}) == pytest.approx(strength([0.5, 0.5], [0.25, -1.0], 2))
