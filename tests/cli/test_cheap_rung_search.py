"""Searches with a cheap rung: gone on with exactly, shown, and refused with another rung."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from evomerge.cli.main import main
from evomerge.run.folder import RunFolder
from evomerge.run.ledger import canonical_events, read_ledger


def words_of(pool: Path, task: str = "demo_e_maths") -> list[str]:
    """A search of some seconds: the better half of a generation goes on to all of 12 items."""
    few = ["experiment=demo", f"pool.root='{pool}'", "fitness.limit=4", "search.evaluations=12", "strategy.popsize=4"]
    texts = f"cheap.texts={{maths: {{task: {task}, limit: 4, expert: math}}}}"
    return [*few, "fitness@cheap=unlabelled", f"cheap.include_path='{pool}/tasks'", texts, "display=quiet"]


@pytest.fixture(scope="module")
def run(quick_pool: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rung") / "run"
    assert main(["search", *words_of(quick_pool), "held_out.limit=4", f"run_dir='{folder}'"]) == 0
    return folder


def test_half_of_a_generation_is_scored(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    events = list(read_ledger(run))
    assert events[0]["cheap"].startswith("sha256:")
    told = [e for e in events if e["event"] == "told" and "cheap" in e.get("race", {})]
    for first in (0, 4, 8):
        generation = told[first : first + 4]
        by_rung = sorted(generation, key=lambda e: -e["race"]["cheap"])
        assert {e["candidate"] for e in by_rung[:2]} == {e["candidate"] for e in generation if e["status"] == "ok"}
        assert [e["race"]["items"] for e in by_rung] == [12, 12, 0, 0]
        assert all(e["items"] is None and e["seconds"]["cheap"] > 0 for e in by_rung[2:])
    assert events[-1]["counts"] == {"ok": 6, "pruned": 6}
    assert main(["status", str(run)]) == 0
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "The cheap rung let 6 of 12 candidates go on." in shown
    assert "Those that went on were scored on all items, no race: of 12 items" in shown
    assert "Scored 72 items of 144 (50 %) in the search." in shown
    assert main(["report", str(run)]) == 0
    page = (run / "report.html").read_text()
    assert "The cheap rung let 6 of 12 candidates go on." in page
    assert "on the cheap rung" in page


def test_it_goes_on_as_it_was(run: Path, tmp_path: Path) -> None:
    """Killed while its second generation was told."""
    folder = tmp_path / "killed"
    shutil.copytree(run, folder)
    ledger = RunFolder(folder).ledger
    lines = ledger.read_bytes().splitlines(keepends=True)
    places = [place for place, line in enumerate(lines) if b'"cheap":-' in line]
    ledger.write_bytes(b"".join(lines[: places[5]]))
    shutil.rmtree(folder / "checkpoint", ignore_errors=True)
    assert main(["resume", str(folder), "--quiet"]) == 0
    assert canonical_events(RunFolder(folder)) == canonical_events(RunFolder(run))


def test_another_rung_is_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "other"
    shutil.copytree(run, folder)
    config = RunFolder(folder).config
    before, (head, _, tail) = config.read_text(), config.read_text().partition("\ncheap:")
    config.write_text(f"{head}\ncheap:{tail.replace('limit: 4', 'limit: 3', 1)}")
    assert config.read_text() != before
    assert main(["resume", str(folder), "search.evaluations=16"]) == 2
    assert "the cheap rung has fingerprint sha256:" in capsys.readouterr().err


def test_held_out_items_on_the_rung_are_seen(quick_pool: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*words_of(quick_pool, "demo_e_maths_held_out"), "held_out.limit=4"]
    assert main(["validate", *words]) == 0
    found = capsys.readouterr()
    assert "33% of the held-out items are items of the search too" in " ".join(found.err.split())
    shown = " ".join(found.out.replace("│", " ").split())
    assert "cheap rung 50 % of a generation go on by score of cheap, 4 texts read by every candidate" in shown
