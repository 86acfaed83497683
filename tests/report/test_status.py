"""The progress of a run: from hand-written ledgers whose times and counts are known."""

from __future__ import annotations

import json
import math
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from evomerge.protocols import Work
from evomerge.report.saved_tokens import SavedTokens
from evomerge.report.status import RunStatus, read_status
from evomerge.report.status_view import StatusPanel, progress_line
from evomerge.run.ledger_file import LedgerError, Lock, encode

START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
MERGE = {"kept": 60, "referenced": 10, "memory": 15, "shared": 5, "computed": 10, "bytes": 1000, "computed_bytes": 50}


class Written:
    """A run folder whose ledger is written line by line at given seconds."""

    def __init__(self, folder: Path, **started: Any) -> None:
        self.folder, self.count = folder, 0
        folder.mkdir()
        first = {"schema": 1, "version": "0", "objectives": {"score": "maximize"}, "evaluations": 8}
        self.add(0, "started", **{**first, **started})

    def add(self, second: float, event: str, **fields: Any) -> None:
        time = (START + timedelta(seconds=second)).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line = encode({"seq": self.count, "event": event, "time": time, **fields})
        with (self.folder / "ledger.jsonl").open("ab") as file:
            file.write(line)
        self.count += 1

    def asked(self, second: float, candidate: int, name: str | None = None, split: str = "search") -> None:
        self.add(second, "asked", candidate=candidate, split=split, name=name)

    def told(
        self, second: float, candidate: int, value: float | None = None, split: str = "search", **fields: Any
    ) -> None:
        status = "failed" if value is None else "ok"
        objectives = {} if value is None else {"score": value}
        seconds = {"merge": 0.1 * candidate, "model": 2.0, "other": 0.01}
        self.add(
            second,
            "told",
            candidate=candidate,
            split=split,
            **{"status": status, "objectives": objectives, "seconds": seconds, "merge": {}, "error": "", **fields},
        )


@pytest.fixture
def run(tmp_path: Path) -> Written:
    """Two baselines, then a generation of four of which one failed, then two asked."""
    written = Written(tmp_path / "run")
    for candidate, (name, value) in enumerate((("math", 0.25), ("code", 0.5))):
        written.asked(1, candidate, name)
        written.told(10, candidate, value, merge={**MERGE, "saved": 1.5})
    for candidate in range(2, 6):
        written.asked(20, candidate)
    written.told(30, 2, 0.4, merge={**MERGE, "saved": 2.0})
    written.add(30, "improved", candidate=2, objective=0.4)
    written.told(40, 3, error="the merge is NaN")
    written.told(50, 4, 0.75)
    written.add(50, "improved", candidate=4, objective=0.75)
    written.told(60, 5, 0.6)
    written.asked(61, 6)
    written.asked(61, 7)
    return written


def test_counts_best_and_baselines(run: Written) -> None:
    status = read_status(run.folder, START + timedelta(seconds=71))
    assert status.counts == {"failed": 1, "ok": 3}
    assert (status.told, status.evaluations) == (4, 8)
    assert (status.objective, status.best, status.best_candidate) == ("score", 0.75, 4)
    assert status.baselines == {"math": 0.25, "code": 0.5}
    assert (status.best_baseline, status.gain) == ("code", 0.25)
    assert status.error == "the merge is NaN"
    assert status.idle == 10
    assert status.held_out == 0


def test_speed_counts_the_search_alone(run: Written) -> None:
    status = read_status(run.folder)
    assert status.seconds == pytest.approx(40)  # from the first candidate asked to the last told
    assert status.per_minute == pytest.approx(4 * 60 / 40)
    assert status.stages == pytest.approx({"merge": 0.4, "model": 2.0, "other": 0.01})  # of candidates 2, 4 and 5


def test_interruptions_are_not_time_of_search(run: Written) -> None:
    run.add(62, "interrupted")
    run.add(10_000, "resumed")
    run.asked(10_001, 6)
    run.told(10_011, 6, 0.1)
    status = read_status(run.folder)
    assert status.seconds == pytest.approx(40 + 2 + 11)
    assert status.told == 5


def test_layer_cache_adds_up_every_evaluation(run: Written) -> None:
    cache = read_status(run.folder).cache
    assert cache.slices == {"kept": 180, "referenced": 30, "memory": 45, "shared": 15, "computed": 30}
    assert (cache.bytes, cache.computed_bytes, cache.saved) == (3000, 150, 5.0)
    assert cache.slice_hits == pytest.approx(0.9)
    assert cache.byte_hits == pytest.approx(0.95)


def test_smaller_objectives_can_be_better(tmp_path: Path) -> None:
    run = Written(tmp_path / "run", objectives={"score": "minimize"})
    for candidate, value in enumerate((3.0, 2.0)):
        run.asked(1, candidate, f"m{candidate}")
        run.told(1, candidate, value)
    run.asked(2, 2)
    run.told(3, 2, 1.5)
    run.add(3, "improved", candidate=2, objective=1.5)
    status = read_status(run.folder)
    assert (status.best_baseline, status.gain) == ("m1", 0.5)


def test_a_torn_last_line_is_left_out(run: Written) -> None:
    before = read_status(run.folder, START)
    with (run.folder / "ledger.jsonl").open("ab") as file:
        file.write(b'{"seq":18,"event":"told","ti')
    assert read_status(run.folder, START) == before


def test_states(run: Written) -> None:
    assert read_status(run.folder).state == "dead"
    lock = Lock(run.folder / "ledger.lock")
    try:
        status = read_status(run.folder)
        assert status.state == "running"
        assert status.detail.startswith("process ")
        assert status.in_flight == 2
        assert status.left == pytest.approx(4 * 10)
    finally:
        lock.release()
    status = read_status(run.folder)
    assert (status.state, status.in_flight, status.left) == ("dead", 0, None)
    run.add(70, "stopped", reason="budget")
    status = read_status(run.folder)
    assert (status.state, status.detail) == ("ended", "budget")


def test_looking_does_not_disturb_the_writer(run: Written) -> None:
    lock = Lock(run.folder / "ledger.lock")
    read_status(run.folder)
    lock.release()
    read_status(run.folder)
    Lock(run.folder / "ledger.lock").release()  # refused if reading had kept a lock


def test_a_run_that_has_only_begun(tmp_path: Path) -> None:
    run = Written(tmp_path / "run")
    status = read_status(run.folder)
    assert (status.told, status.best, status.gain, status.per_minute) == (0, None, None, None)
    assert (status.cache.slice_hits, status.cache.byte_hits) == (None, None)
    text = shown(run.folder)
    assert "0 of 8" in text
    assert "no candidate scored yet" in text


def shown(folder: Path, width: int = 80) -> str:
    return drawn(read_status(folder, START + timedelta(seconds=71)), width)


def drawn(status: RunStatus, width: int = 80, **arguments: Any) -> str:
    console = Console(width=width, force_terminal=False, highlight=False)
    with console.capture() as capture:
        console.print(StatusPanel(status, **arguments))
    return capture.get()


def test_panel_in_80_columns(run: Written) -> None:
    run.asked(62, 4, "best", "held_out")
    run.told(63, 4, 0.7, "held_out")
    text = shown(run.folder)
    assert all(len(line) <= 80 for line in text.splitlines())
    flat = " ".join(text.replace("│", " ").split())
    assert "dead, no process writes it and it has not ended; last event 8.0 s ago" in flat
    assert flat.startswith("╭─ run ─")
    assert "4 of 8 ━" in flat
    assert " 50 % " in flat
    assert "failed 1 of 4 1 × the merge is NaN" in flat
    assert "best score 0.7500, candidate 4 +0.2500 on code, the best source" in flat
    assert "models code 0.5000 · math 0.2500" in flat
    assert "held-out 1 model scored" in flat
    assert "360 candidates an hour over 40 s median merge 400 ms, model 2.0 s, other 10 ms" in flat
    assert "merge 14.8 % · model 84.7 % · other 0.4 %" in flat
    assert "90.0 % of slices, 95.0 % of bytes not merged again 5.0 s saved" in flat
    assert "merged 10.0 %" in flat


@pytest.mark.parametrize(
    ("tokens", "lines"),
    [
        ({"run": 850.0, "stock": 1000.0, "hidden": 450.0}, ["2.5 times", "prefixes saved 15 %, hidden states 45 %"]),
        ({"run": 1000.0, "stock": 1000.0, "hidden": 500.0}, ["2.0 times", "hidden states saved 50 %"]),
        ({"run": 500.0, "stock": 1000.0}, ["2.0 times", "prefixes saved 50 %"]),
        ({"run": 1000.0, "stock": 1000.0}, []),
        ({"run": 0.0, "stock": math.nan, "hidden": math.inf}, None),
        ({}, None),
    ],
)
def test_tokens_that_were_saved(tokens: dict[str, float], lines: list[str] | None) -> None:
    found = SavedTokens.of(tokens)
    assert (found is None) == (lines is None)
    if found is not None and lines is not None:
        assert [line.partition(" fewer")[0] for line in found.lines()] == lines
        assert sum(found.shares.values()) == pytest.approx(1)


@pytest.mark.parametrize("width", [20, 40, 60, 80, 200])
def test_panel_fits_any_width(run: Written, width: int) -> None:
    assert all(len(line) <= width for line in shown(run.folder, width).splitlines())


def test_gains_on_the_best_source_and_on_the_average(run: Written, tmp_path: Path) -> None:
    written = Written(tmp_path / "other")
    for candidate, (name, value) in enumerate((("math", 0.25), ("code", 0.5), ("uniform average", 0.6))):
        written.asked(1, candidate, name)
        written.told(2, candidate, value)
    written.asked(3, 3)
    written.told(4, 3, 0.75)
    written.add(4, "improved", candidate=3, objective=0.75)
    status = read_status(written.folder)
    assert (status.best_baseline, status.best_source) == ("uniform average", "code")
    assert status.gain_on("code") == pytest.approx(0.25)
    assert status.as_dict()["gain_on_average"] == pytest.approx(0.15)
    assert "best score 0.7500 (+0.2500 on code, the best source, +0.1500 on the uniform average)" in progress_line(
        status
    )


@pytest.mark.parametrize(
    ("started", "on", "search", "gain", "said"),
    [
        ({}, None, 0.75, 0.3, "best score 0.8000 (+0.3000 on code, the best source)"),
        ({"quantise": "nf4", "quantise_held_out": True}, None, 0.75, 0.3, "best score 0.8000 (+0.3000 on code"),
        ({"quantise": "nf4"}, None, 0.75, 0.25, "0.8000, 0.7500 in the search, scored as the baselines (+0.2500 on"),
        ({}, "validation", 0.75, 0.25, "best score 0.8000, 0.7500 in the search, scored as the baselines (+0.2500 on"),
        ({"quantise": "nf4"}, None, "nan", None, "best score 0.8000, no gain: baselines were scored as in the search"),
    ],
    ids=["full", "all-quantised", "quantised", "validation-items", "not-searched"],
)
def test_a_gain_is_between_scores_of_one_kind(
    tmp_path: Path, started: dict[str, Any], on: str | None, search: float | str, gain: float | None, said: str
) -> None:
    """A finalist has 0.75 in the search and 0.8 after it; the baselines have 0.25 and 0.5 in the search."""
    written = Written(tmp_path / "other", **started)
    for candidate, (name, value) in enumerate((("math", 0.25), ("code", 0.5))):
        written.asked(1, candidate, name)
        written.told(2, candidate, value)
    written.asked(3, 2)
    written.told(4, 2, 0.75)
    written.add(4, "improved", candidate=2, objective=0.75)
    where = {} if on is None else {"on": on}
    written.add(9, "finalists", winner=2, candidates=[2], search=[search], validation=[0.8], **where)
    status = read_status(written.folder)
    found = status.as_dict()
    assert found["best"] == 0.8
    assert found["gain"] == (None if gain is None else pytest.approx(gain))
    assert found["gain"] == found["gain_on_source"]
    assert said in progress_line(status)
    console = Console(width=120, record=True)
    console.print(StatusPanel(status))
    shown = console.export_text()
    assert ("0.7500 in the search, scored as the baselines" in shown) == (gain == 0.25)
    assert (f"{gain:+.4f} on code" if gain is not None else "no gain: baselines were scored") in shown


def test_pruned_candidates_are_no_failed_ones(run: Written) -> None:
    run.asked(50, 40)
    run.told(51, 40, 0.1, status="pruned")
    line = progress_line(read_status(run.folder))
    assert "; 1 pruned; 1 failed (the merge is NaN" in line


def test_curve_is_the_best_so_far(run: Written) -> None:
    assert read_status(run.folder).curve == (0.4, 0.4, 0.75, 0.75)
    text = shown(run.folder)
    assert "0.7500" in text
    assert "0.4000" in text


def test_curve_of_a_minimised_objective_falls(tmp_path: Path) -> None:
    run = Written(tmp_path / "run", objectives={"score": "minimize"})
    for candidate, value in enumerate((3.0, None, 1.0, 2.0)):
        run.asked(candidate, candidate)
        run.told(candidate, candidate, value)
    assert read_status(run.folder).curve == (3.0, 3.0, 1.0, 1.0)


def test_failures_are_counted_by_reason(run: Written) -> None:
    for candidate, error in enumerate(("timed out after 20 s", "timed out after 21.5 s", "CUDA out of memory"), 6):
        run.told(70, candidate, error=error)
    assert read_status(run.folder).failures == {
        "timed out after 20 s": 2,
        "the merge is NaN": 1,
        "CUDA out of memory": 1,
    }


def test_many_reasons_of_failures_do_not_fill_the_memory(run: Written) -> None:
    for candidate in range(6, 106):
        run.told(70, candidate, error="reason " + "x" * candidate)
    failures = read_status(run.folder).failures
    assert len(failures) == 21
    assert failures["other reasons"] == 101 - 20


def test_shares_of_time(run: Written) -> None:
    shares = read_status(
        run.folder
    ).shares  # candidates 2 to 5: 0.2 + 0.3 + 0.4 + 0.5 s of merging, 2 s each of forwards
    assert shares == pytest.approx({"merge": 1.4 / 9.44, "model": 8 / 9.44, "other": 0.04 / 9.44})


def test_noting_has_a_share_of_its_own(run: Written) -> None:
    run.told(80, 6, 0.5, seconds={"merge": 0.1, "model": 1.0, "other": 0.0, "note": 9.46})
    status = read_status(run.folder)
    assert status.shares["note"] == pytest.approx(9.46 / 20.0)
    assert "note" not in status.stages  # of a usual candidate
    assert "note 47.3 %" in drawn(status)


def test_what_workers_do(run: Written) -> None:
    lock = Lock(run.folder / "ledger.lock")
    try:
        work = [
            {"worker": "worker 1", "candidate": 6, "split": "search", "since": time.time() - 65},
            {"worker": "worker 2"},
        ]
        (run.folder / "workers.json").write_text(json.dumps(work))
        status = read_status(run.folder)
        assert status.workers == (Work("worker 1", 6, "search", work[0]["since"]), Work("worker 2"))
        assert "1 of 2 busy · worker 1: candidate 6 for 1 min 5 s" in drawn(status)
        waiting = [{"worker": f"worker {number}", "stage": "waiting for 2 GPUs"} for number in (3, 4)]
        (run.folder / "workers.json").write_text(json.dumps([*work, *waiting]))
        assert "1 of 4 busy" in (said := drawn(read_status(run.folder)))
        assert "2 waiting for 2 GPUs" in said
        work[0] |= {"stage": "noting", "done": 34, "slices": 210}
        (run.folder / "workers.json").write_text(json.dumps(work))
        said = " ".join(drawn(read_status(run.folder)).replace("│", " ").split())
        assert "worker 1: candidate 6, noting 34 of 210 slices, for 1 min 5 s" in said
        (run.folder / "workers.json").write_text("[{]")  # it is a note, not a record
        assert read_status(run.folder).workers == ()
    finally:
        lock.release()
    assert read_status(run.folder).workers == ()


def test_low_terminals_get_less(run: Written) -> None:
    status = read_status(run.folder)
    full, low = drawn(status, rows=40), drawn(status, rows=24)
    assert len(low.splitlines()) < len(full.splitlines())
    assert "best score 0.7500" in " ".join(low.split())


def test_damage_is_told_with_what_comes_before_it(run: Written) -> None:
    ledger = run.folder / "ledger.jsonl"
    lines = ledger.read_bytes().splitlines(keepends=True)
    place = next(n for n, line in enumerate(lines) if b'"candidate":4' in line and b'"told"' in line)
    lines[place] = lines[place].replace(b"0.75", b"0.95")
    ledger.write_bytes(b"".join(lines))
    status = read_status(run.folder)
    assert status.state == "damaged"
    assert f"line {place + 1} does not match its checksum" in status.detail
    assert (status.told, status.best) == (2, 0.4)
    flat = " ".join(drawn(status).replace("│", " ").split())
    assert "state damaged, " in flat


def test_text_of_strangers_moves_no_cursor(tmp_path: Path) -> None:
    run = Written(tmp_path / "run", objectives={"sco\x1b[2Jre": "maximize"})
    run.asked(1, 0, "ma\x1b]0;title\x07th")
    run.add(2, "told", candidate=0, split="search", status="ok", objectives={"sco\x1b[2Jre": 1.0})
    run.asked(3, 1)
    run.told(4, 1, error="boom \x1b[31m\r\n")
    text = shown(run.folder)
    assert "\x1b" not in text
    assert "\x07" not in text


def test_interrupted(run: Written) -> None:
    run.add(62, "interrupted", reason="SIGTERM")
    status = read_status(run.folder)
    assert (status.state, status.detail) == ("interrupted", "SIGTERM")
    assert status.resume == status.as_dict()["resume"] == f"evomerge resume {run.folder}"
    run.add(70, "resumed", evaluations=12)
    status = read_status(run.folder)
    assert status.detail == "no process writes it and it has not ended"
    assert status.evaluations == 12


def test_as_json(run: Written) -> None:
    content = json.loads(json.dumps(read_status(run.folder).as_dict()))
    assert content["run"] == str(run.folder)
    assert (content["told"], content["gain"], content["best_baseline"]) == (4, 0.25, "code")
    assert content["cache"]["slices"]["kept"] == 180
    assert content["cache"]["slice_hits"] == pytest.approx(0.9)


def test_not_a_run(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="does not exist"):
        read_status(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(LedgerError, match=r"has no ledger\.jsonl"):
        read_status(tmp_path / "empty")
    (tmp_path / "empty" / "ledger.jsonl").touch()
    with pytest.raises(LedgerError, match="has no started event"):
        read_status(tmp_path / "empty")


def test_a_search_whose_workers_have_no_place_yet(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "ledger.jsonl").touch()
    work = [{"worker": f"worker {number}", "stage": "waiting for 2 GPUs"} for number in (1, 2)]
    (folder / "workers.json").write_text(json.dumps([*work, {"worker": "worker 3", "stage": "starting"}]))
    lock = Lock(folder / "ledger.lock")
    try:
        with pytest.raises(LedgerError, match="run has not begun; its workers: 2 waiting for 2 GPUs, 1 starting; wait"):
            read_status(folder)
    finally:
        lock.release()
    with pytest.raises(LedgerError, match="has no started event"):
        read_status(folder)


def test_rules_that_end_a_run_are_shown_with_how_near_it_is(tmp_path: Path) -> None:
    run = Written(tmp_path / "run", stop_rules={"hours": 0.5, "patience": 10, "target": {"score": 0.9}})
    run.asked(0, 0, "base")
    run.told(60, 0, 0.1)
    for candidate in range(1, 26):
        run.asked(60 + 10 * candidate, candidate)
        run.told(65 + 10 * candidate, candidate, 0.5 + 0.01 * (candidate % 7))
        if candidate == 6:
            run.add(125, "improved", candidate=6, objective=0.56)
    rules = read_status(run.folder).rules
    assert rules is not None
    assert (rules.hours, rules.patience, rules.target) == (0.5, 10, {"score": 0.9})
    assert (rules.since, rules.took) == (19, 65 + 250)
    assert rules.remaining is not None
    assert 0 <= rules.remaining.expected < 0.02
    console = Console(width=100)
    with console.capture() as shown:
        console.print(StatusPanel(read_status(run.folder)))
    text = " ".join(shown.get().replace("│", " ").split())
    assert "ends after 30 min of search, 5 min 15 s so far" in text
    assert "19 of 10 evaluations without improvement" in text
    assert "at score 0.9" in text
    assert "19 of 10 evaluations without improvement" in progress_line(read_status(run.folder))
    assert json.loads(json.dumps(read_status(run.folder).as_dict()))["rules"]["since"] == 19
    run.add(400, "stopped", reason="search.patience=10: over", rule="patience", limit=10, remaining={"evaluations": 10})
    assert read_status(run.folder).detail == "search.patience=10: over"
    run.add(500, "resumed", stop_rules={"target": 0.95}, since="2026-01-02T03:12:00Z")
    rules = read_status(run.folder).rules
    assert rules is not None
    assert (rules.hours, rules.patience, rules.target) == (None, None, {"score": 0.95})


@pytest.mark.parametrize("odd", [3, [], {"hours": "x", "patience": 1.5, "target": [1]}, {"hours": float("inf")}])
def test_odd_rules_of_a_stranger_are_none(tmp_path: Path, odd: Any) -> None:
    run = Written(tmp_path / "run", stop_rules=odd)
    run.told(1, 0, 0.5)
    assert read_status(run.folder).rules is None
