from __future__ import annotations

import contextlib
import json
import math
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import numpy as safetensors

from evomerge.candidate import Candidate, Evaluation
from evomerge.genomes.genome import Genome
from evomerge.recipes.pool_info import PoolInfo
from evomerge.recipes.slices import ModelRef, SliceId
from evomerge.run.folder import RunFolder
from evomerge.run.items import read_items
from evomerge.run.ledger import Ledger, canonical_events, evaluation_of, read_ledger
from evomerge.run.ledger_file import LedgerError, TornLine, encode

INFO = PoolInfo((("a", ModelRef("models/a", None, "sha256:1")),), ("a",), None, (SliceId("embed"),), 1, "float32")
RIGHT = np.array([1.0, 0.0, 1.0, 1.0])
EVALUATION = Evaluation(
    candidate=3,
    status="ok",
    objectives={"score": 0.1 + 0.2},
    metrics={"sums/acc": 0.75, "prose/bits_per_byte": 1 / 3},
    items={"sums/acc": RIGHT, "prose/bits_per_byte": np.array([0.1, 1e-300, -0.0])},
    seconds={"merge": 0.01, "model": 1.5},
)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "run")


def write(folder: RunFolder, events: int = 4) -> bytes:
    with Ledger(folder) as ledger:
        ledger.append("started", seed=1)
        for index in range(1, events):
            ledger.append("improved", candidate=index, objective=index / 7)
    return folder.ledger.read_bytes()


class TestLines:
    def test_are_numbered_and_checksummed_json(self, folder: RunFolder) -> None:
        lines = write(folder).splitlines()
        events = [json.loads(line) for line in lines]
        assert [(e["seq"], e["event"]) for e in events] == [(0, "started")] + [(i, "improved") for i in (1, 2, 3)]
        assert events[0]["schema"] == 1
        for line, event in zip(lines, events, strict=True):
            before = line[: line.index(b',"crc32"')]
            assert event["crc32"] == f"{zlib.crc32(before):08x}"

    def test_floats_come_back_exactly(self, folder: RunFolder) -> None:
        values = [0.1 + 0.2, 1e-308, 5e-324, -0.0, 2.0**53 + 2, math.pi, *np.random.default_rng(0).normal(size=100)]
        with Ledger(folder) as ledger:
            ledger.append("asked", candidate=0, genome=values, matrix=np.array(values))
        (event,) = read_ledger(folder)
        for back in (event["genome"], event["matrix"]):
            assert np.array(back).tobytes() == np.array(values).tobytes()

    def test_hold_no_nan_or_infinity_yet_give_them_back(self, folder: RunFolder) -> None:
        odd = {"nan": math.nan, "up": np.float32("inf"), "down": -math.inf, "fine": 0.5}
        with Ledger(folder) as ledger:
            ledger.log_told(replace(EVALUATION, metrics=odd, items={}))

        def refuse(constant: str) -> float:
            raise AssertionError(f"{constant} is not JSON")

        told = json.loads(folder.ledger.read_text(), parse_constant=refuse)
        assert told["metrics"] == {"nan": "NaN", "up": "Infinity", "down": "-Infinity", "fine": 0.5}
        metrics = evaluation_of(told).metrics
        assert math.isnan(metrics["nan"])
        assert (metrics["up"], metrics["down"], metrics["fine"]) == (math.inf, -math.inf, 0.5)

    def test_any_text_survives(self, folder: RunFolder) -> None:
        text = 'line\nbreak "quoted" \u2028 ,"crc32":"00000000"} \ud800 日本'
        with Ledger(folder) as ledger:
            ledger.append("told", candidate=0, error=text)
        assert [event["error"] for event in read_ledger(folder)] == [text]


class TestTornLine:
    def test_every_cut_of_the_last_line_is_tolerated_and_reported(self, folder: RunFolder) -> None:
        whole = write(folder)
        start = whole.rindex(b"\n", 0, -1) + 1
        for cut in range(start + 1, len(whole)):
            folder.ledger.write_bytes(whole[:cut])
            torn: list[TornLine] = []
            assert [event["seq"] for event in read_ledger(folder, torn.append)] == [0, 1, 2]
            assert torn == [TornLine(4, start, cut - start)]

    def test_a_last_line_of_zeros_or_garbage_is_torn_too(self, folder: RunFolder) -> None:
        whole = write(folder)
        for rest in (bytes(5000), b'{"seq":4,"event":"told"}\n', b"\n"):
            folder.ledger.write_bytes(whole + rest)
            torn: list[TornLine] = []
            assert len(list(read_ledger(folder, torn.append))) == 4
            assert torn == [TornLine(5, len(whole), len(rest))]

    def test_is_logged_when_nobody_asks(self, folder: RunFolder, caplog: pytest.LogCaptureFixture) -> None:
        folder.ledger.write_bytes(write(folder)[:-3])
        assert len(list(read_ledger(folder))) == 3
        assert "line 4 is incomplete" in caplog.text

    def test_is_removed_when_the_run_goes_on(self, folder: RunFolder) -> None:
        whole = write(folder)
        folder.ledger.write_bytes(whole[:-5])
        with Ledger(folder) as ledger:
            assert ledger.torn == TornLine(4, whole.rindex(b"\n", 0, -1) + 1, len(whole.splitlines()[-1]) + 1 - 5)
            assert ledger.append("resumed") == 3
        assert [event["event"] for event in read_ledger(folder)] == ["started", "improved", "improved", "resumed"]


class TestDamage:
    def test_in_the_middle_is_located(self, folder: RunFolder) -> None:
        whole = write(folder)
        ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
        rng = np.random.default_rng(0)
        for position in rng.integers(0, ends[2], size=200):
            damaged = bytearray(whole)
            damaged[position] ^= 1 << int(rng.integers(8))
            folder.ledger.write_bytes(bytes(damaged))
            line = sum(position >= end for end in ends) + 1
            with pytest.raises(LedgerError, match=rf"ledger\.jsonl: line {line} "):
                list(read_ledger(folder))

    def test_missing_doubled_and_exchanged_lines_are_found(self, folder: RunFolder) -> None:
        one, two, three, four = write(folder).splitlines(keepends=True)
        for lines, number in (((one, three, four), 2), ((one, two, two, three), 3), ((two, one, three), 1)):
            folder.ledger.write_bytes(b"".join(lines))
            with pytest.raises(LedgerError, match=rf"line {number} is not event {number - 1}"):
                list(read_ledger(folder))

    def test_stops_a_writer_and_leaves_the_file_alone(self, folder: RunFolder) -> None:
        damaged = write(folder).replace(b'"candidate":1', b'"candidate":7')
        folder.ledger.write_bytes(damaged)
        with pytest.raises(LedgerError, match="line 2 does not match its checksum"):
            Ledger(folder)
        assert folder.ledger.read_bytes() == damaged
        with pytest.raises(LedgerError, match="line 2"):  # the lock was given back: the same error again
            Ledger(folder)

    def test_a_newer_format_is_refused(self, folder: RunFolder) -> None:
        with Ledger(folder) as ledger:
            ledger.append("started", schema=2, version="9.0")
        with pytest.raises(LedgerError, match=r"has format 2; evomerge .* reads format 1; read it with evomerge 9\.0"):
            list(read_ledger(folder))

    @pytest.mark.parametrize("fields", [{"candidate": [1]}, {"candidate": "../x"}, {"split": "../x"}, {"split": [1]}])
    def test_fields_that_would_become_file_names_are_checked(
        self, folder: RunFolder, fields: dict[str, object]
    ) -> None:
        with Ledger(folder) as ledger:
            ledger.append("told", **fields)
        with pytest.raises(LedgerError, match="line 1 has a malformed candidate or split"):
            list(read_ledger(folder))

    def test_a_missing_ledger_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(LedgerError, match=r"ledger\.jsonl cannot be read: No such file"):
            list(read_ledger(tmp_path))


TEXT = st.text(st.sampled_from('ab"\\\n,{}é\u2028'), max_size=6)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
# Timings are no test here: other work may be running.
FUZZ = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], database=None)
FIELDS = (
    "schema",
    "candidate",
    "split",
    "name",
    "status",
    "objectives",
    "metrics",
    "seconds",
    "error",
    "items",
    "reason",
)


class TestStrangersFiles:
    """Whatever a file holds, reading it gives events or a `LedgerError`."""

    @FUZZ
    @given(st.lists(st.binary(max_size=60)))
    def test_bytes(self, chunks: list[bytes]) -> None:
        with tempfile.TemporaryDirectory() as path:
            folder = RunFolder(Path(path))
            folder.ledger.write_bytes(b"\n".join(chunks))
            with contextlib.suppress(LedgerError):
                assert list(read_ledger(folder, on_torn=lambda torn: None)) == []

    @FUZZ
    @given(st.lists(st.dictionaries(st.sampled_from(("event", *FIELDS)), JSON), min_size=1, max_size=4))
    def test_lines_with_valid_checksums(self, lines: list[dict[str, object]]) -> None:
        with tempfile.TemporaryDirectory() as path:
            folder = RunFolder(Path(path))
            named = [{"seq": i, "event": "told", **fields} for i, fields in enumerate(lines)]
            folder.ledger.write_bytes(b"".join(map(encode, named)))
            with contextlib.suppress(LedgerError):
                for event in read_ledger(folder):
                    assert event["seq"] < len(lines)
                    evaluation_of(event)

    def test_deep_nesting_and_huge_numbers(self, folder: RunFolder) -> None:
        for value in (b"[" * 100_000, b"1" * 10_000):
            body = b'{"seq":0,"event":"told","x":' + value
            folder.ledger.write_bytes(body + b',"crc32":"%08x"}\n' % zlib.crc32(body))
            with pytest.raises(LedgerError, match="line 1 is not JSON"):
                list(read_ledger(folder))


class TestWriting:
    def test_every_event_is_in_the_file_when_append_returns(self, folder: RunFolder) -> None:
        with Ledger(folder, sync="interval", interval=1e9) as ledger:
            for count in range(1, 6):
                ledger.append("asked", candidate=0)
                assert sum(1 for _ in read_ledger(folder)) == len(ledger) == count

    def test_fsync_follows_the_policy(self, folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
        calls: list[int] = []
        real = os.fsync
        now = [0.0]
        monkeypatch.setattr(time, "monotonic", lambda: now[0])
        with Ledger(folder) as every:
            monkeypatch.setattr(os, "fsync", lambda fd: (calls.append(fd), real(fd))[1])
            every.append("asked", candidate=0)
            every.append("asked", candidate=0)
            assert len(calls) == 2
        with Ledger(folder, sync="interval", interval=10.0) as some:
            calls.clear()
            some.append("asked", candidate=0)
            some.log_told(EVALUATION)
            assert calls == []
            now[0] = 11.0
            some.append("asked", candidate=0)
            assert len(calls) == 3  # the items file, its folder, the ledger
            some.append("asked", candidate=0)
            assert len(calls) == 3
        assert len(calls) == 4  # closing syncs

    @pytest.mark.parametrize("sync", ["every", "interval"])
    def test_items_are_on_the_disk_before_the_event_that_names_them(
        self, folder: RunFolder, sync: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A power failure leaves what was synced, in the order in which it was."""
        real, synced = os.fsync, []

        def fsync(descriptor: int) -> None:
            place = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
            synced.append((place.name.lstrip(".")[:15], folder.ledger.read_bytes().count(b'"told"')))
            real(descriptor)

        with Ledger(folder, sync=sync, interval=0 if sync == "interval" else 1) as ledger:
            monkeypatch.setattr(os, "fsync", fsync)
            ledger.log_told(EVALUATION)
        events = 0 if sync == "every" else 1  # what the unsynced part of the ledger holds meanwhile
        assert synced[:3] == [("search-3.safete", events), ("items", events), ("ledger.jsonl", 1)]

    def test_a_full_disk_leaves_whole_lines(self, folder: RunFolder) -> None:
        before = write(folder)
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)
        with Ledger(folder) as ledger:
            resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 20, limit[1]))  # 20 bytes fit, as on a full disk
            try:
                with pytest.raises(LedgerError, match="cannot be written: File too large"):
                    ledger.append("told", candidate=9)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, limit)
            assert folder.ledger.read_bytes() == before
            assert ledger.append("told", candidate=9) == 4  # room again: nothing was lost or doubled
        assert [event["seq"] for event in read_ledger(folder)] == [0, 1, 2, 3, 4]

    def test_a_closed_ledger_refuses(self, folder: RunFolder) -> None:
        ledger = Ledger(folder)
        ledger.close()
        ledger.close()
        with pytest.raises(LedgerError, match="was closed"):
            ledger.append("asked", candidate=0)


class TestLock:
    def test_one_writer_at_a_time(self, folder: RunFolder) -> None:
        with Ledger(folder), pytest.raises(LedgerError, match=rf"is being written by process {os.getpid()} on "):
            Ledger(folder)
        Ledger(folder).close()

    def test_a_killed_writer_leaves_no_lock_and_loses_no_event(self, folder: RunFolder) -> None:
        code = (
            "import sys, time; from pathlib import Path; from evomerge.run.ledger import Ledger, RunFolder\n"
            "ledger = Ledger(RunFolder(Path(sys.argv[1])), sync='interval', interval=1e9)\n"
            "for i in range(20): ledger.append('asked', candidate=i)\n"
            "print('ready', flush=True); time.sleep(60)"
        )
        with subprocess.Popen([sys.executable, "-c", code, folder.path], stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "ready\n"
            with pytest.raises(LedgerError, match=f"written by process {writer.pid} "):
                Ledger(folder)
            writer.send_signal(signal.SIGKILL)
        with Ledger(folder) as ledger:
            assert len(ledger) == 20
            ledger.append("resumed")
        assert len(list(read_ledger(folder))) == 21


class TestProtocolObjects:
    def test_a_candidate_is_asked(self, folder: RunFolder) -> None:
        recipe = INFO.linear({"a": 1.0})
        with Ledger(folder) as ledger:
            ledger.log_asked(Candidate(0, recipe, name="a"))
            ledger.log_asked(Candidate(1, None, Genome((0.5, 3, "ties", True)), parents=(0,)), "held_out")
        first, second = (
            {k: v for k, v in event.items() if k not in ("seq", "time", "crc32")} for event in read_ledger(folder)
        )
        assert first == {
            "event": "asked",
            "candidate": 0,
            "split": "search",
            "name": "a",
            "genome": None,
            "parents": [],
            "recipe_hash": recipe.hash,
        }
        assert second == {
            "event": "asked",
            "candidate": 1,
            "split": "held_out",
            "name": None,
            "genome": [0.5, 3, "ties", True],
            "parents": [0],
            "recipe_hash": None,
        }

    def test_an_evaluation_comes_back_exactly(self, folder: RunFolder) -> None:
        with Ledger(folder) as ledger:
            ledger.log_told(EVALUATION)
        (told,) = read_ledger(folder)
        items = read_items(folder, 3, digest=told["items_hash"])
        back = evaluation_of(told, items)
        assert replace(back, items={}) == replace(EVALUATION, items={})
        assert list(back.metrics) == list(EVALUATION.metrics)  # the first metric of a task is its headline
        assert {k: v.tobytes() for k, v in items.items()} == {k: v.tobytes() for k, v in EVALUATION.items.items()}
        assert all(values.dtype == np.float64 for values in items.values())

    def test_a_failure_has_no_items_file(self, folder: RunFolder) -> None:
        with Ledger(folder) as ledger:
            ledger.log_told(Evaluation(4, "failed", "held_out", error="NaN"))
        (told,) = read_ledger(folder)
        assert (told["items"], told["items_hash"]) == (None, None)
        assert list(folder.items.iterdir()) == []
        assert evaluation_of(told) == Evaluation(4, "failed", "held_out", error="NaN")

    @pytest.mark.parametrize(
        ("values", "dtype"),
        [
            ([0, 1, 1], np.uint8),
            ([0, 255, 3], np.uint8),
            ([-1, 0, 1], np.int16),
            ([0, 1, np.nan], np.float16),
            ([0.5, -0.0], np.float16),
            ([1.0, np.float32(0.1)], np.float32),
            ([0.1, 1.0], np.float64),
            ([1e300, np.inf], np.float64),
            ([], np.uint8),
        ],
    )
    def test_items_take_the_smallest_exact_dtype(self, folder: RunFolder, values: list[float], dtype: type) -> None:
        exact = np.array(values, dtype=np.float64)
        with Ledger(folder) as ledger:
            ledger.log_told(Evaluation(0, "ok", "held_out", items={"t/m": exact}))
        stored = safetensors.load(folder.items_file(0, "held_out").read_bytes())["t/m"]
        assert stored.dtype == dtype
        assert read_items(folder, 0, "held_out")["t/m"].tobytes() == exact.tobytes()

    def test_items_that_were_exchanged_or_lost_are_found(self, folder: RunFolder) -> None:
        with Ledger(folder) as ledger:
            ledger.log_told(EVALUATION)
            ledger.log_told(replace(EVALUATION, candidate=4, items={"sums/acc": RIGHT[::-1]}))
        first, _ = read_ledger(folder)
        folder.items_file(3, "search").write_bytes(folder.items_file(4, "search").read_bytes())
        with pytest.raises(LedgerError, match=r"search-3\.safetensors does not match the hash"):
            read_items(folder, 3, digest=first["items_hash"])
        folder.items_file(3, "search").write_bytes(b"garbage")
        with pytest.raises(LedgerError, match="cannot be read"):
            read_items(folder, 3)
        with pytest.raises(LedgerError, match="No such file"):
            read_items(folder, 5)

    @pytest.mark.parametrize(
        "change", [{"split": "../../x"}, {"status": "fine"}, {"metrics": {"a": "b"}}, {"error": ...}]
    )
    def test_malformed_told_events_are_refused(self, change: dict[str, object]) -> None:
        told = {"candidate": 0, "status": "ok", "split": "search", "error": ""}
        told |= {"objectives": {}, "metrics": {}, "seconds": {}}
        told |= change
        if change == {"error": ...}:
            del told["error"]
        with pytest.raises(LedgerError, match="a told event is malformed"):
            evaluation_of(told)


class TestCanonicalEvents:
    def run(
        self, path: Path, *, seconds: float, score: float = 0.5, interrupted: bool = False
    ) -> list[dict[str, object]]:
        folder = RunFolder.create(path)
        with Ledger(folder) as ledger:
            ledger.append("started", seed=1)
            ledger.log_asked(Candidate(3, INFO.linear({"a": 1.0})))
            if interrupted:
                ledger.append("interrupted", reason="SIGTERM")
        with Ledger(folder) as ledger:
            if interrupted:
                ledger.append("resumed")
            items = {"sums/acc": RIGHT, "sums/score": RIGHT * score}
            ledger.log_told(replace(EVALUATION, items=items, seconds={"model": seconds}))
        return canonical_events(folder)

    def test_times_and_interruptions_do_not_count(self, tmp_path: Path) -> None:
        first = self.run(tmp_path / "one", seconds=1.0)
        assert [event["event"] for event in first] == ["started", "asked", "told"]
        assert self.run(tmp_path / "two" / "deeper", seconds=9.0, interrupted=True) == first

    def test_a_single_item_counts(self, tmp_path: Path) -> None:
        assert self.run(tmp_path / "one", seconds=1.0) != self.run(tmp_path / "two", seconds=1.0, score=0.25)


def test_a_signal_in_the_middle_of_a_write_leaves_whole_lines(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    from evomerge.run import ledger_file

    whole = ledger_file.write_all
    for written in (0, 20, 10_000):  # nothing, a part, and all of the line
        with Ledger(folder) as ledger:
            ledger.append("improved", candidate=1)

            def cut(descriptor: int, data: bytes, written: int = written) -> None:
                whole(descriptor, data[:written])
                raise KeyboardInterrupt

            monkeypatch.setattr(ledger_file, "write_all", cut)
            with pytest.raises(KeyboardInterrupt):
                ledger.append("improved", candidate=2)
            monkeypatch.setattr(ledger_file, "write_all", whole)
            ledger.append("interrupted", reason="SIGTERM")
    assert [event.get("candidate") for event in read_ledger(folder)] == [1, None] * 3
