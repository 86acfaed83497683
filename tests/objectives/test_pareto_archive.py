import subprocess
import sys

import numpy as np
import pytest

from evomerge.objectives import Objective, ParetoArchive

SCORE, LENGTH = Objective("score"), Objective("length", "minimize")
BOTH = (SCORE, LENGTH)


def filled(points: list[tuple[float, float]]) -> ParetoArchive:
    archive = ParetoArchive(BOTH)
    for number, (score, length) in enumerate(points):
        archive.add(number, {"score": score, "length": length})
    return archive


def test_keeps_what_nothing_dominates_in_the_users_directions() -> None:
    archive = filled([(0.5, 10.0), (0.4, 12.0), (0.6, 20.0), (0.5, 8.0)])
    assert list(archive) == [2, 3]
    assert archive.values() == {2: {"score": 0.6, "length": 20.0}, 3: {"score": 0.5, "length": 8.0}}


def test_equal_and_unscored_candidates_do_not_come_in() -> None:
    archive = filled([(0.5, 10.0)])
    assert not archive.add(1, {"score": 0.5, "length": 10.0})
    assert not archive.add(2, {"score": float("nan"), "length": 1.0})
    assert not archive.add(3, {"score": 0.9})
    assert list(archive) == [0]


def test_agrees_with_comparing_every_pair() -> None:
    points = np.random.default_rng(0).integers(0, 12, (200, 2)).astype(float)
    archive = filled([(a, b) for a, b in points])
    gains = points * [1, -1]
    expected = set()
    for i, own in enumerate(gains):
        beaten = any((g >= own).all() and (g > own).any() for g in gains)
        if not beaten and not any((g == own).all() for g in gains[:i]):
            expected.add(i)
    assert set(archive) == expected


def test_hypervolume_of_rectangles_added_by_hand() -> None:
    archive = filled([(0.5, 8.0), (0.75, 9.0), (0.2, 5.0)])
    # Above score 0.25 and below length 10: 0.25 x 2 and 0.25 x 1 more; the third does not beat the reference.
    assert archive.hypervolume({"score": 0.25, "length": 10.0}) == pytest.approx(0.25 * 2 + 0.25 * 1)
    assert archive.hypervolume({"score": 1.0, "length": 1.0}) == 0.0


@pytest.mark.parametrize("objectives", [1, 2, 3, 4])
def test_hypervolume_is_what_counting_cells_gives(objectives: int) -> None:
    rng = np.random.default_rng(objectives)
    named = [Objective(f"o{k}") for k in range(objectives)]
    for _ in range(5):
        points = rng.integers(0, 7, (12, objectives))
        archive = ParetoArchive(named)
        for i, point in enumerate(points):
            archive.add(i, {o.name: float(x) for o, x in zip(named, point, strict=True)})
        cells = np.indices((6,) * objectives).reshape(objectives, -1).T  # their lower corners, above (0, ..)
        covered = (points[:, None] > cells).all(axis=-1).any(axis=0).sum()
        assert archive.hypervolume({o.name: 0.0 for o in named}) == covered


def test_knee_and_extremes() -> None:
    archive = filled([(1.0, 100.0), (0.9, 20.0), (0.0, 0.0)])
    assert archive.knee() == 1
    assert archive.extreme("score") == 0
    assert archive.extreme("length") == 2


def test_three_objectives() -> None:
    archive = ParetoArchive((*BOTH, Objective("cost", "minimize")))
    archive.add(0, {"score": 1.0, "length": 1.0, "cost": 1.0})
    archive.add(1, {"score": 2.0, "length": 1.5, "cost": 1.0})
    reference = {"score": 0.0, "length": 2.0, "cost": 2.0}
    assert archive.hypervolume(reference) == pytest.approx(1.0 * 1.0 * 1.0 + 2.0 * 0.5 * 1.0 - 1.0 * 0.5 * 1.0)


def test_needs_no_torch() -> None:
    code = "import sys, evomerge.objectives; assert not {'torch', 'optuna', 'hydra'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
