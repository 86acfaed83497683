"""Trees as arrays against scikit-learn's own predictions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.ensemble import ExtraTreesRegressor, RandomForestRegressor

from evomerge.errors import ConfigError
from evomerge.landscape.forest import Forest


@pytest.mark.parametrize("kind", [ExtraTreesRegressor, RandomForestRegressor])
@pytest.mark.parametrize("targets", [1, 3])
def test_values_are_those_of_scikit_learn(kind: type, targets: int) -> None:
    rng = np.random.default_rng(0)
    rows = np.round(rng.random((200, 5)), 2).astype(np.float32)  # ties at thresholds
    values = rng.random((200, targets)) + rows[:, :1]
    model = kind(20, min_samples_leaf=2, random_state=0).fit(rows, values if targets > 1 else values[:, 0])
    forest = Forest.of(model.estimators_, np.zeros(targets), np.ones(targets))
    forest.check(5, targets)
    tried = np.round(rng.random((300, 5)), 2).astype(np.float32)
    expected = model.predict(tried).reshape(300, targets)
    np.testing.assert_allclose(forest.predict(tried), expected, rtol=1e-14, atol=0)
    scaled = Forest.of(model.estimators_, np.full(targets, 2.0), np.full(targets, 3.0))
    np.testing.assert_allclose(scaled.predict(tried), expected * 3 + 2, rtol=1e-14)


def test_a_tree_by_hand() -> None:
    """Left where feature 1 is at most 0.5; the threshold is compared as a float64."""
    forest = Forest(
        np.array([0, 3], np.int32),
        np.array([1, -1, -1, -1], np.int32),
        np.array([0.5, 0, 0, 0]),
        np.array([1, -1, -1, -1], np.int32),
        np.array([2, -1, -1, -1], np.int32),
        np.array([[0.0], [1.0], [3.0], [5.0]]),
    )
    forest.check(2, 1)
    rows = np.array([[9, 0.5], [9, np.nextafter(np.float32(0.5), np.float32(1))]], np.float32)
    assert forest.predict(rows).tolist() == [[3.0], [4.0]]
    for change, said in [
        ({"left": np.array([0, -1, -1, -1], np.int32)}, "ways that do not end"),
        ({"right": np.array([4, -1, -1, -1], np.int32)}, "ways that do not end"),
        ({"feature": np.array([2, -1, -1, -1], np.int32)}, "features that there are not"),
        ({"roots": np.array([4], np.int32)}, "no trees"),
        ({"value": np.full((4, 1), np.nan)}, "no 1 numbers"),
        ({"threshold": np.zeros(3)}, "different lengths"),
        ({"value": np.zeros(4)}, "other shapes"),
    ]:
        with pytest.raises(ConfigError, match=said):
            replace(forest, **change).check(2, 1)
