"""Agreement of raters, beside ranks and correlations made by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from evomerge.report.ratings import agreement
from evomerge.run.folder import RunFolder
from evomerge.run.ratings.folder import RatingFolder
from evomerge.run.ratings.rules import RatingRules

RULES = RatingRules(counts={"a": 2}, prompts={"a": ("p", "q")}, low=None, high=None, raters=1)


def run_of(folder: Path, scores: list[dict[str, list[float]]]) -> RunFolder:
    ratings = RatingFolder(folder / "rating")
    ratings.begin({"search": RULES})
    for number, own in enumerate(scores):
        candidate = ratings.candidate(f"c{number}")
        candidate.write(RULES.texts({"a": ["x", "y"]}), RULES)
        if own:
            candidate.accept(own)
    return RunFolder(folder)


def ranks(values: list[float]) -> np.ndarray:
    return np.array([sum(v < x for v in values) + (sum(v == x for v in values) - 1) / 2 for x in values])


def test_the_mean_over_pairs_of_raters(tmp_path: Path) -> None:
    scores = [
        {"anna": [1.0, 2.0], "ben": [2.0, 2.0]},
        {"anna": [3.0, 5.0], "ben": [4.0, 3.0], "carl": [1.0, 1.0]},
        {"anna": [2.0, 4.0], "ben": [1.0, 5.0]},
        {},
    ]
    found = agreement(run_of(tmp_path, scores))
    assert found is not None
    assert found.candidates == 3
    assert [(r.name, r.candidates) for r in found.raters] == [("anna", 3), ("ben", 3), ("carl", 1)]
    assert [r.mean for r in found.raters] == pytest.approx([17 / 6, 17 / 6, 1.0])
    # carl has two scores in common with the others, which say nothing.
    expected = np.corrcoef(ranks([1, 2, 3, 5, 2, 4]), ranks([2, 2, 4, 3, 1, 5]))[0, 1]
    assert found.by_score == pytest.approx(expected)
    assert found.by_candidate == pytest.approx(np.corrcoef(ranks([1.5, 4, 3]), ranks([2, 3.5, 3]))[0, 1])
    assert found.text().startswith(
        "People rated 3 models: anna 3, mean 2.833, ben 3, mean 2.833 and carl 1, mean 1.000; "
    )


def test_one_rater_or_too_little_in_common(tmp_path: Path) -> None:
    assert agreement(RunFolder(tmp_path)) is None
    assert agreement(run_of(tmp_path / "a", [{}])) is None
    alone = agreement(run_of(tmp_path / "b", [{"anna": [1.0, 2.0]}]))
    assert alone is not None
    assert alone.text() == "People rated 1 model: anna 1, mean 1.500"
    few = agreement(run_of(tmp_path / "c", [{"anna": [1.0, 2.0], "ben": [2.0, 1.0]}]))
    assert few is not None
    assert few.by_score is None
    assert "too few scores in common" in few.text()
