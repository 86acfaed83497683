"""A search that scores with quantised weights: what is said, what is scored in full precision, and that it goes on."""

from __future__ import annotations

from pathlib import Path

import pytest

from evomerge.cli.main import main
from evomerge.run.ledger import read_ledger

FEW = ["search.evaluations=4", "strategy.popsize=4", "fitness.limit=4", "held_out.limit=4"]


def said(capsys: pytest.CaptureFixture[str]) -> str:
    printed = capsys.readouterr()
    return " ".join((printed.out + printed.err).replace("│", " ").split())


def scores(run: Path, split: str) -> dict[str, dict[str, float]]:
    """Objectives by the hash of the recipe."""
    events = list(read_ledger(run))
    names = {e["candidate"]: e["recipe_hash"] for e in events if e["event"] == "asked" and e["recipe_hash"]}
    told = [e for e in events if e["event"] == "told" and e["split"] == split]
    return {names[e["candidate"]]: e["objectives"] for e in told}


def test_the_search_is_quantised_and_what_it_reports_is_not(
    quick_pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, run = tmp_path / "plain", tmp_path / "run"
    search = ["experiment=demo", f"pool.root='{quick_pool}'", *FEW, "search.finalists=4"]
    quantised = [*search, "evaluator.quantise=int8", f"run_dir='{run}'"]
    assert main(["validate", *quantised]) == 0
    found = said(capsys)
    assert "weights in int8, and slices being merged" in found
    assert "in full precision, for finalists and held-out items" in found
    assert main(["search", *search, f"run_dir='{plain}'"]) == 0
    assert main(["search", *quantised]) == 0
    line = (
        "The search scored with weights quantised to int8; finalists and held-out items are scored in full precision."
    )
    assert line in said(capsys)
    assert main(["status", str(run)]) == 0
    assert line in said(capsys)
    assert main(["report", str(run)]) == 0
    assert line in (run / "report.html").read_text()

    # The first generation is drawn before anything is told: both searches scored the same candidates.
    own, full = scores(run, "search"), scores(plain, "search")
    assert own.keys() == full.keys()
    differences = [abs(own[key]["score"] - full[key]["score"]) for key in own]
    assert 0 < max(differences) < 0.02
    validated = scores(run, "validation")
    assert len(validated) == 4
    assert all(validated[key] == full[key] for key in validated)
    held_out = scores(run, "held_out")
    assert all(held_out[key] == value for key, value in scores(plain, "held_out").items() if key in held_out)

    capsys.readouterr()
    before = list(read_ledger(run))
    assert main(["resume", str(run), "search.evaluations=6", "evaluator.quantise=null"]) == 2
    assert "evaluator.quantise is null and was int8 when the run began" in said(capsys)
    assert main(["resume", str(run), "search.evaluations=6", "evaluator=local"]) == 0
    after = list(read_ledger(run))
    assert after[: len(before)] == before
    assert len(scores(run, "search")) == len(own) + 2
    assert before[0]["quantise"] == "int8"
    assert before[0]["fitness"].endswith(" int8")
