"""What status, tables and reports say of a race and its finalists."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from evomerge.candidate import Candidate, Evaluation
from evomerge.genomes.genome import Gene, GenomeSpec
from evomerge.recipes.pool_info import PoolInfo
from evomerge.recipes.slices import ModelRef, SliceId
from evomerge.report.finalists import engine_text, finalists, race_lines
from evomerge.report.history import read_history
from evomerge.report.html.data import RunView
from evomerge.report.html.report import report_html
from evomerge.report.status import read_status
from evomerge.report.status_view import StatusPanel
from evomerge.report.summary import summarize
from evomerge.run.folder import RunFolder
from evomerge.run.ledger import Ledger

POOL = PoolInfo(
    refs=tuple((name, ModelRef(name, fingerprint=f"sha256:{name}")) for name in ("base", "a")),
    sources=("a",),
    base="base",
    slices=(SliceId("embed"),),
    layers=1,
    dtype="float32",
)
SPEC = GenomeSpec((Gene("a"),))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Two baselines, four candidates in a race over 40 items, of which two are finalists, and the strategy's mean."""
    folder = RunFolder.create(tmp_path / "run")
    folder.write_pool(POOL)
    items = {"task/acc": np.repeat([1.0, 0.0], 20)}
    with Ledger(folder) as ledger:
        ledger.append("started", evaluations=4, objectives={"score": "maximize"}, fitness="sha256:x")
        for number, name in enumerate(("a", "base")):
            ledger.log_asked(Candidate(number, POOL.linear({name: 1.0}), name=name))
            ledger.log_told(Evaluation(number, "ok", "search", {"score": 0.5}, {"task/acc": 0.5}, items))
        ledger.append("phase", phase="search", number=1, phases=1, evaluations=4, genes=["a"])
        for number, (score, count) in enumerate([(0.9, 20), (0.2, 10), (0.7, 20), (0.1, 10)], start=2):
            genome = SPEC.genome([number / 10])
            candidate = Candidate(number, POOL.linear({"a": number / 10}), genome)
            ledger.log_asked(candidate)
            race = {"items": float(count), "of": 40.0, "step/0": score, "error/score": 0.05}
            status = "ok" if count == 20 else "pruned"
            error = "" if status == "ok" else "pruned after 10 of 40 items"
            scored = Evaluation(
                number,
                status,
                "search",
                {"score": score},
                {"task/acc": score},
                {},
                {"model": 1.0},
                error=error,
                race=race,
            )
            ledger.log_told(scored)
            if number == 2:
                ledger.append("improved", candidate=2, objective=0.9, recipe_hash=candidate.recipe.hash)
        for number, score in ((2, 0.6), (4, 0.65), (6, 0.7)):
            candidate = Candidate(number, POOL.linear({"a": number / 10}), SPEC.genome([number / 10]))
            ledger.log_asked(candidate, "validation")
            ledger.log_told(Evaluation(number, "ok", "validation", {"score": score}, {"task/acc": score}, items))
        ledger.append("finalists", candidates=[2, 4, 6], search=[0.9, 0.7, None], validation=[0.6, 0.65, 0.7], winner=6)
        ledger.append("stopped", reason="budget", evaluations=4, counts={"ok": 2, "pruned": 2})
    return folder.path


def test_a_race_in_words(run: Path) -> None:
    saved, won = race_lines(read_history(run))
    assert saved == "Scored 60 items of 160 (38 %) in the search."
    assert won == ("3 finalists scored on all items: candidate 6 won with 0.700; on average they changed by −0.175.")


def test_finalists_with_their_shrinkage(run: Path) -> None:
    history = read_history(run)
    found = finalists(history.finalists, {t.candidate: t.race for t in history.trials}, "score")
    assert [(f.candidate, f.error, f.winner) for f in found[:2]] == [(2, 0.05, False), (4, 0.05, False)]
    assert [round(f.shrinkage, 9) for f in found[:2]] == [0.3, 0.05]
    assert found[2].winner
    assert math.isnan(found[2].search)


def test_the_winner_is_the_finalist_that_won(run: Path) -> None:
    history = read_history(run)
    assert history.winner == 6
    winner = RunView.of(run).winner
    assert winner is not None
    assert (winner.candidate, winner.objectives, winner.genome) == (6, {"score": 0.7}, [0.6])
    assert history.counts == {"ok": 2, "pruned": 2}
    assert not history.failures
    summary = summarize(run)
    assert summary.evolved is not None
    assert summary.evolved.mean == 0.7
    assert any("3 finalists" in line for line in summary.race)


def test_status_and_report_show_them(run: Path) -> None:
    from rich.console import Console

    console = Console(width=80, record=True)
    console.print(StatusPanel(read_status(run)))
    assert "Scored 60 items of 160" in console.export_text()
    page = report_html([RunView.of(run)])
    assert "Finalists" in page
    assert '<td class="n">−0.300</td>' in page
    assert "Candidates without a score" not in page


@pytest.mark.parametrize("event", [{}, {"candidates": 3}, {"candidates": ["x", 2], "search": 1, "validation": None}])
def test_odd_events_are_passed_over(event: dict) -> None:
    found = finalists(event, {}, "score")
    assert all(math.isnan(each.search) and math.isnan(each.validation) for each in found)


def test_says_with_what_engine_scores_were_made() -> None:
    assert engine_text({}) == ""
    assert engine_text({"engine": "vllm"}) == "Scored with vLLM."
    assert engine_text({"engine": "server"}) == "Scored with a server that loads candidates as adapters."
