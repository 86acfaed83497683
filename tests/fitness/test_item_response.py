"""Latent models of items: known parameters are found, and estimates from some items are right as often as they say."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from evomerge.objectives import MetricShare, Objective
from fitness.estimators import calibration, irt, kind_fit
from fitness.estimators.ability import Case, ability_of, tell, tell_each
from fitness.estimators.irt import ItemResponse
from fitness.estimators.item_response import ItemParameters, fit_items, metrics_of
from fitness.estimators.kind_fit import fit_kind
from fitness.estimators.latent_steps import Triangle, logistic, sweep
from fitness.estimators.stratified_mean import StratifiedMean

Array = NDArray[np.float64]
SHARES = [MetricShare("a/acc", 0.5, objective="score"), MetricShare("b/acc", 0.5, objective="score")]
COUNTS = {"a": 100, "b": 100}
KINDS: dict[str, dict[str, Any]] = {
    "p_irt": {},
    "gp_irt": {"blend": "variances"},
    "mp_irt": {"merged": True},
    "gmp_irt": {"merged": True, "blend": 0.5},
}


class World:
    """Two tasks of 100 items: the two-parameter logistic model with an ability for each task and one for both."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.slopes = self.rng.normal(0, 0.4, (200, 3))
        self.slopes[:, 2] += 0.8
        self.slopes[:100, 0] += 0.8
        self.slopes[100:, 1] += 0.8
        self.intercepts = self.rng.normal(0, 1.2, 200)

    def model(self, ability: Array | None = None) -> Array:
        ability = self.rng.normal(size=3) if ability is None else ability
        return (self.rng.random(200) < logistic(self.slopes @ ability + self.intercepts)).astype(float)

    def some(self, row: Array, of_each: int) -> Array:
        hidden = np.full(200, np.nan)
        for begin in (0, 100):
            places = begin + self.rng.permutation(100)[:of_each]
            hidden[places] = row[places]
        return hidden


def items(row: Array) -> dict[str, Array]:
    return {"a/acc": row[:100], "b/acc": row[100:]}


def built(**config: Any) -> ItemResponse:
    return ItemResponse(SHARES, [Objective("score")], **config)


def known(world: World, baselines: int, candidates: int) -> list[dict[str, Array]]:
    rows = [world.model() for _ in range(baselines)]
    return [items(row) for row in rows] + [items(world.some(world.model(), 30)) for _ in range(candidates)]


def test_finds_the_parameters_of_the_logistic_model() -> None:
    rng = np.random.default_rng(1)
    slopes, intercepts, abilities = rng.uniform(0.5, 2.0, 60), rng.normal(0, 1, 60), rng.normal(size=1500)
    values = (rng.random((1500, 60)) < logistic(np.outer(abilities, slopes) + intercepts)).astype(float)
    values[rng.random(values.shape) < 0.2] = np.nan
    fit = fit_items(values, metrics_of(values, [slice(0, 60)]), 2)
    sign = np.sign(fit.items.mean[:, 0].sum())
    assert np.abs(sign * fit.items.mean[:, 0] - slopes).mean() < 0.15
    assert np.corrcoef(sign * fit.items.mean[:, 0], slopes)[0, 1] > 0.95
    assert np.abs(fit.items.mean[:, -1] - intercepts).mean() < 0.1
    assert np.corrcoef(sign * fit.abilities[True][:, 0], abilities)[0, 1] > 0.9
    assert np.abs(fit.items.mean[:, 1]).mean() < 0.1  # the dimension that there is not


def test_finds_the_parameters_of_the_linear_model() -> None:
    rng = np.random.default_rng(2)
    slopes, centres, abilities = rng.uniform(1, 3, 40), rng.normal(20, 5, 40), rng.normal(size=800)
    values = np.outer(abilities, slopes) + centres + rng.normal(0, 1.0, (800, 40))
    items = fit_items(values, metrics_of(values, [slice(0, 40)]), 1).items
    assert not items.binary.any()
    assert np.abs(np.abs(items.mean[:, 0]) * items.scale - slopes).mean() < 0.15
    assert np.abs(items.mean[:, 1] * items.scale + items.centre - centres).mean() < 0.15
    assert np.abs(1 / np.sqrt(items.precision) * items.scale - 1.0).mean() < 0.05


def plain_steps(values: Array, binary: bool, parts: list[slice], size: int, abilities: Array, mean: Array) -> Array:
    """What `fit_kind` does, model by model and item by item as the equations are written; slopes and intercepts."""
    models, columns = values.shape
    seen, scaled = ~np.isnan(values), np.nan_to_num(values)
    covariance = np.tile(np.diag([0.1] * (size + 1)), (columns, 1, 1))
    noise = np.ones(columns)
    x = np.hstack([abilities, np.ones((models, 1))])
    xx = np.array([np.outer(own, own) for own in x])
    for _ in range(kind_fit._STEPS):
        old = mean
        second = covariance + np.array([np.outer(own, own) for own in mean])
        half = 0.5 * np.sqrt(np.einsum("kab,iab->ki", xx, second))
        weights = np.where(seen, noise * (0.25 * np.tanh(half) / half if binary else 1.0), 0.0)
        targets = np.where(seen, noise * (scaled - 0.5 * binary), 0.0)
        for k in range(models):
            spread = np.linalg.inv(np.eye(size) + np.einsum("i,iab->ab", weights[k], second[:, :-1, :-1]))
            told = targets[k] @ mean[:, :-1] - weights[k] @ second[:, :-1, -1]
            x[k, :-1] = spread @ told
            xx[k] = np.outer(x[k], x[k])
            xx[k, :-1, :-1] += spread
        centre = x[:, :-1].mean(axis=0)
        scale = np.sqrt(np.array([xx[:, d, d].mean() for d in range(size)]) - centre**2)
        change = np.eye(size + 1)
        change[:-1, :-1], change[:-1, -1] = np.diag(1 / scale), -centre / scale
        x, xx = x @ change.T, change @ xx @ change.T
        back = np.linalg.inv(change).T
        mean, covariance = mean @ back.T, back @ covariance @ back.T
        usual = np.array([0.5] * size + [2.0])
        new = []
        for part in parts:
            count = part.stop - part.start
            middle = mean[part].sum(axis=0) / (count + 1)
            variances = np.array([np.diag(own) for own in covariance[part]])
            prior = (count + 4) / ((np.square(mean[part] - middle) + variances).sum(axis=0) + 4 * usual)
            for i in range(part.start, part.stop):
                precision = np.diag(prior) + np.einsum("k,kab->ab", weights[:, i], xx)
                covariance[i] = np.linalg.inv(precision)
                new.append(covariance[i] @ (prior * middle + targets[:, i] @ x))
        mean = np.array(new)
        second = covariance + np.array([np.outer(own, own) for own in mean])
        for part in parts:
            own = seen[:, part]
            expected = x @ mean[part].T
            if binary:
                chance = logistic(expected)
                off, usually = np.square(scaled[:, part] - chance)[own], (chance * (1 - chance))[own]
                soft = not np.isin(scaled[:, part][own], (0.0, 1.0)).all()
                noise[part] = min(max(usually.mean() / off.mean(), 1.0), 4.0) if soft else 1.0
                continue
            squares = np.square(scaled[:, part]) - 2 * scaled[:, part] * expected
            squares = np.where(own, squares + np.einsum("kab,iab->ki", xx, second[part]), 0.0).sum(axis=0)
            counts = own.sum(axis=0)
            noise[part] = (counts + 4) / (squares + 4 * squares.sum() / counts.sum())
        if np.abs(mean - old).max() < 2e-3 * max(1.0, np.abs(old).max()):
            break
    return mean


@pytest.mark.parametrize("kind", ["answers", "chances", "numbers"])
def test_fitting_is_the_steps_as_they_are_written(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(14)
    values = rng.normal(size=(9, 2)) @ rng.normal(size=(2, 14)) + rng.normal(0, 0.5, (9, 14))
    if kind != "numbers":
        chances = logistic(values)
        values = chances if kind == "chances" else (rng.random(values.shape) < chances).astype(float)
    values[rng.random(values.shape) < 0.6] = np.nan
    values[0] = np.where(np.isnan(values[0]), 0.5 if kind == "chances" else 1.0, values[0])  # every item was run
    parts = [slice(0, 8), slice(8, 14)]
    begun: list[Array] = []
    start = kind_fit._start
    monkeypatch.setattr(kind_fit, "_start", lambda *given: begun.extend(found := start(*given)) or found)
    fit = fit_kind(values, kind != "numbers", parts, 2)
    expected = plain_steps(values, kind != "numbers", parts, 2, begun[1].copy(), begun[0].T.copy())
    np.testing.assert_allclose(fit.mean, expected, rtol=1e-8, atol=1e-10)
    assert ((fit.weights != 0) == ~np.isnan(values)).all()


def test_many_inverses_at_once_are_those_of_each_alone() -> None:
    rng = np.random.default_rng(15)
    roots = rng.normal(size=(40, 5, 8))
    matrices = (roots @ roots.transpose(0, 2, 1)).transpose(1, 2, 0)
    found = sweep(matrices)
    np.testing.assert_allclose(found.transpose(2, 0, 1), np.linalg.inv(matrices.transpose(2, 0, 1)), rtol=1e-9)
    np.testing.assert_array_equal(sweep(matrices[..., 7:8]), found[..., 7:8])
    upper = Triangle(5)
    np.testing.assert_allclose(upper.square(upper.of(matrices).T).transpose(1, 2, 0), matrices, rtol=1e-12)
    assert float(upper.times @ upper.of(matrices)[:, 0]) == pytest.approx(float(matrices[..., 0].sum()))
    assert upper.of(matrices)[upper.last, 3].tolist() == matrices[:, -1, 3].tolist()


def test_models_told_together_are_told_as_alone() -> None:
    """To the last digit: who is told together depends on where a run was interrupted, or on who was left out."""
    world = World(16)
    values = np.array([world.some(world.model(), 30) for _ in range(40)])
    fit = fit_items(values, metrics_of(values, [slice(0, 100), slice(100, 200)]), 3)
    levels = np.repeat([0, 1], 100)
    ends = fit.abilities[True][:3, :-1]
    cases = []
    for number in range(23):  # of three sizes, some of them sums of known abilities
        row = world.some(world.model(), 5 + number % 3)
        told, hidden = np.flatnonzero(~np.isnan(row)), np.flatnonzero(np.isnan(row))
        between = levels[told], levels[hidden]
        own = None if number % 2 else ends
        cases.append(Case(fit.items.take(told), row[told], fit.items.take(hidden), between, own))
    centre = fit.abilities[True][:, :-1].mean(axis=0)
    for case, together in zip(cases, tell_each(cases, centre), strict=True):
        alone = tell(case.seen, case.values, case.unseen, centre, case.levels, case.endpoints)
        for one, other in zip(alone, together, strict=True):
            np.testing.assert_array_equal(one, other)
    parts = [(list(range(number, number + 3)), ~np.isnan(values[number])) for number in range(9)]
    for (models, part), together in zip(parts, fit.without_each(parts), strict=True):
        np.testing.assert_array_equal(fit.without(models, part).mean, together.mean)
        np.testing.assert_array_equal(fit.without(models, part).covariance, together.covariance)


def test_calibrations_in_batches_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(17)
    whole, pieces = built(blend="variances"), built(blend="variances")
    knowledge = known(world, 4, 30)
    whole.fit(knowledge)
    monkeypatch.setattr(calibration, "_MOST_COLUMNS", 100)
    pieces.fit(knowledge)
    assert whole._calibration == pieces._calibration


def test_leaving_models_out_is_fitting_the_items_without_them() -> None:
    world = World(0)
    values = np.array([world.model() for _ in range(12)])
    fit = fit_items(values, metrics_of(values, [slice(0, 100), slice(100, 200)]), 2)
    without = fit.without([3, 7], np.ones(200, dtype=bool))
    x, xx = np.delete(fit.abilities[True], [3, 7], 0), np.delete(fit.seconds[True], [3, 7], 0)
    weights, targets = np.delete(fit.weights, [3, 7], 0), np.delete(fit.targets, [3, 7], 0)
    prior = fit.precision - np.einsum("ki,kab->iab", fit.weights, fit.seconds[True])
    precision = prior + np.einsum("ki,kab->iab", weights, xx)
    linear = fit.linear - fit.targets.T @ fit.abilities[True] + targets.T @ x
    expected = np.linalg.solve(precision, linear[:, :, None])[:, :, 0]
    np.testing.assert_allclose(without.mean, expected, atol=1e-8)


def test_ability_of_the_linear_model_by_hand() -> None:
    """Two items of slope 1 and noise 1, prior N(0, 1): the posterior is N(sum / 3, 1 / 3)."""
    one = np.ones(2)
    known = ItemParameters(
        np.array([[1.0, 0.0], [1.0, 0.0]]), np.zeros((2, 2, 2)), np.zeros(2, dtype=bool), one, 0 * one, one
    )
    mean, covariance = ability_of(known, np.array([1.0, 2.0]), np.zeros(1), np.eye(1))
    assert (mean[0], covariance[0, 0]) == (pytest.approx(1.0), pytest.approx(1 / 3))
    # what the metric has in common has variance 1/2: of its sum with the ability the prior is N(0, 3/2)
    levels = np.zeros(2, dtype=np.int64)
    told = tell(known, np.array([1.0, 2.0]), known, np.zeros(1), (levels, levels))
    np.testing.assert_allclose(told.values, 3 / (2 / 3 + 2))
    # the sum of two abilities of 1 and 3, weights 1/2 and variance 1: prior N(2, 10), with the metric's own N(2, 10.5)
    merged = tell(known, np.array([1.0, 2.0]), known, np.zeros(1), (levels, levels), np.array([[1.0], [3.0]]))
    np.testing.assert_allclose(merged.values, (2 / 10.5 + 3) / (1 / 10.5 + 2))


@pytest.mark.parametrize("kind", KINDS)
def test_all_items_are_the_objective_itself(kind: str) -> None:
    world = World(4)
    estimator = built(**KINDS[kind])
    estimator.fit(known(world, 4, 6))
    row = world.model()
    found = estimator.estimate(items(row))["score"]
    assert (found.value, found.error) == (pytest.approx(row.mean(), rel=1e-14), 0.0)


@pytest.mark.parametrize("kind", KINDS)
def test_intervals_hold_what_they_say_and_are_narrower_than_the_means(kind: str) -> None:
    inside, off, plain, count = 0, [], [], 250
    for seed in range(2):
        world = World(10 + seed)
        knowledge = known(world, 5, 60)
        estimator, mean = built(**KINDS[kind]), StratifiedMean(SHARES, [Objective("score")])
        estimator.fit(knowledge)
        mean.fit(knowledge)
        for _ in range(count):
            row = world.model()
            shown = items(world.some(row, 15))
            found = estimator.estimate(shown)["score"]
            inside += abs(found.value - row.mean()) <= 1.96 * found.error
            off.append(found.value - row.mean())
            plain.append(mean.estimate(shown)["score"].value - row.mean())
    assert 0.92 <= inside / (2 * count) <= 0.98
    assert np.square(off).mean() < 0.85 * np.square(plain).mean()


def test_the_same_knowledge_gives_the_same_estimates() -> None:
    world = World(5)
    early, late = known(world, 4, 10), known(World(5), 4, 30)
    shown = items(world.some(world.model(), 10))
    once, again = built(blend="variances"), built(blend="variances")
    once.fit(late)
    for part in (early, early[:2], late):
        again.fit(part)
    assert once.estimate(shown) == again.estimate(shown)


@pytest.mark.parametrize("kind", KINDS)
def test_several_at_once_are_estimated_as_each_alone(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the bit: of the same number of items and of others, all items among them, over more than one batch."""
    monkeypatch.setattr(irt, "_AT_ONCE", 4)
    world = World(5)
    estimator = built(**KINDS[kind])
    estimator.fit(known(world, 4, 12))
    several = [items(world.some(world.model(), count)) for count in (5, 30, 5, 12, 30, 100, 5, 30, 12)]
    assert estimator.estimate_each(several) == [estimator.estimate(shown) for shown in several]
    assert estimator.estimate_each([]) == []
    assert built(**KINDS[kind]).estimate_each(several[:2])[0].keys() == {"score"}  # nothing is known


def test_nothing_known_is_the_mean() -> None:
    world = World(6)
    shown = items(world.some(world.model(), 10))
    estimator, mean = built(), StratifiedMean(SHARES, [Objective("score")])
    estimator.fit([])
    mean.fit([])
    assert estimator.estimate(shown) == mean.estimate(shown)
    assert built(anchors="clusters").order(COUNTS) is None


def test_earlier_runs_are_known_from_the_start() -> None:
    world = World(7)
    earlier = [items(world.model()) for _ in range(40)]
    few = [items(world.model()) for _ in range(3)]
    plain, helped = built(), built(earlier=earlier)
    plain.fit(few)
    helped.fit(few)
    off: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(60):
        row = world.model()
        shown = items(world.some(row, 10))
        for which, estimator in ((False, plain), (True, helped)):
            off[which].append(estimator.estimate(shown)["score"].value - row.mean())
    assert np.square(off[True]).mean() < 0.9 * np.square(off[False]).mean()


def test_other_values_and_constant_items_are_told_too() -> None:
    rng = np.random.default_rng(8)
    shares = [MetricShare("a/nll", 1.0, "minimize"), MetricShare("a/acc", 1.0), MetricShare("b/acc", 1.0)]
    centres = rng.gamma(2.0, size=50)
    models = [
        {"a/nll": centres * math.exp(rng.normal(0, 0.3)), "a/acc": np.zeros(50), "b/acc": np.ones(20)}
        for _ in range(30)
    ]
    estimator = ItemResponse(shares, [Objective("score")])
    estimator.fit(models[:20])
    for model in models[20:]:
        shown = {name: np.where(np.arange(len(values)) % 5 == 0, values, np.nan) for name, values in model.items()}
        found = estimator.estimate(shown)["score"]
        assert abs(found.value - (1.0 - model["a/nll"].mean())) < 3 * found.error < 0.6


@pytest.mark.parametrize("anchors", ["clusters", "entropy", "information"])
def test_anchors_are_an_order_of_all_places(anchors: Any) -> None:
    world = World(9)
    estimator = built(anchors=anchors, blend="variances")
    estimator.fit(known(world, 8, 0))
    order = estimator.order({**COUNTS, "other": 3})
    assert order is not None
    assert [sorted(places) for places in order.values()] == [[*range(100)], [*range(100)], [0, 1, 2]]
    again = built(anchors=anchors, blend="variances")
    again.fit(known(World(9), 8, 0))
    assert again.order({**COUNTS, "other": 3}) == order


def test_entropy_begins_with_what_models_disagree_on() -> None:
    rows = [[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 0, 1]]
    estimator = ItemResponse([MetricShare("a/acc", 1.0)], [Objective("score")], anchors="entropy", dimensions=1)
    estimator.fit([{"a/acc": np.array(row, dtype=float)} for row in rows])
    order = estimator.order({"a": 4})
    assert order is not None
    assert list(order["a"][:2]) == [1, 3]


def test_chosen_items_do_not_bias_the_mean() -> None:
    """Only the hard half of each task is shown: the mean of items says too little, the latent model does not."""
    world = World(12)
    estimator, mean = built(anchors="entropy"), StratifiedMean(SHARES, [Objective("score")])
    estimator.fit([items(world.model()) for _ in range(60)])
    hard = np.zeros(200, dtype=bool)
    for begin in (0, 100):
        hard[begin + np.argsort(world.intercepts[begin : begin + 100])[:50]] = True
    off, plain = [], []
    for _ in range(80):
        row = world.model()
        shown = items(np.where(hard, row, np.nan))
        off.append(estimator.estimate(shown)["score"].value - row.mean())
        plain.append(mean.estimate(shown)["score"].value - row.mean())
    assert abs(np.mean(off)) < 0.02
    assert np.mean(plain) < -0.15


@pytest.mark.parametrize("drawn", [[], [90, 91], [6, 8, 90]])
def test_weights_say_how_many_items_each_stands_for(drawn: list[int]) -> None:
    """Seven chosen of 100 and those drawn, by their places in the order; with none drawn nobody is a sample."""
    world = World(13)
    estimator = built(anchors="clusters")
    estimator.fit([items(world.model()) for _ in range(30)])
    order = estimator.order(COUNTS)
    assert order is not None
    seen = np.zeros(200, dtype=bool)
    places = sorted({*range(7), *drawn})
    seen[[order["a"][place] for place in places]] = seen[100:] = True
    weights = estimator._weights(seen)
    assert weights is not None
    others = len(set(places) - set(range(7)))
    expected = {place: 93 / others if place >= 7 else 1.0 if others else 100 / 7 for place in places}
    assert {place: weights[order["a"][place]] for place in places} == pytest.approx(expected)
    assert (weights[:100] > 0).sum() == len(places)
    assert (weights[100:] == 1).all()


def test_chosen_items_say_nothing_of_the_others() -> None:
    """Models are worse at the items that were chosen than their abilities say: the others are told from those drawn."""
    rng, world = np.random.default_rng(0), World(14)
    estimator, order = built(anchors="entropy"), None
    known_models: list[dict[str, Any]] = [items(world.model()) for _ in range(6)]
    off, held = [], []
    for step in range(60):
        estimator.fit(known_models)
        order = order or estimator.order(COUNTS)
        assert order is not None
        row, seen = world.model(), np.zeros(200, dtype=bool)
        for begin, name in ((0, "a"), (100, "b")):
            chosen, drawn = begin + np.array(order[name]), begin + rng.permutation(100)
            row[chosen[:40]] = 0.0
            seen[chosen[:15]] = seen[drawn[:15]] = True
        shown = items(np.where(seen, row, np.nan))
        found = estimator.estimate(shown)["score"]
        known_models.append(shown)
        if step >= 20:
            off.append(found.value - row.mean())
            held.append(abs(off[-1]) <= 1.96 * found.error)
    assert abs(np.mean(off)) < 0.03
    assert np.mean(held) >= 0.85
