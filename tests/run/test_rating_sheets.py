"""Files of scores as people and programs leave them: what counts, and what is said of the rest."""

from __future__ import annotations

from pathlib import Path

import pytest

from evomerge.run.ratings.rules import RatingRules
from evomerge.run.ratings.sheets import Sheet, read_sheets

ITEMS = RatingRules(counts={"a": 2, "b": 1})
WHOLE = RatingRules(by="candidate", counts={"a": 3})
FREE = RatingRules(low=None, high=None, counts={"a": 3})


def sheet(folder: Path, name: str, text: str | bytes, rules: RatingRules = ITEMS) -> Sheet:
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    (found,) = read_sheets(folder, rules)
    return found


@pytest.mark.parametrize(
    ("name", "text", "rules", "scores"),
    [
        ("scores-anna.csv", "item,score\n0,1\n2,5\n1,2.5\n", ITEMS, {0: 1.0, 1: 2.5, 2: 5.0}),
        ("scores-anna.csv", "\ufeffitem;prompt;score\r\n0;x;3,5\r\n1;y;\r\n", ITEMS, {0: 3.5}),  # a spreadsheet's
        ("scores-anna.csv", 'Item\tText\t"Score"\n0\t"two\nlines, 9"\t4\n2.0\tb\t1\n', ITEMS, {0: 4.0, 2: 1.0}),
        ("scores-anna.csv", "item,score\n0,3\n0,3\n\n , \n", ITEMS, {0: 3.0}),
        ("scores-anna.csv", "item,prompt,text,score\n0,a,b\n", ITEMS, {}),
        ("scores-anna.jsonl", '{"item": 1, "score": 4, "why": "good"}\n\n{"item": 0, "score": null}', ITEMS, {1: 4.0}),
        ("scores-anna.jsonl", '{"item": 1, "score": -1e9}', FREE, {1: -1e9}),
        ("scores-anna.jsonl", '{"score": 4}', WHOLE, {0: 4.0}),
        ("scores-anna.csv", "item,prompt,text,score\n2,a,b,\n0,a,b,2\n", WHOLE, {0: 2.0}),
        ("scores-anna.csv", "score\n", WHOLE, {}),
    ],
)
def test_scores_are_read(name: str, text: str, rules: RatingRules, scores: dict[int, float], tmp_path: Path) -> None:
    found = sheet(tmp_path, name, text, rules)
    assert (found.rater, found.scores, found.problem) == ("anna", scores, "")
    assert found.complete(rules) == (len(scores) == (3 if rules.by == "item" else 1))


@pytest.mark.parametrize(
    ("name", "text", "rules", "said"),
    [
        ("scores-anna.csv", "", ITEMS, "its first line names no column score; it should name item and score"),
        ("scores-anna.csv", "score\n3\n", ITEMS, "its first line names no column item"),
        ("scores-anna.csv", "item,score\n1,good\n", ITEMS, "line 2: score is 'good', a number from 1 to 5"),
        ("scores-anna.csv", "item,score\n0,1\n1,6\n", ITEMS, "line 3: score is 6, a number from 1 to 5"),
        ("scores-anna.csv", "item,score\n1,nan\n", FREE, "line 2: score is nan, a finite number"),
        ("scores-anna.csv", "item,score\n3,1\n", ITEMS, "line 2: item is '3', a number from 0 to 2"),
        ("scores-anna.csv", "item,score\n1.5,1\n", ITEMS, "line 2: item is '1.5'"),
        ("scores-anna.csv", "item,score\n,1\n", ITEMS, "line 2: item is missing"),
        ("scores-anna.csv", "item,score\n1,1\n1,2\n", ITEMS, "line 3: item 1 has two scores, 1 and 2"),
        ("scores-anna.csv", 'item,score\n1,"1\n', ITEMS, "unexpected end of data"),
        ("scores-anna.csv", b"item,score\n1,\xff\n", ITEMS, "it is no text in UTF-8"),
        ("scores-anna.csv", "score\n3\n4\n", WHOLE, "line 3: there is a second score"),
        ("scores-anna.jsonl", '{"item": 1, "score": 4}\n{"item": 2, "sc', ITEMS, "line 2 is no JSON"),
        ("scores-anna.jsonl", "[1]", ITEMS, "line 1 is no mapping with a score"),
        ("scores-anna.jsonl", '{"item": 1, "score": true}', ITEMS, "line 1: score is True"),
        ("scores-anna.jsonl", '{"item": true, "score": 1}', ITEMS, "line 1: item is True"),
        ("scores-anna.jsonl", '{"item": 1, "score": 1' + "0" * 400 + "}", FREE, "a finite number"),
        ("scores-anna.xlsx", "", ITEMS, "a file of scores is called scores-NAME.csv or scores-NAME.jsonl"),
        ("scores anna.csv", "item,score\n", ITEMS, "a file of scores is called"),
    ],
)
def test_what_is_wrong_is_said(name: str, text: str | bytes, rules: RatingRules, said: str, tmp_path: Path) -> None:
    found = sheet(tmp_path, name, text, rules)
    assert said in found.problem
    assert "\n" not in found.problem
    assert not found.complete(rules)


def test_names_and_files(tmp_path: Path) -> None:
    whole = "item,score\n0,1\n1,1\n2,1\n"
    for name in (
        "scores.csv",
        "scores-ben.csv",
        "scores-ben.csv~",
        ".scores-carl.csv",
        "scores-dora.csv.tmp",
        "form.csv",
    ):
        (tmp_path / name).write_text(whole)
    assert [s.rater for s in read_sheets(tmp_path, ITEMS)] == ["ben", "rater"]
    named = RatingRules(counts={"a": 3}, raters=2, names=("ben", "anna"))
    found = {s.rater: s.problem for s in read_sheets(tmp_path, named)}
    assert found == {"ben": "", "rater": "rater is none of the raters ben, anna"}
    (tmp_path / "scores-ben.jsonl").write_text('{"item": 0, "score": 1}')
    ben, _ = read_sheets(tmp_path, ITEMS)
    assert ben.problem == "scores-ben.csv and scores-ben.jsonl are both of ben: one file for each rater"
    (tmp_path / "scores-ben.jsonl").unlink()
    (tmp_path / "scores-ben.csv").unlink()
    (tmp_path / "scores-ben.csv").symlink_to(tmp_path / "scores.csv")
    assert read_sheets(tmp_path, ITEMS)[0].problem == "it cannot be read: it is a symbolic link"
    assert read_sheets(tmp_path / "nothing", ITEMS) == []


def test_a_form_that_nobody_filled_in_counts_for_nothing(tmp_path: Path) -> None:
    (tmp_path / "scores-anna.csv").write_text("item,score\n0,\n1,\n2,\n")  # as the search writes it for her
    (tmp_path / "scores-anna.jsonl").write_text("".join(f'{{"item": {n}, "score": 3}}\n' for n in range(3)))
    (anna,) = read_sheets(tmp_path, ITEMS)
    assert (anna.file, anna.problem, anna.complete(ITEMS)) == ("scores-anna.jsonl", "", True)
    before = anna.stamp
    (tmp_path / "scores-anna.csv").write_text("item,score\n0,1\n")
    (anna,) = read_sheets(tmp_path, ITEMS)
    assert "one file for each rater" in anna.problem
    assert anna.stamp != before
    (tmp_path / "scores-anna.csv").write_text("item,score\n0,\n")
    (tmp_path / "scores-anna.jsonl").write_text('{"item": 0, "sco')  # half written
    assert "no JSON" in read_sheets(tmp_path, ITEMS)[0].problem
    (tmp_path / "scores-anna.jsonl").write_text("")
    assert read_sheets(tmp_path, ITEMS)[0].file == "scores-anna.csv"


def test_a_stamp_changes_with_the_file(tmp_path: Path) -> None:
    before = sheet(tmp_path, "scores.csv", "item,score\n0,1\n").stamp
    assert read_sheets(tmp_path, ITEMS)[0].stamp == before
    assert sheet(tmp_path, "scores.csv", "item,score\n0,1\n1,1\n").stamp != before
