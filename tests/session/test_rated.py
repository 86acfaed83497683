"""An evaluator whose scores people give: who writes when, what is waited for, what is never done twice."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from evomerge.candidate import Candidate, Evaluation, Split
from evomerge.recipes.pool_info import PoolInfo
from evomerge.recipes.slices import ModelRef, SliceId
from evomerge.run.folder import RunFolder
from evomerge.run.ratings.bradley_terry import strength
from evomerge.run.ratings.folder import RatingFolder, form
from evomerge.run.ratings.rules import RatingRules
from evomerge.run.ratings.waiting import left_for, read_waiting
from evomerge.search.hooks import Interrupted
from evomerge.session.rated import RatedEvaluator

POOL = PoolInfo(
    refs=tuple((name, ModelRef(name, fingerprint=f"sha256:{name}")) for name in ("base", "a", "b")),
    sources=("a", "b"),
    base="base",
    slices=(SliceId("embed"),),
    layers=1,
    dtype="float32",
)
RULES = RatingRules(counts={"t": 2}, prompts={"t": ("p", "q")}, look_every=0.02)


class Writers:
    """An evaluator whose candidates write their own ids."""

    def __init__(self) -> None:
        self.queue: list[tuple[Candidate, Split]] = []
        self.written: list[tuple[int, Split]] = []
        self.failing: set[int] = set()

    slots = 1

    def submit(self, candidate: Candidate, split: Split = "search") -> None:
        self.queue.append((candidate, split))

    def collect(self) -> Evaluation:
        candidate, split = self.queue.pop(0)
        self.written.append((candidate.id, split))
        if candidate.id in self.failing:
            return Evaluation(candidate.id, "failed", split, error="it raised")
        return Evaluation(candidate.id, "ok", split, responses={"t": [f"{candidate.id}", "x"]}, seconds={"model": 0.5})

    def withdraw(self) -> list[int]:
        ids = [candidate.id for candidate, _ in self.queue]
        self.queue.clear()
        return ids

    def fingerprint(self, split: Split) -> str:
        return "sha256:f"

    def close(self) -> None: ...


def model(number: int, weight: float | None = None) -> Candidate:
    return Candidate(number, POOL.linear({"a": 0.1 * number if weight is None else weight, "b": 0.5}))


class Desk:
    """A run's rating folder, with raters who take what lies there."""

    def __init__(self, folder: Path) -> None:
        self.folder = RunFolder(folder)
        self.ratings = RatingFolder(self.folder.rating)
        self.inner = Writers()
        self.stop: Callable[[], bool] = lambda: False

    def evaluator(self, rules: RatingRules = RULES, splits: tuple[Split, ...] = ("search",)) -> RatedEvaluator:
        self.inner = Writers()
        return RatedEvaluator(self.inner, dict.fromkeys(splits, rules), self.folder, lambda: self.stop())

    @property
    def names(self) -> list[str]:
        return [path.parent.name for path in sorted(self.folder.rating.glob("*/outputs.jsonl"))]

    def name_of(self, number: int) -> str:
        return next(n for n in self.names if any(t.text == str(number) for t in self.ratings.candidate(n).texts()))

    def rate(self, number: int, scores: str, rater: str = "anna") -> None:
        lines = [f'{{"item": {item}, "score": {score}}}' for item, score in enumerate(scores)]
        (self.folder.rating / self.name_of(number) / f"scores-{rater}.jsonl").write_text("\n".join(lines))


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def test_all_write_before_anyone_is_waited_for_and_the_first_rated_comes_first(desk: Desk) -> None:
    evaluator = desk.evaluator()
    for number in (0, 1, 2):
        evaluator.submit(model(number))

    def people() -> None:
        while len(desk.names) < 3:
            time.sleep(0.005)
        desk.rate(1, "45")
        while not desk.ratings.candidate(desk.name_of(1)).accepted.exists():
            time.sleep(0.005)
        desk.rate(2, "11")
        desk.rate(0, "23")

    thread = threading.Thread(target=people, daemon=True)
    thread.start()
    found = [evaluator.collect() for _ in range(3)]
    thread.join()
    assert found[0].candidate == 1
    assert {f.candidate: f.objectives["rating"] for f in found} == {1: 4.5, 0: 2.5, 2: 1.0}
    assert found[0].responses == {"t": ["1", "x"]}
    assert found[0].seconds == {"model": 0.5}
    assert desk.inner.written == [(0, "search"), (1, "search"), (2, "search")]
    assert len(desk.names) == 3
    waiting = read_waiting(desk.folder.rating)
    assert waiting is not None
    assert (waiting.rated, waiting.waiting) == (3, 0)


def test_equal_models_are_rated_once_and_a_failure_is_that_of_all(desk: Desk) -> None:
    evaluator = desk.evaluator()
    desk.inner.failing = {5}
    for candidate in (model(0, 0.3), model(1, 0.3), model(5, 0.7), model(6, 0.7), Candidate(7, None)):
        evaluator.submit(candidate)
    with_faults = [evaluator.collect() for _ in range(3)]
    assert [(f.candidate, f.status, f.error) for f in with_faults] == [
        (5, "failed", "it raised"),
        (6, "failed", "it raised"),
        (7, "ok", ""),  # without a recipe it is the other evaluator's to say
    ]
    assert desk.inner.written == [(0, "search"), (5, "search"), (7, "search")]
    desk.rate(0, "24")
    assert [(f.candidate, f.objectives) for f in (evaluator.collect(), evaluator.collect())] == [
        (0, {"rating": 3.0}),
        (1, {"rating": 3.0}),
    ]
    evaluator.submit(model(9, 0.3))  # later, too
    assert evaluator.collect().objectives == {"rating": 3.0}
    assert len(desk.inner.written) == 3


def test_what_is_half_written_or_wrong_is_waited_for_and_said_once(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    evaluator = desk.evaluator()
    evaluator.submit(model(0))
    looks = 0

    def people() -> bool:
        """Asked whenever the search waits."""
        nonlocal looks
        looks += 1
        file = desk.folder.rating / desk.name_of(0) / "scores-anna.jsonl"
        steps = ['{"item": 0, "score": 3}\n{"item": 1, "sc', '{"item": 0, "score": 30}', '{"item": 0, "score": 3}']
        if looks in (2, 12, 22):
            file.write_text(steps[looks // 10])
        if looks == 32:
            file.write_text('{"item": 0, "score": 3}\n{"item": 1, "score": 4}')
        return looks > 200

    desk.stop = people
    with caplog.at_level(logging.WARNING):
        assert evaluator.collect().objectives == {"rating": 3.5}
    assert looks > 32  # what has just changed may not be whole yet
    said = [record.getMessage() for record in caplog.records if "mended" in record.getMessage()]
    assert len(said) == 2
    assert "scores-anna.jsonl: line 2 is no JSON" in said[0]
    assert "line 1: score is 30, a number from 1 to 5" in said[1]
    announced = [r.getMessage() for r in caplog.records if "waiting for ratings" in r.getMessage()]
    assert len(announced) == 1
    assert "1 candidate, 2 texts" in announced[0]


def test_so_many_must_have_rated(desk: Desk) -> None:
    evaluator = desk.evaluator(replace(RULES, raters=2))
    evaluator.submit(model(0))
    looks = 0

    def people() -> bool:
        nonlocal looks
        looks += 1
        if looks == 1:
            desk.rate(0, "55")
            desk.rate(0, "1", "carl")
        if looks == 10:
            desk.rate(0, "13", "ben")
        return looks > 200

    desk.stop = people
    assert evaluator.collect().objectives == {"rating": 3.5}
    assert looks >= 10
    accepted = desk.ratings.candidate(desk.name_of(0)).read_accepted(RULES)
    assert accepted == {"anna": [5.0, 5.0], "ben": [1.0, 3.0]}


def test_another_session_writes_nothing_again_and_finds_scores(desk: Desk) -> None:
    evaluator = desk.evaluator()
    for number in (0, 1):
        evaluator.submit(model(number))
    desk.stop = lambda: True
    with pytest.raises(Interrupted):
        evaluator.collect()
    assert desk.inner.written == [(0, "search"), (1, "search")]  # what was begun is kept
    assert sorted(evaluator.withdraw()) == [0, 1]
    desk.rate(1, "55")
    times = [(desk.folder.rating / name / "outputs.jsonl").stat().st_mtime_ns for name in desk.names]
    again = desk.evaluator()
    desk.stop = lambda: False
    for number in (0, 1):
        again.submit(model(number))
    found = again.collect()
    assert (found.candidate, found.objectives, found.responses) == (1, {"rating": 5.0}, {"t": ["1", "x"]})
    assert found.seconds == {"model": 0.5}
    assert desk.inner.written == []
    assert times == [(desk.folder.rating / name / "outputs.jsonl").stat().st_mtime_ns for name in desk.names]
    # Killed between what was accepted and the ledger; the rater has thought again since.
    desk.rate(1, "11")
    third = desk.evaluator()
    third.submit(model(1))
    assert third.collect().objectives == {"rating": 5.0}
    # Killed between keeping the texts and laying them out.
    (desk.folder.rating / desk.name_of(0) / "outputs.jsonl").unlink()
    fourth = desk.evaluator()
    fourth.submit(model(0))
    assert desk.inner.written == []
    desk.rate(0, "12")
    assert fourth.collect().objectives == {"rating": 1.5}


def test_time_runs_out_only_where_told(desk: Desk) -> None:
    evaluator = desk.evaluator(replace(RULES, hours=1e-6))
    evaluator.submit(model(0))
    found = evaluator.collect()
    assert found.status == "failed"
    assert found.error == "0 of 1 raters have scored it after 1e-06 h (hours=1e-06)"


def test_splits_have_names_of_their_own_but_finalists_of_the_same_items(desk: Desk) -> None:
    evaluator = desk.evaluator(splits=("search", "validation"))
    evaluator.submit(model(0), "search")
    evaluator.submit(model(0), "validation")
    evaluator.submit(model(0), "held_out")  # not rated here
    assert evaluator.collect().split == "held_out"
    desk.rate(0, "12")
    found = [evaluator.collect(), evaluator.collect()]
    assert {(f.split, f.objectives["rating"]) for f in found} == {("search", 1.5), ("validation", 1.5)}
    assert list(desk.ratings.rules()) == ["search"]
    rules: dict[Split, RatingRules] = {"search": RULES, "held_out": replace(RULES, raters=2)}
    other = RatedEvaluator(desk.inner, rules, desk.folder, lambda: True)
    other.submit(model(0), "held_out")
    with pytest.raises(Interrupted):
        other.collect()
    assert list(desk.ratings.rules()) == ["search", "held_out"]
    assert [name.rpartition("-")[0] for name in desk.names] == ["", "held_out"]
    waiting = read_waiting(desk.folder.rating)
    assert waiting is not None
    assert (waiting.rated, waiting.waiting, waiting.missing) == (1, 1, 2)


PAIRS = replace(RULES, by="pair", low=0.0, high=1.0)


def prefer(desk: Desk, better: Callable[[str, str], float]) -> list[str]:
    """Compare all pairs that wait; the names of their candidates."""
    compared = []
    for candidate, rules, _ in left_for(desk.ratings, "anna"):
        scores = {text.item: better(text.text, text.other) for text in candidate.texts()}
        (candidate.path / "scores-anna.csv").write_text(form(candidate.texts(), scores, rules))
        compared.append(candidate.name)
    return compared


def larger(first: str, second: str) -> float:
    """Of numbers; the constant texts are equal."""
    return 0.5 if first == second else float(int(first) > int(second))


def test_pairs_become_strengths_and_the_first_candidate_is_the_origin(desk: Desk) -> None:
    evaluator = desk.evaluator(PAIRS)
    found = []
    for number in (4, 2, 7, 5):
        evaluator.submit(model(number))
        thread = threading.Thread(
            target=until, args=(lambda: prefer(desk, larger) or not evaluator._open,), daemon=True
        )
        thread.start()
        found.append(evaluator.collect())
        thread.join()
    own = [evaluation.objectives["rating"] for evaluation in found]
    assert own[0] == 0.0
    # Against candidate 4, strength 0: one item lost, one equal.
    assert own[1] == pytest.approx(strength([0.0, 0.5], [0.0, 0.0]))
    # Against the two best, 4 and 2, the middle one being 2 as well.
    assert own[2] == pytest.approx(strength([1.0, 0.5], [own[0], own[1]]))
    assert own[3] == pytest.approx(strength([0.0, 0.5], [own[2], own[0]]))
    for evaluation in found:
        assert evaluation.items["t/rating"].mean() == pytest.approx(evaluation.objectives["rating"])
        assert evaluation.metrics["t/rating"] == pytest.approx(evaluation.objectives["rating"])
    assert read_waiting(desk.folder.rating).rated == 3  # type: ignore[union-attr]


def test_pairs_that_were_laid_out_keep_their_opponents_in_another_session(desk: Desk) -> None:
    evaluator = desk.evaluator(PAIRS)
    for number in (4, 2):
        evaluator.submit(model(number))
    assert evaluator.collect().objectives == {"rating": 0.0}
    desk.stop = lambda: True
    with pytest.raises(Interrupted):
        evaluator.collect()
    before = (desk.ratings.candidate(desk.names[0]).path / "outputs.jsonl").read_bytes()
    desk.stop = lambda: False
    again = desk.evaluator(PAIRS)
    for number in (4, 2):
        again.submit(model(number))
    assert again.collect().objectives == {"rating": 0.0}
    assert (desk.ratings.candidate(desk.names[0]).path / "outputs.jsonl").read_bytes() == before
    prefer(desk, larger)
    assert again.collect().objectives["rating"] == pytest.approx(strength([0.0, 0.5], [0.0, 0.0]))
    assert desk.inner.written == []
    third = desk.evaluator(PAIRS)
    third.submit(model(2))
    assert third.collect().objectives["rating"] == pytest.approx(strength([0.0, 0.5], [0.0, 0.0]))


def until(done: Callable[[], object]) -> None:
    """Wait for something."""
    while not done():
        time.sleep(0.01)
