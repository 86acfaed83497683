from __future__ import annotations

import pytest
from merge.carry_out import merged

from evomerge.recipes.method_spec import Scalar


def test_rescales_what_it_keeps() -> None:
    n = 1000
    base, a = [1.0] * n, [3.0] * n
    each: list[dict[str, Scalar]] = [{"density": 0.25, "weight": 0.5}]
    result = merged("dare_linear", [a], base, each)
    assert set(result) == {1.0, 1.0 + 0.5 * 2.0 / 0.25}
    kept = sum(value != 1.0 for value in result)
    assert 200 < kept < 300
    plain = merged("dare_linear", [a], base, each, rescale=False)
    assert set(plain) == {1.0, 2.0}
    assert [value != 1.0 for value in plain] == [value != 1.0 for value in result]
    assert merged("dare_ties", [a], base, each) == pytest.approx(result)
    assert merged("dare_linear", [a], base, [{"density": 0.0}]) == base


def test_mergekit_restores_the_sum_of_magnitudes() -> None:
    n = 1000
    base, a = [1.0] * n, [3.0] * n
    each: list[dict[str, Scalar]] = [{"density": 0.25, "weight": 0.5}]
    for method in ("dare_linear", "dare_ties"):
        result = merged(method, [a], base, each, rescale_by="magnitude")
        assert sum(value - 1 for value in result) == pytest.approx(0.5 * 2 * n, rel=1e-5)


def test_dare_ties_elects_among_what_is_kept() -> None:
    n = 2000
    base, a, b = [0.0] * n, [3.0] * n, [-1.0] * n
    result = merged("dare_ties", [a, b], base, [{"density": 0.5}, {"density": 1.0}])
    # Where the first model is dropped the second elects its own sign.
    assert set(result) == {6.0, -1.0}
