"""Searches that people score, a script in their place: whole, cut short, gone on with, in a terminal, by two raters."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from evomerge.cli.main import main
from evomerge.report.status import read_status
from evomerge.run.folder import RunFolder
from evomerge.run.ledger import canonical_events
from evomerge.run.ratings.folder import form
from evomerge.run.ratings.rules import RatingRules, Text
from evomerge.run.ratings.waiting import left_for, read_waiting
from evomerge.session.watched import resume

Opinion = Callable[[str], float]


def words_of(pool: Path, run: Path, *more: str) -> list[str]:
    prompts = [f"fitness.prompts.{name}.limit=1" for name in ("e_maths", "j_language", "j_maths")]
    few = ["search.evaluations=4", "strategy.popsize=3", "fitness.tokens=5", "fitness.look_every=0.05", *prompts]
    return ["search", "experiment=human", f"pool.root='{pool}'", f"run_dir='{run}'", "display=quiet", *few, *more]


def opinion(text: str) -> float:
    """Depends on the text alone, from 1 to 5."""
    return 1 + sum(map(ord, text)) % 5


def rate(run: Path, rater: str, think: Opinion = opinion) -> None:
    """Score all that waits for a rater."""
    from evomerge.run.ratings.folder import RatingFolder

    for candidate, rules, _ in left_for(RatingFolder(RunFolder(run).rating), rater):
        texts = candidate.texts()
        scores = {text.item: think(text.text) for text in texts}
        (candidate.path / f"scores-{rater}.csv").write_text(form(texts, scores, rules))


@contextmanager
def people(run: Path, *raters: str, think: Opinion = opinion) -> Iterator[None]:
    """Raters who look again and again."""
    over = threading.Event()

    def work() -> None:
        while not over.wait(0.02):
            for rater in raters:
                rate(run, rater, think)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    yield
    over.set()
    thread.join()


def told(run: Path) -> dict[tuple[int, str], dict[str, float]]:
    rows = [json.loads(line) for line in (run / "ledger.jsonl").read_text().splitlines()]
    return {(row["candidate"], row["split"]): row["objectives"] for row in rows if row["event"] == "told"}


@pytest.fixture(scope="module")
def whole(quick_pool: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search that two raters score, its winner's held-out texts too."""
    run = tmp_path_factory.mktemp("human") / "whole"
    held_out = ["fitness@held_out=files", "+held_out.prompts={maths: {task: demo_e_maths_held_out, limit: 2}}"]
    held_out += [f"held_out.include_path='{quick_pool}/tasks'", "held_out.tokens=5", "held_out.look_every=0.05"]
    with people(run, "anna", "ben"):
        assert main(words_of(quick_pool, run, "fitness.raters=[anna,ben]", *held_out)) == 0
    return run


def test_scores_are_what_people_gave(whole: Path) -> None:
    scores = told(whole)
    assert [key for key in scores if key[1] == "search"] == [(number, "search") for number in range(8)]
    assert len([key for key in scores if key[1] == "held_out"]) == 5  # two sources, base, average, the best
    written = {
        float(sum(opinion(text["text"]) for text in map(json.loads, path.read_text().splitlines())) / 3)
        for path in whole.glob("rating/[0-9a-f]*/outputs.jsonl")
    }
    assert {round(own["rating"], 9) for (_, split), own in scores.items() if split == "search"} == {
        round(value, 9) for value in written
    }
    status = read_status(whole)
    assert status.ratings is not None
    assert status.ratings.waiting == 0
    assert status.ratings.rated == len(list(whole.glob("rating/*/accepted.json")))
    assert status.best == max(own["rating"] for (_, split), own in scores.items() if split == "search")


def test_blind(whole: Path) -> None:
    hashes = [json.loads(line).get("recipe_hash") for line in (whole / "ledger.jsonl").read_text().splitlines()]
    shown = "".join(path.read_text() for path in whole.glob("rating/*/*") if path.is_file())
    shown += " ".join(path.name for path in whole.glob("rating/*"))
    for word in ("uniform", "math,", "task_arithmetic", *filter(None, hashes)):
        assert word not in shown


def test_the_report_and_the_table_say_who_rated(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(whole)]) == 0
    assert "People rated" in (whole / "report.html").read_text()
    assert "rank correlation of two raters 1.000 of scores" in (whole / "report.html").read_text()
    capsys.readouterr()
    assert main(["status", str(whole), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ratings"]["waiting"] == 0


@pytest.mark.parametrize("lost", ["nothing", "acceptance"])
def test_cut_short_it_ends_the_same_and_writes_nothing_again(
    lost: str, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut = tmp_path / "cut"
    shutil.copytree(whole, cut)
    lines = (cut / "ledger.jsonl").read_bytes().splitlines(keepends=True)
    places = [place for place, line in enumerate(lines) if json.loads(line)["event"] == "told"]
    (cut / "ledger.jsonl").write_bytes(b"".join(lines[: places[5]]) + lines[places[5]][:40])
    if lost == "acceptance":  # raters' files are there, and nobody has counted them
        for file in cut.glob("rating/*/accepted.json"):
            file.unlink()
    shutil.rmtree(cut / "best")
    (cut / "best").mkdir()

    def again(*arguments: Any) -> None:
        raise AssertionError("a candidate wrote again")

    monkeypatch.setattr("fitness._files.answers.answers", again)
    assert main(["resume", str(cut)]) == 0
    assert canonical_events(RunFolder(cut)) == canonical_events(RunFolder(whole))
    assert (cut / "best" / "recipe.yaml").read_bytes() == (whole / "best" / "recipe.yaml").read_bytes()


def test_raters_may_change_on_the_way(whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    with people(run, "carl"):
        assert resume(run, ["search.evaluations=6", "fitness.raters=[carl]", "held_out.raters=[carl]"]) is not None
    assert len([key for key in told(run) if key[1] == "search"]) == 10


def test_in_a_terminal(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    first, *others = sorted(run.glob("rating/[0-9a-f]*/"))
    for file in [*first.glob("scores-*"), first / "accepted.json"]:
        file.unlink()
    assert main(["rate", str(run)]) == 2
    assert "--rater is not given; one of: anna, ben" in capsys.readouterr().err
    assert main(["rate", str(run), "--rater", "ann"]) == 2
    assert "did you mean 'anna'" in capsys.readouterr().err

    typed = iter(["9", "good", "2,5", "", "q"])
    monkeypatch.setattr("builtins.input", lambda ask: next(typed))
    assert main(["rate", str(run), "--rater", "anna"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("3 scores to give for 1 candidate; higher is better")
    assert out.count("a score is a number from 1 to 5") == 2
    waiting = read_waiting(run / "rating")
    assert waiting is not None
    assert waiting.given == {"anna": 1, "ben": 0}

    typed = iter(["4", "b", "3", "5"])  # the second is thought over
    assert main(["rate", str(run), "--rater", "anna"]) == 0
    assert capsys.readouterr().out.endswith("all are scored; thank you\n")
    found = (first / "scores-anna.csv").read_text()
    rules = RatingRules(counts={"a": 3})
    from evomerge.run.ratings.sheets import read_sheets

    (sheet,) = read_sheets(first, rules)
    assert sorted(sheet.scores.values()) == [2.5, 3.0, 5.0]
    assert main(["rate", str(run), "--rater", "anna"]) == 0
    assert capsys.readouterr().out == "nothing waits for a score\n"

    (first / "scores-ben.csv").write_text("item,score\n0,many\n")
    assert main(["rate", str(run), "--rater", "ben"]) == 0
    assert f"left out: {first.name}/scores-ben.csv: line 2: score is 'many'" in capsys.readouterr().err
    assert (first / "scores-anna.csv").read_text() == found
    assert (first / "scores-ben.csv").read_text() == "item,score\n0,many\n"
    assert others


def test_images_are_rated_on_the_page_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from evomerge.run.folder import RunFolder
    from evomerge.run.ratings.folder import RatingFolder

    (tmp_path / "ledger.jsonl").write_text("")
    ratings, rules = RatingFolder(RunFolder(tmp_path).rating), RatingRules(counts={"t": 1})
    ratings.begin({"search": rules})
    ratings.candidate("a").write([Text(0, "t", "a cat", "data:image/png;base64,AAAA")], rules)
    assert main(["rate", str(tmp_path), "--rater", "anna"]) == 2
    said = capsys.readouterr().err
    assert "are images" in said
    assert said.strip().endswith("--rater anna --page")
    assert not list(ratings.path.glob("*/scores*"))


def test_a_terminal_shows_what_models_write_without_obeying_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    from evomerge.cli import rate as verb
    from evomerge.run.ratings.folder import RatedCandidate

    candidate = RatedCandidate(tmp_path / "a")
    candidate.path.mkdir()
    rules = RatingRules(by="candidate", counts={"t": 2})
    texts = [Text(0, "t", "p\x1b[2J", "one\n\x1b]0;x\x07two"), Text(1, "t", "q", "[red]three")]
    monkeypatch.setattr("builtins.input", lambda ask: "4")
    assert verb._rate(candidate, rules, texts, {}, "scores-a.csv")
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "[red]three" in out
    assert candidate.sheets(rules)[0].scores == {0: 4.0}


def test_interrupted_while_it_waits(quick_pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import _thread

    run = tmp_path / "run"

    def interrupt() -> None:
        while len(list(run.glob("rating/*/outputs.jsonl"))) < 4:
            if over.wait(0.02):
                return
        over.wait(0.3)
        _thread.interrupt_main()

    over = threading.Event()
    thread = threading.Thread(target=interrupt, daemon=True)
    thread.start()
    assert main(words_of(quick_pool, run)) == 130
    over.set()
    thread.join()
    assert "evomerge resume" in capsys.readouterr().err
    status = read_status(run)
    assert status.state == "interrupted"
    assert status.ratings is not None
    assert (status.ratings.waiting, status.ratings.missing) == (4, 4)
    assert main(["status", str(run)]) == 0
    assert f"To rate: evomerge rate {run} --rater NAME" in capsys.readouterr().out
    rate(run, "anna")  # while nothing runs
    with people(run, "anna"):
        assert main(["resume", str(run)]) == 0
    assert len(told(run)) == 8


def test_validate_says_how_much_there_is_to_read(
    quick_pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = words_of(quick_pool, tmp_path / "run", "fitness.raters=[anna,ben]")[1:]
    assert main(["validate", *words]) == 0
    out = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "8 candidates of 3 texts to read: 24 scores by each of anna, ben" in out
    assert main(["validate", *words, "fitness.tokens=30"]) == 2
    assert "fitness.tokens is 30; together the model's 32 positions at most" in capsys.readouterr().err


def test_what_else_is_done_with_such_a_run(
    whole: Path, quick_search: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(whole)]) == 2
    assert "fitness is scored by people, whom a search waits for" in capsys.readouterr().err
    assert main(["rate", str(tmp_path)]) == 2
    assert "no ledger" in capsys.readouterr().err
    plain = tmp_path / "plain"
    shutil.copytree(whole, plain, ignore=shutil.ignore_patterns("rating"))
    assert main(["rate", str(plain)]) == 2
    assert "nobody is asked to rate" in capsys.readouterr().err
    assert main(["export", str(whole), "--output", str(whole / "rating" / "x.yaml")]) == 2
    assert "keeps its own rating" in capsys.readouterr().err
