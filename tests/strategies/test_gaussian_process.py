"""A Gaussian process with errors of its own for every value: against scikit-learn's, and where it says to look."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

from evomerge.strategies.bases.gaussian_process import Array, GaussianProcess

GENES = 4


def sample(count: int = 50) -> tuple[Array, Array, Array]:
    """Points, values of a function of three genes with noise, and the errors that the noise has."""
    rng = np.random.default_rng(3)
    points = rng.random((count, GENES))
    errors = rng.choice([0.02, 0.2], count)
    values = np.sin(3 * points[:, 0]) + points[:, 1] ** 2 - 0.5 * points[:, 0] * points[:, 2]
    return points, values + errors * rng.standard_normal(count), errors


def test_it_is_scikit_learns() -> None:
    points, values, errors = sample()
    ours = GaussianProcess.fit(points, values, errors)
    kernel = ConstantKernel(1.0, (0.05, 50)) * RBF(np.full(GENES, 1.5), (0.3, 10)) + WhiteKernel(0.05, (1e-4, 1))
    mean, scale = values.mean(), values.std()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a length at its bound
        theirs = GaussianProcessRegressor(kernel, alpha=(errors / scale) ** 2 + 1e-6).fit(
            points, (values - mean) / scale
        )
    np.testing.assert_allclose(ours.theta, theirs.kernel_.theta, atol=1e-5)
    at = np.random.default_rng(4).random((7, GENES))
    expected, deviation = theirs.predict(at, return_std=True)
    np.testing.assert_allclose(ours.predict(at)[0], expected * scale + mean, rtol=1e-5)
    np.testing.assert_allclose(ours.predict(at)[1], deviation * scale, rtol=1e-5)


@pytest.mark.parametrize("kappa", [1.0, 0.0, -1.0])
def test_the_slope_that_it_climbs_by(kappa: float) -> None:
    """Against differences of what `predict` says."""
    fitted = GaussianProcess.fit(*sample())
    at, step = np.array([0.3, 0.4, 0.5, 0.6]), 1e-5

    def bound(point: Array) -> float:
        mean, deviation = fitted.predict(point[None])
        return float((mean - kappa * deviation)[0])

    slope = [(bound(at + step * e) - bound(at - step * e)) / (2 * step) for e in np.eye(GENES)]
    value, descent = fitted._descent(kappa)(at)
    assert fitted.mean - fitted.scale * value == pytest.approx(bound(at))
    np.testing.assert_allclose(-fitted.scale * descent, slope, rtol=1e-5, atol=1e-7)


def test_the_best_point_is_that_of_the_function() -> None:
    rng = np.random.default_rng(0)
    points = rng.random((60, 2))
    values = -np.square(points - [0.25, 0.8]).sum(axis=1)
    fitted = GaussianProcess.fit(points, values, np.zeros(60))
    np.testing.assert_allclose(fitted.best([np.array([0.9, 0.1])], 0.0), [0.25, 0.8], atol=0.01)
    inside = fitted.best([np.array([0.9, 0.1])], -1.0)
    assert ((inside >= 0) & (inside <= 1)).all()


def test_a_value_with_a_large_error_counts_less() -> None:
    points = np.linspace(0, 1, 11)[:, None]
    values = np.where(np.arange(11) == 5, 3.0, np.linspace(0, 1, 11))  # one that is far off
    sure, unsure = np.full(11, 0.01), np.where(np.arange(11) == 5, 3.0, 0.01)
    theta = np.log([1.0, 0.5, 1e-3])
    at = np.array([[0.5]])
    off = [abs(GaussianProcess.fit(points, values, errors, theta).predict(at)[0][0] - 0.5) for errors in (sure, unsure)]
    assert off[1] < 0.1 < off[0]


def test_the_same_bits_for_any_number_of_threads() -> None:
    program = (
        "import numpy as np\n"
        "from evomerge.strategies.bases.gaussian_process import GaussianProcess\n"
        "rng = np.random.default_rng(0)\n"
        "x = rng.random((300, 16))\n"
        "fitted = GaussianProcess.fit(x, np.sin(x @ rng.random(16)), rng.random(300) / 9)\n"
        "print(fitted.theta.tobytes().hex(), fitted.best(list(x[:2]), 1.0).tobytes().hex())\n"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "OPENBLAS_NUM_THREADS": threads, "OMP_NUM_THREADS": threads},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for threads in ("1", "4")
    }
    assert len(said) == 1
