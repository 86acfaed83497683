"""Quadratic surfaces against values by hand and scikit-learn's own pipeline."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler

from evomerge.errors import ConfigError
from evomerge.landscape.surface import MOST_PRODUCTS, Surface, terms_of


def test_terms_are_features_and_their_products() -> None:
    assert terms_of(np.array([[2.0, 3.0]])).tolist() == [[2, 3, 4, 6, 9]]
    assert terms_of(np.ones((1, MOST_PRODUCTS))).shape[1] == MOST_PRODUCTS * (MOST_PRODUCTS + 3) // 2
    assert terms_of(np.full((1, MOST_PRODUCTS + 1), 2.0)).tolist() == [[2.0] * 65 + [4.0] * 65]


@pytest.mark.parametrize("targets", [1, 2])
def test_values_are_those_of_scikit_learn(targets: int) -> None:
    rng = np.random.default_rng(0)
    rows = np.concatenate([rng.random((80, 3)), np.ones((80, 1))], axis=1).astype(np.float32)  # one does not vary
    values = rng.normal(0, 0.1, (80, targets)) + rows[:, :1] * rows[:, 1:2] - rows[:, 2:3] ** 2
    alphas = [0.01, 0.1, 1.0, 10.0, 100.0, 1000.0]
    model = make_pipeline(
        StandardScaler(),
        PolynomialFeatures(2, include_bias=False),
        StandardScaler(),
        RidgeCV(alphas, alpha_per_target=True),
    ).fit(rows.astype(np.float64), values)
    surface = Surface.fitted(rows, values)
    surface.check(4, targets)
    tried = rng.random((50, 4)).astype(np.float32)
    tried[:, 3] = 1
    span = np.ptp(values, axis=0)
    bounds = values.min(axis=0) - 0.1 * span, values.max(axis=0) + 0.1 * span
    expected = np.clip(model.predict(tried.astype(np.float64)).reshape(50, targets), *bounds)
    np.testing.assert_allclose(surface.predict(tried), expected, rtol=1e-6, atol=1e-9)


def test_a_parabola_is_found_and_not_followed_to_infinity() -> None:
    rows = np.linspace(0, 1, 40, dtype=np.float32)[:, None]
    values = 1 - 4 * (rows.astype(np.float64) - 0.3) ** 2
    surface = Surface.fitted(rows, values)
    np.testing.assert_allclose(surface.predict(rows), values, atol=2e-3)
    assert surface.predict(np.array([[50.0]], np.float32)).tolist() == [surface.low.tolist()]


def test_sizes_and_numbers_are_checked() -> None:
    surface = Surface.fitted(np.random.default_rng(0).random((20, 2)).astype(np.float32), np.ones((20, 1)))
    for change, said in [
        ({"scale": np.zeros(2)}, "surface of a landscape has"),
        ({"coefficients": np.zeros((4, 1))}, r"coefficients of shape \(4, 1\); numbers of shape \(5, 1\)"),
        ({"intercept": np.array([np.inf])}, "intercept"),
        ({"low": np.zeros(2)}, "low"),
    ]:
        with pytest.raises(ConfigError, match=said):
            replace(surface, **change).check(2, 1)
