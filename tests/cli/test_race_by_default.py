"""A search that says nothing of a race: one where there are items enough, which goes on and is forked as it was."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from evomerge.cli.main import main
from evomerge.run.folder import RunFolder
from evomerge.run.ledger import canonical_events, read_ledger
from evomerge.session import race_choice

ITEMS = 72  # of three tasks


@pytest.fixture(scope="module")
def words(quick_pool: Path) -> Iterator[list[str]]:
    """Of a search that is raced where six items at first are enough."""
    few = ["search.evaluations=36", "strategy.popsize=12", "held_out.limit=4"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(race_choice, "FIRST", 6)
        yield ["experiment=demo", f"pool.root='{quick_pool}'", *few]


@pytest.fixture(scope="module")
def raced(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raced") / "run"
    assert main(["search", *words, f"run_dir='{folder}'", "display=quiet"]) == 0
    return folder


def test_what_was_left_open_is_kept(raced: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = yaml.safe_load(RunFolder(raced).config.read_text())
    assert (config["search"]["racing"]["first"], config["search"]["racing"]["most"]) == (6, 23)
    assert config["strategy"]["prior"] == "differences"
    events = list(read_ledger(raced))
    assert events[0]["race"] == {"items": ITEMS, "first": 6, "most": 23}
    keys = ["search.racing.first", "search.racing.most", "search.refine.after", "strategy.prior"]
    assert events[0]["left_open"] == keys
    assert config["search"]["refine"] == {"after": None, "batch": 4}  # of 36 candidates too few would be known
    told = [event for event in events if event["event"] == "told" and event.get("race")]
    items = sorted(event["race"]["items"] for event in told)
    assert items[:27] == 18 * [6] + 9 * [12]
    assert set(items[27:]) <= {21, 22, 23, 24}  # 23, each of the three tasks rounded
    assert events[-1]["counts"] == {"ok": 9, "pruned": 27}
    assert main(["status", str(raced)]) == 0
    assert "items of" in capsys.readouterr().out


def test_it_goes_on_as_it_was(raced: Path, tmp_path: Path) -> None:
    """Killed in the middle of its second generation: what is told again is the same, and so is the end."""
    folder = tmp_path / "killed"
    shutil.copytree(raced, folder)
    ledger = RunFolder(folder).ledger
    lines = ledger.read_bytes().splitlines(keepends=True)
    ledger.write_bytes(b"".join(lines[: len(lines) // 2]))
    assert main(["resume", str(folder), "--quiet"]) == 0
    assert canonical_events(RunFolder(folder)) == canonical_events(RunFolder(raced))


def test_a_gaussian_process_at_the_end(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its candidates are scored on as many items as the best at once; killed among them, it goes on to the same end."""
    folder = tmp_path / "refined"
    asked = ["search.refine.after=24"]
    assert main(["validate", *words, *asked]) == 0
    assert "after 24 a Gaussian process proposes" in " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert main(["validate", *words, "search.refine.after=36"]) == 0
    assert "search.refine.after is 36, and there are 36 evaluations: no Gaussian process" in " ".join(
        capsys.readouterr().err.split()
    )
    assert main(["search", *words, *asked, f"run_dir='{folder}'", "display=quiet"]) == 0
    assert "no Gaussian process" not in capsys.readouterr().err
    events = list(read_ledger(folder))
    assert events[0]["race"] == {"items": ITEMS, "first": 6, "most": 23, "refined": 24}
    told = [event for event in events if event["event"] == "told" and event.get("race")]
    assert [event["status"] for event in told[24:]] == 12 * ["ok"]
    assert all(21 <= event["race"]["items"] <= 24 for event in told[24:])
    assert all(event["race"].keys() == {"items", "of", "step/0", "error/score"} for event in told[24:])
    killed = tmp_path / "killed"
    shutil.copytree(folder, killed)
    lines = RunFolder(folder).ledger.read_bytes().splitlines(keepends=True)
    place = next(n for n, e in enumerate(events) if e["event"] == "told" and e["candidate"] == told[30]["candidate"])
    RunFolder(killed).ledger.write_bytes(b"".join(lines[: place + 1]))
    assert main(["resume", str(killed), "--quiet"]) == 0
    assert canonical_events(RunFolder(killed)) == canonical_events(RunFolder(folder))


def test_a_fork_that_allows_no_race_has_none(raced: Path, tmp_path: Path) -> None:
    folder = tmp_path / "fork"
    changed = ["strategy=m2n2", "search_space=linear", "search.evaluations=3", "display=quiet"]
    assert main(["search", f"from_run={raced}", f"run_dir={folder}", *changed]) == 0
    started = next(iter(read_ledger(folder)))
    assert started["race"]["because"] == "strategy"
    config = yaml.safe_load(RunFolder(folder).config.read_text())
    assert config["search"]["racing"]["first"] is None


def test_what_there_is_too_little_of(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", *words, "search.evaluations=26", f"run_dir={tmp_path / 'none'}"]) == 0
    assert "no race: 26 evaluations" in " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert main(["validate", *words, "search_space=linear", f"run_dir={tmp_path / 'none'}"]) == 0
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "every candidate on 6 of 72 items" in shown
    assert "differences" not in shown


def test_a_run_folder_of_before_has_no_race(raced: Path, tmp_path: Path) -> None:
    """Whose configuration knows neither the keys nor ``auto``."""
    folder = tmp_path / "old"
    shutil.copytree(raced, folder)
    config = yaml.safe_load(RunFolder(folder).config.read_text())
    del config["search"]["racing"], config["search"]["refine"], config["strategy"]["prior"]
    RunFolder(folder).config.write_text(yaml.safe_dump(config))
    from evomerge.session.resume import read_config

    search = read_config(RunFolder(folder)).search
    assert (search.racing.first, search.racing.most, search.refine.after) == (None, 1.0, None)


def test_finalists_on_items_of_their_own(quick_pool: Path, tmp_path: Path) -> None:
    """Those that the search had all items of, too; and so again where the run was killed in the middle of them."""
    task = "{task: demo_e_maths_held_out, metrics: {acc: 1.0, perplexity: {weight: 0.05, transform: log}}}"
    run = tmp_path / "run"
    few = ["search.evaluations=4", "strategy.popsize=4", "search.finalists=2", "fitness.limit=2", "held_out.limit=2"]
    own = ["fitness@validation=lm_eval", f"validation.tasks=[{task}]", "validation.limit=4"]
    place = [f"pool.root='{quick_pool}'", f"validation.include_path='{quick_pool}/tasks'", f"run_dir='{run}'"]
    assert main(["search", "experiment=demo", *place, *few, *own, "display=quiet"]) == 0
    events = list(read_ledger(run))
    (chosen,) = [event for event in events if event["event"] == "finalists"]
    assert chosen["on"] == "validation"
    told = {e["candidate"]: e for e in events if e["event"] == "told" and e["split"] == "validation"}
    assert set(chosen["candidates"]) == set(told)  # none is known from the search
    scores = {candidate: event["objectives"]["score"] for candidate, event in told.items()}
    assert chosen["winner"] == max(scores, key=lambda candidate: scores[candidate])
    assert all(set(event["metrics"]) >= {"demo_e_maths_held_out/acc"} for event in told.values())

    killed = tmp_path / "killed"
    shutil.copytree(run, killed)
    lines = RunFolder(run).ledger.read_bytes().splitlines(keepends=True)
    first = next(n for n, e in enumerate(events) if e["event"] == "told" and e["split"] == "validation")
    RunFolder(killed).ledger.write_bytes(b"".join(lines[: first + 1]))
    assert main(["resume", str(killed), "--quiet"]) == 0
    assert canonical_events(RunFolder(killed)) == canonical_events(RunFolder(run))
