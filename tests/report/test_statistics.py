from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from evomerge.errors import FitnessError
from evomerge.report import statistics
from evomerge.report.statistics import compare, mcnemar, sign_flip


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

    def test_few_items_are_flipped_in_every_way(self) -> None:
        rng = np.random.default_rng(0)
        assert sign_flip(np.array([1.0, 2.0, 3.0]), rng) == 2 / 8
        assert sign_flip(np.array([1.0, 2.0, -3.0]), rng) == 1.0
        assert sign_flip(np.array([3.0, -1.0, 2.0]), rng) == 4 / 8  # 6 and 4, and their negatives
        assert sign_flip(np.full(20, 0.1), rng) == 1 / 10_001
        assert sign_flip(np.zeros(3), rng) == sign_flip(np.array([4.5]), rng) == 1.0
        assert sign_flip(np.array([1.0, 2.0, 3.0, 0.0]), rng) == 2 / 8  # what is equal says nothing

    def test_values_agree_with_scipy_s_permutation_test(self) -> None:
        values = np.random.default_rng(3).gamma(2.0, size=12) - 1.5
        expected = stats.permutation_test((values,), np.mean, permutation_type="samples", n_resamples=np.inf).pvalue
        assert compare({"t": values}, {"t": np.zeros(12)}).p_value == pytest.approx(expected, rel=1e-9)
        drawn = compare({"t": values}, {"t": np.zeros(12)}, resamples=4_000)  # of 4,096 ways
        assert drawn.p_value == pytest.approx(expected, abs=0.03)

    @pytest.mark.parametrize("items", [2, 3, 5, 8, 10, 30])
    def test_level_with_few_items_that_are_not_right_or_wrong(self, items: int) -> None:
        rng = np.random.default_rng(7)
        p = np.array(
            [
                compare({"t": rng.normal(size=items)}, {"t": rng.normal(size=items)}, resamples=1000).p_value
                for _ in range(400)
            ]
        )
        assert (p < 0.05).mean() < 0.075
        assert (p < 0.001).mean() < 0.01
        assert p.min() >= 2 / 2**items

    def test_items_that_were_not_run_are_left_out(self) -> None:
        a, b = pairs(40, 12, 3, 45)
        gaps = np.concatenate([b, [np.nan, 1.0]])
        outcome = compare({"t": np.concatenate([a, [1.0, np.nan]])}, {"t": gaps})
        assert outcome == compare({"t": a}, {"t": b})


class TestValues:
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
        assert outcome.difference == pytest.approx((a - b).mean())
        wider = stats.t.ppf(0.975, 79) / stats.norm.ppf(0.975) * (80 / 79) ** 0.5
        expected = outcome.difference + wider * (np.array(other.confidence_interval) - outcome.difference)
        assert outcome.interval == pytest.approx(tuple(expected), abs=0.005)

    @pytest.mark.parametrize("items", [(2,), (3,), (5,), (3, 20), (60,)])
    def test_intervals_hold_the_difference_however_few_the_items(self, items: tuple[int, ...]) -> None:
        rng = np.random.default_rng(9)
        held = []
        for _ in range(400):
            values = {str(count): rng.normal(loc=0.4, size=count) for count in items}
            low, high = compare(values, {k: np.zeros(v.size) for k, v in values.items()}, resamples=400).interval
            held.append(low <= 0.4 <= high)
        assert np.mean(held) > 0.9

    def test_one_item_has_no_interval(self) -> None:
        one, more = np.array([5.5]), np.array([0.5, 1.5])
        outcome = compare({"x": one, "y": more}, {"x": one - 1, "y": more - 2})
        assert outcome.interval == (-np.inf, np.inf)
        assert compare({"x": more}, {"x": more - 1}).interval == (1.0, 1.0)

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
        assert counted.test == drawn.test == "sign-flip permutation"
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
        assert 0.02 < np.mean(rejected) < 0.08  # 5 % nominal

    def test_one_item_proves_nothing(self) -> None:
        assert compare({"t": np.array([5.5])}, {"t": np.array([1.0])}).p_value == 1.0


class TestDirections:
    def test_lower_is_better_is_signed_so_that_positive_favours_a(self) -> None:
        a, b = np.array([1.0, 2.0, 3.0, 2.5]), np.array([2.0, 2.5, 3.0, 4.0])
        outcome = compare({"bits": a}, {"bits": b}, lower_is_better={"bits"})
        assert outcome.difference == pytest.approx(0.75)
        assert (outcome.wins, outcome.losses) == (3, 0)
        back = compare({"bits": a}, {"bits": b})
        assert back.difference == -outcome.difference
        assert outcome.interval[0] < 0 < 0.75 < outcome.interval[1]  # of four items

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
