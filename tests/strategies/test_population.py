from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from evomerge.errors import ConfigError
from evomerge.strategies.archives.population import Population, draw

# Three members on four items: a knows items 0 and 1, b item 1, c item 2; nobody knows item 3.
BINARY = np.array([[1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]], dtype=float)
REAL = np.array([[0.5, 2.0, 0.0], [1.5, 2.0, 0.25], [0.0, 4.0, 0.5]])


def filled(rows: np.ndarray, size: int | None = None, **options: Any) -> Population:
    population = Population(size or len(rows), rows.shape[1], **options)
    for row in rows:
        population.add(row)
    return population


def fitness(rows: np.ndarray, alpha: float, epsilon: float, capacity: np.ndarray) -> np.ndarray:
    """The paper's formula, one sum at a time."""
    return np.array(
        [
            sum(
                c * s / (sum(row[j] for row in rows) ** alpha + epsilon)
                for j, (c, s) in enumerate(zip(capacity, own, strict=True))
            )
            for own in rows
        ]
    )


def test_members_share_the_points_of_an_item() -> None:
    population = filled(BINARY, epsilon=1e-9)
    # Item 0 is a's alone, item 1 is shared by a and b, item 2 is c's.
    np.testing.assert_allclose(population.fitness(), [1.5, 0.5, 1.0], rtol=1e-6)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("capacity", ["auto", "one", "max"])
def test_fitness_is_the_papers_formula(alpha: float, capacity: Any) -> None:
    largest = REAL.max(0) if capacity != "one" else np.ones(3)
    population = filled(REAL, alpha=alpha, epsilon=0.125, capacity=capacity)
    np.testing.assert_allclose(population.fitness(), fitness(REAL, alpha, 0.125, largest), rtol=1e-12)


@pytest.mark.parametrize("shift", ["auto", "always", "never"])
@pytest.mark.parametrize(("alpha", "attraction"), [(1.0, "linear"), (0.5, "linear"), (0.5, "alpha")])
@pytest.mark.parametrize("kind", ["binary", "real", "signed"])
def test_after_many_births_the_sums_are_those_of_the_members(
    kind: str, alpha: float, attraction: Any, shift: Any
) -> None:
    rng = np.random.default_rng(11)
    draws = {
        "binary": lambda: rng.random(37) < 0.4,
        "real": lambda: rng.random(37),
        "signed": lambda: rng.normal(size=37),
    }
    options: Any = {"alpha": alpha, "attraction": attraction, "shift": shift, "capacity": "max", "epsilon": 0.01}
    population = Population(5, 37, **options)
    for _ in range(60):
        population.add(draws[kind]())
        rows = population.scores
        floor = {"auto": np.minimum(rows.min(0), 0), "always": rows.min(0), "never": np.zeros(37)}[shift]
        points = (rows - floor).sum(0)
        share, needs = (rows.max(0) - floor) / (points**alpha + 0.01), (rows.max(0) - floor) / (points + 0.01)
        np.testing.assert_allclose(population.fitness(), (rows - floor) @ share, rtol=1e-12, atol=1e-15)
        gaps = np.maximum(rows - rows[0], 0)
        expected = gaps @ (share if attraction == "alpha" else needs)
        np.testing.assert_allclose(population.attraction(0), expected, rtol=1e-12, atol=1e-15)


def test_the_largest_score_as_capacity_is_one_for_right_and_wrong() -> None:
    rng = np.random.default_rng(0)
    rows = (rng.random((6, 40)) < 0.3).astype(float)
    same = [filled(rows, capacity=capacity) for capacity in ("auto", "one", "max")]
    for other in same[1:]:
        np.testing.assert_allclose(other.fitness(), same[0].fitness(), rtol=1e-12)
        np.testing.assert_allclose(other.attraction(2), same[0].attraction(2), rtol=1e-12)


def test_alpha_zero_is_a_sum_of_scores() -> None:
    np.testing.assert_allclose(filled(BINARY, alpha=0.0, epsilon=0.0).fitness(), BINARY.sum(1))


@pytest.mark.parametrize("rows", [BINARY, REAL], ids=["binary", "real"])
@pytest.mark.parametrize("kind", ["linear", "alpha"])
def test_attraction_is_the_papers_formula(rows: np.ndarray, kind: Any) -> None:
    population = filled(rows, alpha=2.0, epsilon=0.125, attraction=kind, capacity="max")
    total = rows.sum(0) ** (2.0 if kind == "alpha" else 1.0)
    for first in range(3):
        wanted = [
            sum(
                c * max(b - a, 0) / (z + 0.125) for c, b, a, z in zip(rows.max(0), row, rows[first], total, strict=True)
            )
            for row in rows
        ]
        np.testing.assert_allclose(population.attraction(first), wanted, rtol=1e-12)


def test_epsilon_zero_divides_by_one_where_nobody_scores() -> None:
    population = filled(BINARY, epsilon=0.0)
    assert population.fitness().tolist() == [1.5, 0.5, 1.0]


def test_the_worst_of_all_goes_the_child_included() -> None:
    population = filled(BINARY)
    assert population.add(np.array([0, 0, 0, 0.0])) is None
    assert len(population) == 3
    np.testing.assert_array_equal(population.scores, BINARY)
    # The child shares item 1 too: b, who has nothing else, is left with a third of a point and goes.
    assert population.add(np.array([0, 1, 0, 1.0])) == 1
    np.testing.assert_array_equal(population.scores[1], [0, 1, 0, 1])
    np.testing.assert_allclose(population.fitness(), [1.5, 1.5, 1.0], rtol=1e-5)


def test_of_equals_the_oldest_goes() -> None:
    population = filled(np.ones((4, 9)))
    assert [population.add(np.ones(9)) for _ in range(6)] == [0, 1, 2, 3, 0, 1]


def test_equal_continuous_scores_are_ties_whatever_the_rounding() -> None:
    scores = np.random.default_rng(0).random(1437)
    population = filled(np.tile(scores, (7, 1)))
    assert [population.add(scores) for _ in range(9)] == [0, 1, 2, 3, 4, 5, 6, 0, 1]


@pytest.mark.parametrize("whole", [True, False], ids=["binary", "real"])
@pytest.mark.parametrize("shift", ["auto", "always"])
def test_many_steps_agree_with_computing_afresh(whole: bool, shift: Any) -> None:
    rng = np.random.default_rng(3)
    population = Population(8, 30, shift=shift)
    for _ in range(200):
        scores = rng.integers(0, 2, 30).astype(float) if whole else rng.normal(size=30)
        population.add(scores)
        rows = population.scores
        floor = rows.min(0) if shift == "always" else np.minimum(rows.min(0), 0)
        shifted = rows - floor
        capacity = np.ones(30) if whole else shifted.max(0)
        np.testing.assert_allclose(population.fitness(), fitness(shifted, 1.0, 1e-6, capacity), rtol=1e-9, atol=1e-12)


def test_shifts() -> None:
    rows = np.array([[-1.0, 2.0], [-3.0, 3.0]])
    options: dict[str, Any] = {"capacity": "one", "epsilon": 1e-9}
    np.testing.assert_allclose(filled(rows, **options).fitness(), [1 + 0.4, 0.6], rtol=1e-6)
    np.testing.assert_allclose(filled(rows, shift="always", **options).fitness(), [1, 1], rtol=1e-6)
    np.testing.assert_allclose(filled(rows, shift="never", **options).fitness(), [0.4, 0.6], rtol=1e-6)


def test_scores_that_are_not_finite_count_as_the_lowest() -> None:
    population = filled(np.array([[0.5, -1.0], [np.nan, np.inf]]), shift="never")
    np.testing.assert_array_equal(population.scores, [[0.5, 0.0], [0.0, 0.0]])
    other = filled(np.array([[0.5, -1.0], [1.0, np.nan]]))
    np.testing.assert_array_equal(other.scores[1], [1.0, -1.0])
    huge = filled(np.array([[1e308, 1.0], [1e308, 2.0]]))
    assert np.isfinite(huge.fitness()).all()


def test_parents_are_drawn_by_fitness_and_attraction() -> None:
    population = filled(BINARY, epsilon=1e-9)
    rng = np.random.default_rng(0)
    pairs = [population.parents(rng) for _ in range(6000)]
    first = np.bincount([a for a, _ in pairs]) / 6000
    np.testing.assert_allclose(first, np.array([1.5, 0.5, 1.0]) / 3, atol=0.03)
    mates = {a: {b for first, b in pairs if first == a} for a in range(3)}
    assert mates[0] == {2}  # b knows nothing that a does not
    assert mates[2] == {0, 1}
    to_a = [b for a, b in pairs if a == 2].count(0) / [a for a, _ in pairs].count(2)
    assert abs(to_a - 1.5 / 2.0) < 0.05  # 1 + 1/2 against 1/2


def test_the_best_on_every_item_takes_a_mate_by_fitness() -> None:
    population = filled(np.array([[1, 1, 1, 1], [1, 1, 1, 0], [1, 0, 0, 0.0]]))
    rng = np.random.default_rng(1)
    mates = [b for a, b in (population.parents(rng) for _ in range(4000)) if a == 0]
    share = mates.count(1) / len(mates)
    weak = population.fitness()[1:]
    assert abs(share - weak[0] / weak.sum()) < 0.05


@pytest.mark.parametrize("options", [{}, {"attraction": "off"}, {"alpha": 0.0}], ids=str)
def test_nobody_scores_or_all_score_the_same(options: Any) -> None:
    rng = np.random.default_rng(2)
    for value in (0.0, 1.0):
        population = filled(np.full((4, 3), value), **options)
        pairs = [population.parents(rng) for _ in range(3000)]
        assert all(a != b for a, b in pairs)
        counts = np.bincount([4 * a + b for a, b in pairs], minlength=16).reshape(4, 4)
        assert counts[~np.eye(4, dtype=bool)].min() > 150  # 250 each


def test_a_mate_may_be_the_parent_where_that_is_asked_for() -> None:
    rng = np.random.default_rng(3)
    population = filled(BINARY, epsilon=1e-9, attraction="off", distinct=False)
    pairs = [population.parents(rng) for _ in range(6000)]
    share = np.array([1.5, 0.5, 1.0]) / 3
    both = np.bincount([3 * a + b for a, b in pairs], minlength=9).reshape(3, 3) / 6000
    np.testing.assert_allclose(both, np.outer(share, share), atol=0.02)
    attracted = filled(BINARY, distinct=False)
    assert all(a != b for a, b in (attracted.parents(rng) for _ in range(500)))  # nobody attracts itself


def test_one_member_has_no_mate() -> None:
    population = filled(BINARY[:1], size=1)
    assert population.parents(np.random.default_rng(0)) == (0, None)
    assert population.mates(np.random.default_rng(0)) == (0, None)
    assert population.add(BINARY[1]) is None
    assert population.add(np.array([1, 1, 1, 0.0])) == 0


def test_random_mates_are_all_equally_likely() -> None:
    population = filled(BINARY)
    rng = np.random.default_rng(0)
    counts = np.zeros((3, 3))
    for _ in range(3000):
        counts[population.mates(rng)] += 1
    assert (np.diag(counts) == 0).all()
    assert counts[~np.eye(3, dtype=bool)].min() > 400  # 500 each


@pytest.mark.parametrize("rows", [BINARY, REAL], ids=["binary", "real"])
def test_saved_and_loaded_it_goes_on_the_same(rows: np.ndarray) -> None:
    one = filled(rows, size=2)
    state = one.state_dict()
    two = Population(2, rows.shape[1])
    two.load_state_dict(state)
    before = json.dumps({k: np.asarray(v).tolist() for k, v in state.items()})
    rng = np.random.default_rng(5)
    for _ in range(20):
        scores = rng.random(rows.shape[1])
        assert one.add(scores) == two.add(scores)
        np.testing.assert_array_equal(one.fitness(), two.fitness())
    assert json.dumps({k: np.asarray(v).tolist() for k, v in state.items()}) == before
    with pytest.raises(ConfigError, match="saved population"):
        Population(1, rows.shape[1]).load_state_dict(state)


def test_a_zero_weight_is_never_drawn() -> None:
    class Last(np.random.Generator):
        """Always the largest number below one."""

        def random(self, *args: Any, **kwargs: Any) -> Any:
            return 1 - 2.0**-53

    rng = Last(np.random.PCG64(0))
    assert draw(np.array([0.1, 0.2, 0.0]), rng) == 1
    assert draw(np.array([1e-300, 0.0]), rng) == 0
    assert draw(np.array([0.1, 0.2, 0.7]), rng, without=2) == 1
    assert draw(np.array([0.0, 0.2]), rng, without=1) is None


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"size": 0}, "strategy.size"),
        ({"alpha": -1.0}, "strategy.alpha"),
        ({"alpha": float("nan")}, "strategy.alpha"),
        ({"epsilon": -1e-9}, "strategy.epsilon"),
        ({"capacity": "maxx"}, r"strategy.capacity .* did you mean 'max'"),
        ({"attraction": "on"}, "strategy.attraction"),
        ({"shift": "yes"}, "strategy.shift"),
        ({"items": 0}, "items"),
    ],
    ids=str,
)
def test_wrong_arguments_are_named(options: Any, key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        Population(**{"size": 3, "items": 4, **options})
    with pytest.raises(ConfigError, match="4 items"):
        Population(3, 4).add(np.ones(3))
