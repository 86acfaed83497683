"""Answers as chances: a logistic curve over a metric of the same items, and what answers are above it."""

from __future__ import annotations

import numpy as np
import pytest

from evomerge.candidate import Items
from evomerge.objectives import MetricShare, Objective
from fitness.estimators.chances import Chances
from fitness.estimators.columns import Columns
from fitness.estimators.irt import ItemResponse
from fitness.estimators.item_response import metrics_of
from fitness.estimators.latent_steps import logistic

SHARES = [MetricShare("quiz/acc", 1.0, objective="score"), MetricShare("quiz/nats", 0.01, direction="minimize")]
OBJECTIVES = [Objective("score")]


def columns_of(items: Items) -> Columns:
    columns = Columns(SHARES, OBJECTIVES)
    columns.row(items)
    return columns


def drawn(seed: int, models: int = 40, items: int = 300) -> tuple[list[Items], np.ndarray]:
    """Models whose answers are right with the chance that their log-likelihoods say, and these chances."""
    rng = np.random.default_rng(seed)
    hard = rng.normal(1.0, 1.0, items)
    nats = np.maximum(hard - rng.normal(0, 0.5, (models, 1)) + rng.normal(0, 0.4, (models, items)), 0.0)
    chances = logistic(2.0 - 2.0 * nats)
    right = (rng.random(nats.shape) < chances).astype(float)
    return [{"quiz/acc": a, "quiz/nats": n} for a, n in zip(right, nats, strict=True)], chances


def some(items: Items, places: np.ndarray) -> Items:
    kept = np.isin(np.arange(len(items["quiz/acc"])), places)
    return {metric: np.where(kept, values, np.nan) for metric, values in items.items()}


def test_the_curve_is_found() -> None:
    known, true = drawn(0)
    columns = columns_of(known[0])
    values = np.array([columns.row(items) for items in known])
    chances = Chances(columns, values, metrics_of(values, columns.stretches))
    assert chances
    found = chances(values)
    assert np.abs(found[:, :300] - true).max() < 0.03
    assert (found[:, 300:] == values[:, 300:]).all()
    values[3, :100] = np.nan
    assert np.isnan(chances(values)[3, :100]).all()


@pytest.mark.parametrize("case", ["noise", "constant", "one answer", "no other metric"])
def test_what_tells_nothing_is_left_alone(case: str) -> None:
    known, _ = drawn(0, models=6)
    rng = np.random.default_rng(1)
    for items in known:
        if case == "noise":
            items["quiz/nats"] = rng.normal(size=300)
        elif case == "constant":
            items["quiz/nats"] = np.full(300, 0.7)
        elif case == "one answer":
            items["quiz/acc"] = np.ones(300)
    shares = SHARES[:1] if case == "no other metric" else SHARES
    columns = Columns(shares, OBJECTIVES)
    values = np.array([columns.row(items) for items in known])
    chances = Chances(columns, values, metrics_of(values, columns.stretches))
    assert not chances
    assert (chances(values) == values).all()
    assert [*chances.rest(columns, values[0], values[0])] == []


def test_what_answers_are_above_their_chances_by_hand() -> None:
    known, _ = drawn(2)
    columns = columns_of(known[0])
    values = np.array([columns.row(items) for items in known])
    chances = Chances(columns, values, metrics_of(values, columns.stretches))
    row = columns.row(some(known[0], np.arange(10)))
    told = chances(row)
    ((metric, expected, variance),) = chances.rest(columns, row, told)
    (curve,) = chances._curves
    assert metric == 0
    above = float(np.nanmean(row[:300] - told[:300]))
    share = curve.between / (curve.between + curve.within / 10)
    assert expected == pytest.approx(curve.usual + share * (above - curve.usual))
    assert variance == pytest.approx((1 - share) * curve.between)
    assert curve.within == pytest.approx(np.square(values[:, :300] - chances(values)[:, :300]).mean(), rel=0.05)


def test_few_items_tell_more_where_there_are_log_likelihoods() -> None:
    known, _ = drawn(3, models=80)
    answers = [{"quiz/acc": items["quiz/acc"]} for items in known]
    with_both, alone = ItemResponse(SHARES, OBJECTIVES), ItemResponse(SHARES[:1], OBJECTIVES)
    with_both.fit(known[:60])
    alone.fit(answers[:60])
    rng, errors = np.random.default_rng(4), []
    for items, own in zip(known[60:], answers[60:], strict=True):
        places = rng.choice(300, 15, replace=False)
        true = float(own["quiz/acc"].mean())
        nats = 0.01 * float(items["quiz/nats"].mean())
        found = with_both.estimate(some(items, places))["score"].value + nats
        only = some({**own, "quiz/nats": own["quiz/acc"]}, places)
        errors.append((found - true, alone.estimate({"quiz/acc": only["quiz/acc"]})["score"].value - true))
    both, one = np.sqrt(np.square(errors).mean(axis=0))
    assert both < 0.9 * one


def test_all_items_are_the_score_itself() -> None:
    known, _ = drawn(5, models=10)
    estimator = ItemResponse(SHARES, OBJECTIVES)
    estimator.fit(known)
    found = estimator.estimate(known[0])["score"]
    assert found.value == pytest.approx(known[0]["quiz/acc"].mean() - 0.01 * known[0]["quiz/nats"].mean())
    assert found.error == 0.0
