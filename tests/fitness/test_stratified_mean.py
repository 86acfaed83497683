"""The stratified mean of some items and its standard error, by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from evomerge.errors import FitnessError
from evomerge.objectives import MetricShare, Objective
from fitness.estimators.irt import ItemResponse
from fitness.estimators.stratified_mean import StratifiedMean

NAN = math.nan
SCORE = Objective("score")


def built(*shares: MetricShare, known: Any = (), objectives: Any = (SCORE,)) -> StratifiedMean:
    estimator = StratifiedMean(shares, objectives)
    estimator.fit(known)
    return estimator


def of(**values: list[float]) -> dict[str, np.ndarray[Any, Any]]:
    return {name.replace("__", "/"): np.array(each) for name, each in values.items()}


def test_two_tasks_by_hand() -> None:
    estimator = built(MetricShare("a/acc", 0.75), MetricShare("b/acc", 0.25))
    found = estimator.estimate(of(a__acc=[1, 0, 1, 1, NAN, NAN, NAN, NAN], b__acc=[0, 1, NAN, NAN]))["score"]
    assert found.value == pytest.approx(0.75 * 0.75 + 0.25 * 0.5)
    # (1 - n/N) (sum of squares + 1/4) / n / n: 0.5 * (0.75 + 0.25) / 16 and 0.5 * (0.5 + 0.25) / 4
    assert found.error == pytest.approx(math.sqrt(0.75**2 * 0.5 / 16 + 0.25**2 * 0.5 * 0.75 / 4))


def test_known_models_say_what_varies_within_a_task() -> None:
    known = [of(a__nll=[1.0, 3.0, 5.0, NAN]), of(a__nll=[2.0, 2.0, 8.0, 8.0])]  # variances 4 and 12
    estimator = built(MetricShare("a/nll", 1.0, "minimize"), known=known)
    found = estimator.estimate(of(a__nll=[NAN, 3.0, 7.0, NAN]))["score"]
    assert found.value == -5.0
    assert found.error == pytest.approx(math.sqrt(0.5 * (8 + 8) / 2 / 2))
    alone = estimator.estimate(of(a__nll=[NAN, NAN, 7.0, NAN]))["score"]
    assert alone.error == pytest.approx(math.sqrt(0.75 * 8))


def test_one_item_with_nothing_known_says_nothing_of_the_rest() -> None:
    assert built(MetricShare("a/nll", 1.0)).estimate(of(a__nll=[7.0, NAN]))["score"].error == math.inf


def test_metrics_of_a_task_vary_together() -> None:
    """A metric and its opposite cancel item by item: nothing is unknown."""
    estimator = built(
        MetricShare("a/acc", 0.5),
        MetricShare("a/wrong", 0.5, "minimize"),
        known=[of(a__acc=[1.0, 0.0, 1.0], a__wrong=[1.0, 0.0, 1.0])],
    )
    found = estimator.estimate(of(a__acc=[1.0, NAN, 0.0], a__wrong=[1.0, NAN, 0.0]))["score"]
    assert (found.value, found.error) == (0.0, pytest.approx(0.0, abs=1e-12))


def test_all_items_are_the_objective_itself() -> None:
    rng = np.random.default_rng(0)
    items = {"a/acc": rng.integers(0, 2, 40).astype(float), "a/nll": rng.gamma(2.0, size=40)}
    items["b/f"] = rng.random(7)
    shares = [
        MetricShare("a/acc", 0.5, objective="x"),
        MetricShare("a/nll", 0.01, "minimize", "x"),
        MetricShare("b/f", 0.4, "maximize", "x", "log"),
        MetricShare("a/nll", 1.0, "minimize", "y"),
    ]
    found = built(*shares, objectives=[Objective("x"), Objective("y", "minimize")]).estimate(items)
    expected = 0.5 * items["a/acc"].mean() - 0.01 * items["a/nll"].mean() + 0.4 * math.log(items["b/f"].mean())
    assert found["x"].value == pytest.approx(expected, rel=1e-14)
    assert found["y"].value == pytest.approx(items["a/nll"].mean(), rel=1e-14)
    assert [each.error for each in found.values()] == [0.0, 0.0]


def test_a_logarithm_counts_with_the_error_of_its_mean() -> None:
    items = of(a__acc=[1.0, 0.0, 1.0, 1.0] + [NAN] * 4)
    plain = built(MetricShare("a/acc", 1.0)).estimate(items)["score"]
    log = built(MetricShare("a/acc", 1.0, transform="log")).estimate(items)["score"]
    assert log.value == pytest.approx(math.log(0.75))
    assert log.error == pytest.approx(plain.error / 0.75)
    none = built(MetricShare("a/acc", 1.0, transform="log")).estimate(of(a__acc=[0.0, NAN]))["score"]
    assert none.value == pytest.approx(math.log(0.25))  # half an item of two


def test_difference_is_taken_item_by_item() -> None:
    estimator = built(MetricShare("a/acc", 1.0))
    first, second = of(a__acc=[1, 1, 0, 1, NAN, NAN]), of(a__acc=[1, 0, 0, NAN, 1, NAN])
    found = estimator.difference(first, second)["score"]
    assert found.value == pytest.approx(1 / 3)
    assert found.error == pytest.approx(math.sqrt(0.5 * (2 / 3 + 0.25) / 9))
    assert estimator.difference(second, first)["score"].value == -found.value
    same = estimator.difference(first, first)["score"]
    assert same.value == 0
    assert 0 < same.error < 0.15  # some items are equal: the others may not be


def test_difference_is_the_same_whatever_was_learnt() -> None:
    shares = [MetricShare("a/acc", 1.0)]
    first, second = of(a__acc=[1, 1, 0, 1, NAN, NAN]), of(a__acc=[1, 0, 0, NAN, 1, NAN])
    known = [of(a__acc=[0.0, 1, 0, 1, 0, k % 2]) for k in range(8)]
    for estimator in (StratifiedMean(shares, [SCORE]), ItemResponse(shares, [SCORE], anchors="entropy", dimensions=1)):
        estimator.fit([])
        before = estimator.difference(first, second)
        estimator.fit(known)
        assert estimator.difference(first, second) == before


def test_differences_that_are_none_of_shares_vary_as_they_do() -> None:
    estimator = built(MetricShare("a/nll", 0.5, "minimize"))
    first, second = of(a__nll=[11.0, 5.0, NAN, NAN]), of(a__nll=[3.0, 1.0, 1.0, NAN])
    found = estimator.difference(first, second)["score"]
    assert found.value == -3.0
    # -4 and -2: (1 - 2/4) (sum of squares 2 + variance 2) / 2 / 2
    assert found.error == pytest.approx(math.sqrt(0.5 * 4 / 4))
    assert estimator.difference(first, of(a__nll=[3.0, NAN, 1.0, 2.0]))["score"].error == math.inf


def test_difference_on_all_items_is_exact() -> None:
    estimator = built(MetricShare("a/acc", 2.0))
    found = estimator.difference(of(a__acc=[1.0, 1.0, 0.0]), of(a__acc=[0.0, 1.0, 0.0]))["score"]
    assert (found.value, found.error) == (pytest.approx(2 / 3), 0.0)


def test_intervals_hold_what_they_say() -> None:
    """1,000 models, each on 30 of 100 items of one task and 20 of 60 of another, drawn anew."""
    rng = np.random.default_rng(3)
    easy = {"a/acc": rng.beta(2, 1, 100), "b/acc": rng.beta(1, 1, 60)}
    estimator = built(MetricShare("a/acc", 0.5), MetricShare("b/acc", 0.5))
    inside = 0
    for _ in range(1000):
        full = {name: (rng.random(len(p)) < p).astype(float) for name, p in easy.items()}
        shown = {}
        for name, n in (("a/acc", 30), ("b/acc", 20)):
            shown[name] = np.full(len(full[name]), NAN)
            places = rng.permutation(len(full[name]))[:n]
            shown[name][places] = full[name][places]
        found = estimator.estimate(shown)["score"]
        inside += abs(found.value - sum(each.mean() for each in full.values()) / 2) <= 1.96 * found.error
    assert 930 <= inside <= 970


def test_what_cannot_be_told_is_said() -> None:
    estimator = built(MetricShare("a/acc", 1.0))
    with pytest.raises(FitnessError, match="no item of a/acc was run"):
        estimator.estimate(of(a__acc=[NAN, NAN]))
    with pytest.raises(FitnessError, match="no metric 'a/acc'; did you mean 'a/ac'"):
        estimator.estimate(of(a__ac=[1.0]))
    with pytest.raises(FitnessError, match="a/acc has 3 items; 2, as other models have"):
        estimator.estimate(of(a__acc=[1.0, 0.0, 1.0]))
    with pytest.raises(FitnessError, match="no metric counts in objective 'y'"):
        built(MetricShare("a/acc", 1.0, objective="x"), objectives=[Objective("x"), Objective("y")])


class TestByItem:
    """What each item adds to an objective."""

    def test_metrics_of_a_task_are_summed_item_by_item(self) -> None:
        estimator = built(
            MetricShare("a/acc", 0.5), MetricShare("b/acc", 0.3), MetricShare("a/nll", 0.2, "minimize"), known=[]
        )
        items = of(a__acc=[1.0, 0.0, NAN], b__acc=[1.0, NAN], a__nll=[2.0, 1.0, NAN])
        (found,) = estimator.by_item(items, items).values()
        assert list(found) == ["a/acc", "b/acc"]
        np.testing.assert_allclose(found["a/acc"], [0.5 - 0.4, -0.2, NAN])
        np.testing.assert_allclose(found["b/acc"], [0.3, NAN])

    def test_means_are_the_objective(self) -> None:
        rng = np.random.default_rng(1)
        items = {"a/acc": rng.integers(0, 2, 30).astype(float), "b/f": rng.random(8)}
        items["a/acc"][::3] = items["b/f"][5] = NAN
        shares = MetricShare("a/acc", 0.6, transform="log"), MetricShare("b/f", 0.4)
        estimator = built(*shares)
        (found,) = estimator.by_item(items, items).values()
        summed = sum(float(np.nanmean(values)) for values in found.values())
        assert summed == pytest.approx(estimator.estimate(items)["score"].value, rel=1e-13)

    def test_logarithms_are_tangents_at_another_models_mean(self) -> None:
        estimator = built(MetricShare("a/f", 2.0, transform="log"))
        (found,) = estimator.by_item(of(a__f=[0.5, 0.25, NAN]), of(a__f=[0.4, 0.6, NAN])).values()
        expected = [2 * math.log(0.5), 2 * (math.log(0.5) - 0.5), NAN]
        np.testing.assert_allclose(found["a/f"], expected)
        (found,) = estimator.by_item(of(a__f=[0.5, 0.0, NAN]), of(a__f=[0.0, 0.0, 0.0])).values()
        np.testing.assert_allclose(found["a/f"], [2 * (math.log(1 / 6) + 2), 2 * (math.log(1 / 6) - 1), NAN])
