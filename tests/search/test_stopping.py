"""Rules that end a search early: they follow from the ledger, and a resumed search ends as it would have."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from test_search import POOL, Evaluator, Steady, TwoWeights, run_in

from evomerge.candidate import Evaluation
from evomerge.errors import ConfigError
from evomerge.objectives import Objective
from evomerge.run.checkpoint import Checkpoints
from evomerge.run.folder import RunFolder
from evomerge.run.ledger import Ledger, canonical_events, read_ledger
from evomerge.run.record import Record
from evomerge.search.incumbent import Incumbent
from evomerge.search.loop import Search
from evomerge.search.phases import Phase
from evomerge.search.stopping import Stopping, StopRules, check_rules
from evomerge.session.checkpointing import CheckpointSaver, begin
from evomerge.session.ending import has_ended
from evomerge.session.replay import ContinuedLedger, RecordedEvaluator
from evomerge.strategies.cma_es import CmaEs

SCORE = (Objective("score"),)


def rules(**given: Any) -> StopRules:
    return StopRules.of(SimpleNamespace(**{"hours": None, "patience": None, "target": None, **given}), SCORE)


def search(folder: Path, **options: Any) -> list[dict[str, Any]]:
    with Ledger(RunFolder.create(folder), sync="interval") as ledger:
        run_in(ledger, Evaluator(), **options)
    return canonical_events(folder)


def resume(folder: Path, **options: Any) -> list[dict[str, Any]]:
    record = Record(RunFolder(folder))
    with ContinuedLedger(RunFolder(folder), record, resumed={}, sync="interval") as ledger:
        run_in(ledger, RecordedEvaluator(Evaluator(), record), **options)
    return canonical_events(folder)


def cut(folder: Path, lines: int, to: Path) -> Path:
    shutil.copytree(folder, to)
    kept = (folder / "ledger.jsonl").read_bytes().splitlines(keepends=True)[:lines]
    (to / "ledger.jsonl").write_bytes(b"".join(kept))
    return to


def scores(events: Sequence[dict[str, Any]]) -> list[float]:
    """Of the candidates in the order told, -9 for failures; the four baselines left out."""
    told = [e for e in events if e["event"] == "told" and e["split"] == "search"][4:]
    return [e["objectives"].get("score", -9.0) for e in told]


STEADY = {"strategy": lambda: Steady(), "in_flight": 3, "evaluations": 200}
GENERATIONS = {"strategy": lambda: CmaEs(TwoWeights.spec, SCORE, seed=0, popsize=6), "evaluations": 400}


def made(options: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {**options, "strategy": options["strategy"](), **more}


def test_patience_counts_evaluations_since_the_last_improvement(tmp_path: Path) -> None:
    events = search(tmp_path / "run", **made(STEADY, rules=rules(patience=12)))
    found, since, best = scores(events), 0, -1.0
    ended = None
    for number, score in enumerate(found):
        since, best = (0, score) if score > best else (since + 1, best)
        if since == 12 and ended is None:
            ended = number
    assert ended is not None
    assert len(found) == ended + 1 + 2  # what was in flight is told as ever
    stopped = events[-1]
    assert (stopped["event"], stopped["rule"], stopped["limit"]) == ("stopped", "patience", 12)
    assert stopped["reason"].startswith("search.patience=12: as many evaluations without improvement")
    assert stopped["evaluations"] == len(found)
    assert [e["split"] for e in events if e["event"] == "told"][-5:] == ["held_out"] * 5


def test_patience_says_what_going_on_would_have_gained(tmp_path: Path) -> None:
    events = search(tmp_path / "run", **made(GENERATIONS, rules=rules(patience=30)))
    remaining = events[-1]["remaining"]
    assert remaining["evaluations"] == 30
    assert 0 <= remaining["low"] <= remaining["expected"] <= remaining["high"] < 0.1
    assert f"about {remaining['expected']:.2g}" in events[-1]["reason"]


def test_a_target_ends_the_search_once_it_is_reached(tmp_path: Path) -> None:
    events = search(tmp_path / "run", **made(STEADY, rules=rules(target=0.9)))
    found = scores(events)
    first = next(i for i, score in enumerate(found) if score >= 0.9)
    assert len(found) == first + 3
    assert (events[-1]["rule"], events[-1]["limit"]) == ("target", {"score": 0.9})
    assert events[-1]["reason"] == "search.target: score 0.9 was reached"


def test_several_objectives_must_all_be_reached_by_one_candidate() -> None:
    both = (Objective("up"), Objective("down", "minimize"))
    settings = SimpleNamespace(hours=None, patience=None, target={"up": 0.5, "down": 2})
    aim, progress = StopRules.of(settings, both), Stopping()
    for number, (up, down) in enumerate([(0.9, 3.0), (0.4, 1.0), (float("nan"), 1.0)]):
        aim.see(progress, Evaluation(number, "ok", objectives={"up": up, "down": down}), True)
    assert not progress.reached
    aim.see(progress, Evaluation(4, "ok", objectives={"up": 0.5, "down": 2.0}), False)
    assert progress.reached
    with pytest.raises(ConfigError, match="there are 2 objectives"):
        StopRules.of(SimpleNamespace(hours=None, patience=None, target=0.5), both)
    with pytest.raises(ConfigError, match=r"search\.target names 'upp'"):
        StopRules.of(SimpleNamespace(hours=None, patience=None, target={"upp": 0.5}), both)


@pytest.mark.parametrize("options", [STEADY, GENERATIONS], ids=["steady", "generations"])
@pytest.mark.parametrize("rule", [{"patience": 10}, {"target": 0.93}])
def test_wherever_it_was_killed_a_resumed_search_ends_the_same(
    options: dict[str, Any], rule: dict[str, Any], tmp_path: Path
) -> None:
    whole = search(tmp_path / "whole", **made(options, rules=rules(**rule)))
    lines = (tmp_path / "whole" / "ledger.jsonl").read_bytes().count(b"\n")
    assert "rule" in whole[-1]
    for number, kept in enumerate((lines // 3, lines - 13, lines - 12, lines - 11, lines - 2, lines)):
        folder = cut(tmp_path / "whole", kept, tmp_path / str(number))
        assert resume(folder, **made(options, rules=rules(**rule))) == whole


@pytest.mark.parametrize("options", [STEADY, GENERATIONS], ids=["steady", "generations"])
def test_more_patience_goes_on_as_if_it_had_been_given_at_once(options: dict[str, Any], tmp_path: Path) -> None:
    search(tmp_path / "run", **made(options, rules=rules(patience=8)))
    again = resume(tmp_path / "run", **made(options, rules=rules(patience=16)))
    once = search(tmp_path / "once", **made(options, rules=rules(patience=16)))
    assert scores(again) == scores(once)
    assert again[-1] == once[-1]


def test_less_patience_ends_where_the_ledger_does(tmp_path: Path) -> None:
    search(tmp_path / "run", **made(STEADY, rules=rules(patience=20)))
    lines = (tmp_path / "run" / "ledger.jsonl").read_bytes().count(b"\n")
    folder = cut(tmp_path / "run", lines - 20, tmp_path / "cut")
    asked = [e["candidate"] for e in read_ledger(folder) if e["event"] == "asked" and e["split"] == "search"]
    again = resume(folder, **made(STEADY, rules=rules(patience=2)))
    assert [e["candidate"] for e in again if e["event"] == "asked" and e["split"] == "search"] == asked
    assert (again[-1]["rule"], again[-1]["limit"]) == ("patience", 2)


def test_hours_end_a_search_and_more_hours_go_on_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import evomerge.run.ledger as module

    now = [0.0]

    class Datetime(module.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            now[0] += 60.0
            return cls.fromtimestamp(now[0], tz)

    monkeypatch.setattr(module, "datetime", Datetime)
    with Ledger(RunFolder.create(tmp_path / "run"), sync="interval") as first:
        first.append("started")
        run_in(first, Evaluator(), **made(STEADY, rules=rules(hours=1.0)))
    events = list(read_ledger(tmp_path / "run"))
    stopped = events[-1]
    assert (stopped["rule"], stopped["reason"]) == ("hours", "search.hours=1: the time is over")
    # A minute an event: the first is at nought, and the 61st is an hour later. Then three are in flight.
    last = max(i for i, e in enumerate(events) if e["event"] == "asked" and e["split"] == "search")
    assert last <= 60
    assert len(scores(events)) == sum(e["event"] == "asked" and e["split"] == "search" for e in events) - 4
    record = Record(RunFolder(tmp_path / "run"))
    took = record.clock.seconds
    assert 3600 <= took < 3600 + 60 * 8  # without the held-out items
    assert has_ended(record, {"hours": 1.0}, 200, 0)
    assert not has_ended(record, {"hours": 2.0}, 200, 0)
    assert not has_ended(record, {}, 200, 0)
    with ContinuedLedger(RunFolder(tmp_path / "run"), record, resumed={}, sync="interval") as ledger:
        ledger.resumed["since"] = Datetime.fromtimestamp(now[0] + 5, module.UTC).isoformat()
        run_in(ledger, RecordedEvaluator(Evaluator(), record), **made(STEADY, rules=rules(hours=2.0)))
        assert 7200 <= ledger.clock.seconds < 7200 + 60 * 8
    again = canonical_events(tmp_path / "run")
    assert again[-1]["limit"] == 2.0
    once = search(tmp_path / "once", **made(STEADY, evaluations=len(scores(again))))
    assert scores(again) == scores(once)  # it did the same as a search that nobody stopped
    assert Record(RunFolder(tmp_path / "run")).clock.seconds == pytest.approx(ledger.clock.seconds)


def two_phases(folder: Path, patience: int | None, resumed: bool = False) -> list[dict[str, Any]]:
    parts = [Phase.of(TwoWeights(), Steady(seed), 60, f"p{seed}") for seed in (0, 1)]
    options = {"phases": parts, "in_flight": 2, "rules": rules(patience=patience)}
    if resumed:
        return resume(folder, **options)
    return search(folder, **options)


def test_patience_hands_over_to_the_next_phase(tmp_path: Path) -> None:
    whole = two_phases(tmp_path / "run", 6)
    begun = [i for i, e in enumerate(whole) if e["event"] == "phase"]
    assert len(begun) == 2
    first = [e for e in whole[: begun[1]] if e["event"] == "told"][4:]
    assert len(first) < 60
    assert whole[-1]["rule"] == "patience"
    lines = (tmp_path / "run" / "ledger.jsonl").read_bytes().count(b"\n")
    for number, kept in enumerate((begun[1] - 2, begun[1], begun[1] + 1, lines - 14)):
        folder = cut(tmp_path / "run", kept, tmp_path / str(number))
        assert two_phases(folder, 6, resumed=True) == whole
    # What the first phase ended by stays: its winner was handed on.
    folder = cut(tmp_path / "run", lines, tmp_path / "more")
    more = two_phases(folder, 12, resumed=True)
    assert more[: lines - 12] == whole[: lines - 12]
    assert len(scores(more)) > len(scores(whole))


def test_a_target_begins_no_other_phase(tmp_path: Path) -> None:
    parts = [Phase.of(TwoWeights(), Steady(seed), 60, f"p{seed}") for seed in (0, 1)]
    events = search(tmp_path / "run", phases=parts, in_flight=1, rules=rules(target=0.5))
    assert [e["phase"] for e in events if e["event"] == "phase"] == ["p0"]
    assert events[-1]["rule"] == "target"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((0.0, None, None), "search.hours is 0.0"),
        ((float("nan"), None, None), "search.hours is nan"),
        ((None, 0, None), "search.patience is 0"),
        ((None, None, "high"), "search.target is 'high'; a number, or a mapping"),
        ((None, None, True), "search.target is True"),
        ((None, None, {"score": None}), "search.target is"),
        ((None, None, float("inf")), "search.target is inf"),
    ],
)
def test_rules_that_cannot_be_are_named(given: tuple[Any, Any, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_rules(*given)


def test_without_rules_nothing_is_said(tmp_path: Path) -> None:
    events = search(tmp_path / "run", **made(STEADY, evaluations=20))
    assert set(events[-1]) == {"event", "reason", "evaluations", "counts"}
    assert isinstance(Search(POOL, [], Evaluator(), Incumbent(SCORE), None, print).rules, StopRules)  # type: ignore[arg-type]


def test_a_checkpoint_knows_how_near_the_end_is(tmp_path: Path) -> None:
    folder, options = RunFolder.create(tmp_path / "run"), made(GENERATIONS, rules=rules(patience=14))
    with (
        Ledger(folder, sync="interval") as ledger,
        Checkpoints(folder, every=None, evaluations=5, keep=100) as checkpoints,
    ):
        run_in(ledger, Evaluator(), **options, save=CheckpointSaver(checkpoints, ledger))
    whole = canonical_events(folder)
    assert whole[-1]["rule"] == "patience"
    taken = sorted(int(entry.name) for entry in (tmp_path / "run" / "checkpoint").iterdir() if entry.name.isdigit())
    lines = (tmp_path / "run" / "ledger.jsonl").read_bytes().count(b"\n")
    assert taken  # they are written by a thread of their own, which need not keep up
    for number, kept in enumerate((taken[-1], taken[-1] + 1, lines - 11)):
        again = cut(tmp_path / "run", kept, tmp_path / str(number))
        record = Record(RunFolder(again))
        with ContinuedLedger(RunFolder(again), record, resumed={}, sync="interval") as ledger:
            phases = [Phase.of(TwoWeights(), GENERATIONS["strategy"](), 400)]
            search = Search(
                POOL,
                phases,
                RecordedEvaluator(Evaluator(), record),
                Incumbent(SCORE),
                ledger,
                lambda incumbent: None,
                rules=rules(patience=14),
            )
            position = begin(search, ledger)
            assert position is not None
            assert position.lines in taken
            search.run()
        assert canonical_events(again) == whole
