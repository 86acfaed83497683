"""What raters are given: texts, forms and names; and what is kept of what they gave."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from evomerge.candidate import Evaluation
from evomerge.run.folder import RunFolder
from evomerge.run.ratings.folder import RatingFolder, form, guide
from evomerge.run.ratings.rules import RatingRules, blind_name, split_of
from evomerge.run.ratings.scored import rated, read_unrated, write_unrated
from evomerge.run.ratings.waiting import read_waiting

RULES = RatingRules(counts={"a": 2, "b": 1}, prompts={"a": ("one", "two"), "b": ("three",)}, raters=2, shuffle=3)
ANSWERS = {"a": ["1", "=2"], "b": ["drei, drei\nund"]}


@pytest.fixture
def ratings(tmp_path: Path) -> RatingFolder:
    folder = RatingFolder(tmp_path / "rating")
    folder.begin({"search": RULES})
    return folder


def test_names_tell_nothing_and_stay(ratings: RatingFolder) -> None:
    name = blind_name("sha256:f", "search", "abc")
    assert name == blind_name("sha256:f", "search", "abc")
    assert name not in (blind_name("sha256:f", "search", "abd"), blind_name("sha256:g", "search", "abc"))
    assert len(name) == 10
    held = blind_name("sha256:f", "held_out", "abc")
    assert (split_of(name), split_of(held)) == ("search", "held_out")
    assert name not in held


def test_texts_and_forms_there_and_back(ratings: RatingFolder) -> None:
    candidate = ratings.candidate("0123456789")
    texts = RULES.texts(ANSWERS)
    candidate.write(texts, RULES)
    assert sorted(candidate.texts()) == texts
    assert [text.item for text in candidate.texts()] == [text.item for text in RULES.shuffled(texts, "0123456789")]
    with (candidate.path / "form.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["item"]: (row["prompt"], row["text"], row["score"]) for row in rows} == {
        "0": ("one", "1", ""),
        "1": ("two", "'=2", ""),  # a spreadsheet would compute it
        "2": ("three", "drei, drei\nund", ""),
    }
    (candidate.path / "scores-anna.csv").write_text(form(candidate.texts(), {0: 2.0, 1: 1.5, 2: 4.0}, RULES))
    (sheet,) = candidate.sheets(RULES)
    assert (sheet.scores, sheet.complete(RULES)) == ({0: 2.0, 1: 1.5, 2: 4.0}, True)


def test_orders_differ_from_candidate_to_candidate_and_need_not() -> None:
    rules = replace(RULES, counts={"a": 30}, prompts={"a": tuple(map(str, range(30)))})
    texts = rules.texts({"a": ["x"] * 30})
    first, second = rules.shuffled(texts, "n1"), rules.shuffled(texts, "n2")
    assert first != second
    assert first == rules.shuffled(texts, "n1") != texts
    assert sorted(first) == texts == replace(rules, shuffle=None).shuffled(texts, "n1")
    assert first != replace(rules, shuffle=4).shuffled(texts, "n1")


def test_named_raters_have_forms_that_stay_as_they_fill_them(ratings: RatingFolder) -> None:
    named, candidate = replace(RULES, names=("anna", "ben")), ratings.candidate("a")
    candidate.write(RULES.texts(ANSWERS), named)
    assert sorted(p.name for p in candidate.path.iterdir()) == ["outputs.jsonl", "scores-anna.csv", "scores-ben.csv"]
    (candidate.path / "scores-anna.csv").write_text("item,score\n0,3\n")
    candidate.write(RULES.texts(ANSWERS), named)
    assert [(s.rater, dict(s.scores), s.problem) for s in candidate.sheets(named)] == [
        ("anna", {0: 3.0}, ""),
        ("ben", {}, ""),
    ]


def test_what_was_accepted_counts_whatever_comes_later(ratings: RatingFolder) -> None:
    candidate = ratings.candidate("a")
    candidate.path.mkdir()
    assert candidate.read_accepted(RULES) is None
    candidate.accept({"anna": [1.0, 2.0, 3.0], "ben": [2.0, 2.0, 5.0]})
    assert candidate.read_accepted(RULES) == {"anna": [1.0, 2.0, 3.0], "ben": [2.0, 2.0, 5.0]}
    for wrong in (
        "",
        "[]",
        '{"raters": {}}',
        '{"raters": {"a": [1, 2]}}',
        '{"raters": {"a": [1, 2, 9]}}',
        '{"raters": 1}',
    ):
        candidate.accepted.write_text(wrong)
        assert candidate.read_accepted(RULES) is None


def test_means_of_raters_items_and_tasks() -> None:
    known = Evaluation(4, "ok", "search", {"acc": 0.5}, {"t/acc": 0.5}, {"t/acc": np.array([0.0, 1.0])})
    found = rated(known, RULES, {"anna": [1, 2, 5], "ben": [3, 2, 4]})
    assert found.items["a/rating"].tolist() == [2.0, 2.0]
    assert found.items["b/rating"].tolist() == [4.5]
    assert found.metrics == {"t/acc": 0.5, "a/rating": 2.0, "b/rating": 4.5}
    assert found.objectives == {"acc": 0.5, "rating": 3.25}  # of tasks, not of texts: (2 + 4.5) / 2
    whole = rated(known, replace(RULES, by="candidate", objective="liked"), {"anna": [1], "ben": [4]})
    assert whole.objectives == {"acc": 0.5, "liked": 2.5}
    assert whole.metrics == {"t/acc": 0.5, "all/rating": 2.5}
    assert set(whole.items) == {"t/acc"}


def test_an_evaluation_waits_on_the_disk(tmp_path: Path) -> None:
    known = Evaluation(
        4, "ok", "search", {"acc": 1 / 3}, {"t/acc": 1 / 3}, {"t/acc": np.array([np.nan, 1 / 3])},
        {"merge": 0.1}, {"kept": 2.0}, responses=ANSWERS, tokens={"run": 7.0},
    )  # fmt: skip
    write_unrated(tmp_path / "x.json", known)
    found = read_unrated(tmp_path / "x.json", Evaluation(9, "failed", "held_out"), RULES)
    assert found is not None
    assert (found.candidate, found.status, found.split) == (9, "ok", "held_out")
    np.testing.assert_array_equal(found.items["t/acc"], known.items["t/acc"])
    for name in ("objectives", "metrics", "seconds", "merge", "responses", "tokens"):
        assert getattr(found, name) == getattr(known, name)
    content = (tmp_path / "x.json").read_text()
    for wrong in ("", "[]", "{}", content[:40], content.replace('"=2"', "")):
        (tmp_path / "x.json").write_text(wrong)
        assert read_unrated(tmp_path / "x.json", known, RULES) is None


def test_waiting_counts_scores_by_rater(ratings: RatingFolder) -> None:
    assert read_waiting(ratings.path.parent) is None
    for name in ("a", "b", "c", "held_out-d"):  # nobody is asked for held-out texts here
        ratings.candidate(name).write(RULES.texts(ANSWERS), RULES)
    ratings.candidate("a").accept({"anna": [1.0, 2.0, 3.0]})
    (ratings.path / "b" / "scores-anna.csv").write_text("item,score\n0,1\n1,1\n2,1\n")
    (ratings.path / "b" / "scores-ben.csv").write_text("item,score\n0,1\n")
    (ratings.path / "c" / "scores-anna.jsonl").write_text('{"item": 0, "sc')
    found = read_waiting(ratings.path)
    assert found is not None
    assert (found.rated, found.waiting, found.wanted, found.missing) == (1, 2, 6, 3)
    assert found.given == {"anna": 3, "ben": 1}
    assert found.problems == ("c/scores-anna.jsonl: line 1 is no JSON",)
    assert found.lines() == [
        "2 candidates wait, 1 rated",
        "anna: 3 of 6 scores",
        "ben: 1 of 6 scores",
        "3 ratings to come, 2 for each candidate",
        "c/scores-anna.jsonl: line 1 is no JSON",
    ]
    assert json.loads(json.dumps(found.as_dict()))["missing"] == 3


@pytest.mark.parametrize("text", ["", "[]", '{"splits": {"search": {}}}', '{"splits": 1}', '{"splits": {"search": 3}}'])
def test_other_files_are_no_rules(text: str, ratings: RatingFolder) -> None:
    (ratings.path / "rating.json").write_text(text)
    assert ratings.rules() == {}
    assert read_waiting(ratings.path) is None


def test_rules_there_and_back(ratings: RatingFolder) -> None:
    assert ratings.rules() == {"search": replace(RULES, prompts={})}
    for wrong in ({"low": None}, {"look_every": "x"}, {"look_every": 0}, {"raters": True}, {"by": "all"}, {"new": 1}):
        content = {"splits": {"search": {**RULES.to_json(), **wrong}}}
        (ratings.path / "rating.json").write_text(json.dumps(content))
        assert ratings.rules() == {}
    assert "copy form.csv" in guide(RULES)
    assert "copy" not in guide(replace(RULES, names=("anna",)))
    assert "lower is better" in guide(replace(RULES, direction="minimize"))


def test_the_folder_is_the_runs_own(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert run.rating == tmp_path / "rating"
    (run.rating / "a").mkdir(parents=True)
    (run.rating / "a" / ".outputs.jsonl.1.tmp").write_text("half")
    run.sweep()
    assert not list((run.rating / "a").iterdir())
