from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from evomerge.errors import FitnessError
from evomerge.report import statistics
from evomerge.report.statistics import compare, mcnemar


def pairs(both: int, wins: int, losses: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    """Right and wrong answers of two models with these counts."""
    a = np.repeat([1.0, 1.0, 0.0, 0.0], [both, wins, losses, neither])
    b = np.repeat([1.0, 0.0, 1.0, 0.0], [both, wins, losses, neither])
    return a, b


class TestMcNemar:
    def test_by_hand(self) -> None:
        # Of 5 items on which they differ, a wins all: 2 * (1/2)^5.
        assert mcnemar(5, 0) == mcnemar(0, 5) == 2 / 32
        # 6 items, 5 to 1: 2 * (1 + 6) / 64.
        assert mcnemar(5, 1) == pytest.approx(14 / 64, rel=1e-12)
        assert mcnemar(3, 3) == mcnemar(0, 0) == 1.0

    def test_agrees_with_scipy_s_binomial_test(self) -> None:
        for wins, losses in ((7, 3), (120, 60), (1, 40), (500, 499), (2000, 1200)):
            expected = stats.binomtest(wins, wins + losses, 0.5).pvalue
            assert mcnemar(wins, losses) == pytest.approx(expected, rel=1e-9)

    def test_single_task(self) -> None:
        a, b = pairs(40, 12, 3, 45)
        outcome = compare({"t": a}, {"t": b})
        assert outcome.test == "McNemar"
        assert (outcome.wins, outcome.losses, outcome.items, outcome.tasks) == (12, 3, 100, 1)
        assert outcome.difference == pytest.approx(0.09)
        assert outcome.p_value == pytest.approx(stats.binomtest(12, 15, 0.5).pvalue, rel=1e-9)
        # Normal approximation of the interval: 0.09 +- 1.96 * sqrt((15/100 - 0.09^2) / 100) = [0.016, 0.164].
        assert outcome.interval == pytest.approx((0.016, 0.164), abs=0.011)

    def test_tasks_of_equal_size_are_pooled(self) -> None:
        first, second = pairs(10, 8, 2, 30), pairs(20, 9, 4, 17)
        outcome = compare(
            {"x": first[0], "y": second[0]}, {"x": first[1], "y": second[1]}, weights={"x": 2.0, "y": 2.0}
        )
        assert outcome.test == "McNemar"
        assert outcome.p_value == pytest.approx(stats.binomtest(17, 23, 0.5).pvalue, rel=1e-9)
        assert outcome.difference == pytest.approx((6 / 50 + 5 / 50) / 2)


class TestSignFlips:
    def test_equals_mcnemar_for_one_stratum(self) -> None:
        """Two tasks of unequal size, one without any difference: only the other matters."""
        a, b = pairs(40, 12, 3, 45)
        same = np.ones(30)
        outcome = compare({"t": a, "same": same}, {"t": b, "same": same}, resamples=200_000)
        assert outcome.test == "sign-flip permutation"
        assert outcome.p_value == pytest.approx(mcnemar(12, 3), abs=0.001)

    def test_agrees_with_the_exact_distribution_over_two_strata(self) -> None:
        first, second = pairs(5, 6, 1, 8), pairs(20, 9, 4, 17)
        weights = {"x": 3.0, "y": 1.0}
        outcome = compare(
            {"x": first[0], "y": second[0]}, {"x": first[1], "y": second[1]}, weights=weights, resamples=200_000
        )
        # Sum over all ways in which 7 and 13 differing items can fall.
        observed = 0.75 * 5 / 20 + 0.25 * 5 / 50
        exact = sum(
            stats.binom.pmf(i, 7, 0.5) * stats.binom.pmf(j, 13, 0.5)
            for i in range(8)
            for j in range(14)
            if abs(0.75 * (2 * i - 7) / 20 + 0.25 * (2 * j - 13) / 50) >= observed - 1e-12
        )
        assert outcome.difference == pytest.approx(observed)
        assert outcome.p_value == pytest.approx(exact, abs=0.002)

    def test_items_that_were_not_run_are_left_out(self) -> None:
        a, b = pairs(40, 12, 3, 45)
        gaps = np.concatenate([b, [np.nan, 1.0]])
        outcome = compare({"t": np.concatenate([a, [1.0, np.nan]])}, {"t": gaps})
        assert outcome == compare({"t": a}, {"t": b})


class TestBootstrap:
    def scores(self, n: int = 80, shift: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(5)
        b = rng.normal(size=n)
        return b + shift + rng.normal(size=n), b

    def test_interval_agrees_with_scipy_s_bootstrap(self) -> None:
        a, b = self.scores()
        outcome = compare({"t": a}, {"t": b}, resamples=100_000)
        other = stats.bootstrap(
            (a - b,), np.mean, n_resamples=100_000, method="percentile", random_state=np.random.default_rng(1)
        )
        assert outcome.test == "bootstrap"
        assert outcome.difference == pytest.approx((a - b).mean())
        assert outcome.interval == pytest.approx(tuple(other.confidence_interval), abs=0.005)

    def test_p_value_is_near_the_t_test_s_on_normal_data(self) -> None:
        for shift in (0.05, 0.2, 0.3):
            a, b = self.scores(n=400, shift=shift)
            outcome = compare({"t": a}, {"t": b}, resamples=100_000)
            assert outcome.p_value == pytest.approx(stats.ttest_rel(a, b).pvalue, abs=0.01)

    def test_counting_values_and_drawing_items_give_the_same_distribution(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        a = {"t": np.random.default_rng(0).integers(-3, 4, size=120) / 2.0}
        b = {"t": np.zeros(120)}
        counted = compare(a, b, resamples=50_000)
        monkeypatch.setattr(statistics, "_FEW_VALUES", 0)
        monkeypatch.setattr(statistics, "_DRAWN_AT_ONCE", 120 * 7000)  # the last chunk is shorter
        drawn = compare(a, b, resamples=50_000)
        assert counted.test == drawn.test == "bootstrap"
        assert counted.interval == pytest.approx(drawn.interval, abs=0.01)
        assert counted.p_value == pytest.approx(drawn.p_value, abs=0.01)

    def test_a_drawn_p_value_is_never_zero(self) -> None:
        outcome = compare({"t": np.arange(50) + 10.5}, {"t": np.arange(50.0)}, resamples=999)
        assert outcome.p_value == pytest.approx(1 / 1000)

    def test_the_same_seed_gives_the_same_numbers(self) -> None:
        a, b = self.scores()
        assert compare({"t": a}, {"t": b}, seed=3) == compare({"t": a}, {"t": b}, seed=3)
        assert compare({"t": a}, {"t": b}, seed=3) != compare({"t": a}, {"t": b}, seed=4)

    def test_level_under_the_null(self) -> None:
        rng = np.random.default_rng(2)
        rejected = [
            compare({"t": rng.normal(size=60)}, {"t": rng.normal(size=60)}, resamples=400).significant
            for _ in range(400)
        ]
        assert 0.02 < np.mean(rejected) < 0.095  # 5 % nominal; the bootstrap of 60 items is a little liberal

    def test_one_item_proves_nothing(self) -> None:
        assert compare({"t": np.array([5.5])}, {"t": np.array([1.0])}).p_value == 1.0


class TestDirections:
    def test_lower_is_better_is_signed_so_that_positive_favours_a(self) -> None:
        a, b = np.array([1.0, 2.0, 3.0, 2.5]), np.array([2.0, 2.5, 3.0, 4.0])
        outcome = compare({"bits": a}, {"bits": b}, lower_is_better={"bits"})
        assert outcome.difference == pytest.approx(0.75)
        assert (outcome.wins, outcome.losses) == (3, 0)
        assert outcome.interval[1] > outcome.interval[0] > 0

    def test_binary_errors(self) -> None:
        a, b = pairs(40, 3, 12, 45)  # a makes fewer errors on 12 items, more on 3
        outcome = compare({"t": a}, {"t": b}, lower_is_better=["t"])
        assert (outcome.wins, outcome.losses, outcome.test) == (12, 3, "McNemar")

    def test_exchanging_the_models_mirrors_the_outcome(self) -> None:
        a, b = pairs(40, 12, 3, 45)
        there, back = compare({"t": a}, {"t": b}), compare({"t": b}, {"t": a})
        assert there.p_value == back.p_value
        assert there.difference == -back.difference
        assert (there.wins, there.losses) == (back.losses, back.wins)

    def test_weights_count_by_ratio(self) -> None:
        ones, zeros, mixed = np.ones(4), np.zeros(4), np.array([0.3, 0.1, 0.2, 0.2])
        outcome = compare({"x": ones, "y": mixed}, {"x": zeros, "y": zeros}, weights={"x": 3.0})
        assert outcome.difference == pytest.approx(0.75 * 1.0 + 0.25 * 0.2)


class TestRefusals:
    def test_other_items(self) -> None:
        with pytest.raises(FitnessError, match="task 't' has 3 items against 4; a paired test needs the same items"):
            compare({"t": np.ones(3)}, {"t": np.ones(4)})

    def test_other_tasks(self) -> None:
        with pytest.raises(FitnessError, match=r"tasks \['s'\] against \['t'\]"):
            compare({"s": np.ones(3)}, {"t": np.ones(3)})
        with pytest.raises(FitnessError, match="at least one"):
            compare({}, {})

    def test_nothing_in_common(self) -> None:
        with pytest.raises(FitnessError, match="task 't' has no items that both models were run on"):
            compare({"t": np.array([1.0, np.nan])}, {"t": np.array([np.nan, 1.0])})

    @pytest.mark.parametrize("weight", [0.0, -1.0, np.nan])
    def test_weights(self, weight: float) -> None:
        with pytest.raises(FitnessError, match="task weights are"):
            compare({"t": np.ones(2)}, {"t": np.ones(2)}, weights={"t": weight})
