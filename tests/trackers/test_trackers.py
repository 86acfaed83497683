"""Trackers: what they were told equals the ledger; what they do wrong does not hurt a run."""

from __future__ import annotations

import importlib.util
import json
import logging
import math
import struct
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evomerge.candidate import Candidate, Evaluation
from evomerge.errors import ConfigError
from evomerge.genomes.genome import Genome
from evomerge.run.folder import RunFolder
from evomerge.run.ledger import Ledger, read_ledger
from evomerge.run.observers import Observers
from evomerge.trackers.background import Numbers, tracking
from evomerge.trackers.mlflow import Mlflow
from evomerge.trackers.tensorboard import TensorBoard
from evomerge.trackers.tracker import TrackedRun, Tracker, trackers_from_config
from evomerge.trackers.wandb import WeightsAndBiases

CONFIG = {"name": "a run", "search": {"evaluations": 6, "seed": 3}, "pool": {"models": {"math": "/models/math"}}}
Row = tuple[int, dict[str, float]]


class Notebook:
    """A tracker that keeps what it is told."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.runs: list[TrackedRun] = []
        self.ended: list[str] = []

    def begin(self, run: TrackedRun) -> str | None:
        self.runs.append(run)
        return "page 7"

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.rows.append((step, dict(values)))

    def end(self, ending: str) -> None:
        self.ended.append(ending)


def tell(ledger: Ledger, first: int, last: int) -> None:
    for candidate in range(first, last):
        ledger.log_asked(Candidate(candidate, None, Genome((0.5,))))
        if candidate == 4:
            ledger.log_told(Evaluation(candidate, "failed", error="it is NaN"))
            continue
        score = 0.1 * candidate
        seconds = {"merge": 0.01, "model": 0.3, "other": 0.002}
        ledger.log_told(
            Evaluation(
                candidate, "ok", "search", {"score": score}, {"task/acc": score / 3, "task/ppl": math.inf}, {}, seconds
            )
        )
        ledger.append("improved", candidate=candidate, objective=np.float64(score), recipe_hash=None)


def search(folder: RunFolder, trackers: list[tuple[str, Tracker]], patience: float = 60.0) -> None:
    """A run of six candidates of which one fails, with a baseline and held-out scores."""
    with (
        tracking(trackers, folder, CONFIG, patience=patience) as observers,
        Ledger(folder, observe=Observers(observers)) as ledger,
    ):
        ledger.append("started", evaluations=6, objectives={"score": "maximize"})
        ledger.log_asked(Candidate(0, None, name="math"))
        ledger.log_told(Evaluation(0, "ok", objectives={"score": 0.25}))
        tell(ledger, 1, 7)
        ledger.log_asked(Candidate(6, None, Genome((0.5,)), name="best"), "held_out")
        ledger.log_told(Evaluation(6, "ok", "held_out", {"score": 0.5}, {"task_held_out/acc": 0.7}))
        ledger.append("stopped", reason="budget")


def expected(folder: RunFolder) -> list[tuple[int, str, float]]:
    """Step, name and value of every number, from the ledger alone."""
    rows: list[tuple[int, str, float]] = [(0, "baseline/math/score", 0.25)]
    step = failed = 0
    for event in read_ledger(folder):
        if event["event"] == "told" and event["split"] == "search" and event["candidate"] > 0:
            step += 1
            if event["status"] != "ok":
                failed += 1
                rows.append((step, "failed", float(failed)))
                continue
            rows.append((step, "objective/score", event["objectives"]["score"]))
            rows.append((step, "task/acc", event["metrics"]["task/acc"]))
            rows += [(step, f"seconds/{name}", value) for name, value in event["seconds"].items()]
            rows.append((step, "candidate", float(event["candidate"])))
        elif event["event"] == "improved":
            rows.append((step, "best/score", event["objective"]))
    return [*rows, (step, "held_out/best/task_held_out/acc", 0.7)]


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "run")


def test_every_number_of_the_ledger_is_told(folder: RunFolder) -> None:
    notebook = Notebook()
    search(folder, [("notebook", notebook)])
    rows = [(step, name, value) for step, values in notebook.rows for name, value in values.items()]
    assert rows == expected(folder)
    assert notebook.ended == ["finished"]
    (run,) = notebook.runs
    assert (run.name, run.config, run.before, run.folder) == ("a run", CONFIG, None, folder.path.resolve())


def test_a_run_that_goes_on_goes_on_in_the_tracker(folder: RunFolder) -> None:
    first, second = Notebook(), Notebook()
    with tracking([("notebook", first)], folder, CONFIG) as observers, Ledger(folder, observe=observers[0]) as ledger:
        ledger.append("started", evaluations=6, objectives={"score": "maximize"})
        tell(ledger, 1, 5)
        ledger.append("interrupted", reason="SIGINT")
    assert first.ended == ["interrupted"]
    with (
        tracking([("notebook", second)], folder, CONFIG, resumed=True) as observers,
        Ledger(folder, observe=observers[0]) as ledger,
    ):
        ledger.append("resumed")
        tell(ledger, 5, 7)
        ledger.append("stopped", reason="budget")
    assert second.runs[0].before == "page 7"
    assert [step for step, values in second.rows if "candidate" in values] == [5, 6]
    assert second.ended == ["finished"]


def test_a_run_that_is_refused_begins_nothing(folder: RunFolder) -> None:
    notebook = Notebook()
    with tracking([("notebook", notebook)], folder, CONFIG):
        pass
    assert notebook.runs == []


@pytest.mark.parametrize("method", ["begin", "log", "end"])
def test_one_that_raises_hurts_nobody(
    folder: RunFolder, method: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(self: Notebook, *arguments: Any) -> None:
        raise ConnectionError("no network")

    class Broken(Notebook):
        pass

    monkeypatch.setattr(Broken, method, broken)
    healthy = Notebook()
    with caplog.at_level(logging.WARNING):
        search(folder, [("broken", Broken()), ("notebook", healthy)])
    assert [(step, name, value) for step, values in healthy.rows for name, value in values.items()] == expected(folder)
    (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "tracker broken failed (ConnectionError: no network)" in record.message


def test_one_that_hangs_is_left_behind(folder: RunFolder, caplog: pytest.LogCaptureFixture) -> None:
    release = threading.Event()

    class Hanging(Notebook):
        def log(self, step: int, values: Mapping[str, float]) -> None:
            release.wait(60)

    began = time.monotonic()
    with caplog.at_level(logging.WARNING):
        search(folder, [("hanging", Hanging())], patience=0.5)
    release.set()
    assert time.monotonic() - began < 20
    assert [event["event"] for event in read_ledger(folder)][-1] == "stopped"
    assert "tracker hanging has not finished after 0.5 s and is left behind" in caplog.text


def test_one_that_is_slow_misses_what_does_not_fit(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("evomerge.trackers.background._WAITING", 2)
    release = threading.Event()

    class Slow(Notebook):
        def begin(self, run: TrackedRun) -> str | None:
            release.wait(60)
            return None

    slow = Slow()
    with tracking([("slow", slow)], folder, CONFIG) as observers, Ledger(folder, observe=observers[0]) as ledger:
        ledger.append("started", evaluations=6, objectives={"score": "maximize"})
        tell(ledger, 1, 7)
        release.set()
    assert [step for step, _ in slow.rows] == [1, 1]
    assert caplog.text.count("misses some") == 1


def test_tensorboard_holds_the_ledger(folder: RunFolder) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    search(folder, trackers_from_config(["tensorboard"]))
    found = EventAccumulator(str(folder.path / "tensorboard"))
    found.Reload()
    rows = {(event.step, tag, event.value) for tag in found.Tags()["scalars"] for event in found.Scalars(tag)}
    assert rows == {(step, name, float(np.float32(value))) for step, name, value in expected(folder)}


def test_mlflow_holds_the_ledger(folder: RunFolder, tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    search(folder, trackers_from_config([{"name": "mlflow", "tracking_uri": store, "experiment": "merging"}]))
    client = MlflowClient(tracking_uri=store)
    (run,) = client.search_runs([client.get_experiment_by_name("merging").experiment_id])
    assert (run.info.run_name, run.info.status) == ("a run", "FINISHED")
    assert run.data.params["search.seed"] == "3"
    rows = [
        (metric.step, name, metric.value)
        for name in run.data.metrics
        for metric in client.get_metric_history(run.info.run_id, name)
    ]
    assert sorted(rows) == sorted(expected(folder))
    assert json.loads((folder.path / "trackers.json").read_text()) == {"mlflow": run.info.run_id}


def records(data: bytes) -> Iterator[bytes]:
    """What a file of wandb holds: a header of 7 bytes, then LevelDB's log of blocks of 32 KiB."""
    place, parts = 7, b""
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        length, kind = struct.unpack_from("<HB", data, place + 4)
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            yield parts
            parts = b""


def test_wandb_holds_the_ledger(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    from wandb.proto import wandb_internal_pb2

    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    search(folder, trackers_from_config([{"name": "wandb", "mode": "offline", "project": "merging"}]))
    wandb.teardown()
    (file,) = (folder.path / "wandb").glob("offline-run-*/run-*.wandb")
    rows, ended = [], None
    for data in records(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.HasField("history"):
            items = {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}
            step = items.pop("evaluated")
            rows += [(step, name, value) for name, value in items.items() if not name.startswith("_")]
        if record.HasField("exit"):
            ended = record.exit.exit_code
        if record.HasField("run"):
            assert (record.run.project, record.run.display_name) == ("merging", "a run")
    assert sorted(rows) == sorted(expected(folder))
    assert ended == 0


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        (["tensorbord"], "trackers.0 is 'tensorbord'; did you mean 'tensorboard'?"),
        ("wandb", "trackers is 'wandb'; a list"),
        ([3], "trackers.0 is 3; a name, or a mapping"),
        ([{"name": "wandb", "projct": "x"}], "trackers.0 has no key 'projct'; did you mean 'project'?"),
        (["mlflow", {"name": "mlflow"}], "trackers.1 is 'mlflow', which is there already"),
    ],
)
def test_settings_are_checked(nodes: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        trackers_from_config(nodes)
    assert message in str(caught.value)


@pytest.mark.parametrize("name", ["tensorboard", "mlflow", "wandb"])
def test_missing_packages_are_one_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    with pytest.raises(ConfigError) as caught:
        trackers_from_config([name])
    assert str(caught.value) == (
        f"trackers has {name}, and {name} is not installed; a package that is; "
        f"install it with: pip install 'evomerge[{name}]', or leave the tracker out"
    )


def test_choosing_imports_nothing() -> None:
    found = trackers_from_config(["tensorboard", "mlflow", "wandb"])
    assert [type(tracker) for _, tracker in found] == [TensorBoard, Mlflow, WeightsAndBiases]
    assert trackers_from_config(None) == []


def test_numbers_of_several_objectives() -> None:
    numbers = Numbers()
    numbers.see({"event": "started", "objectives": {"maths": "maximize", "language": "maximize"}})
    event = {"event": "improved", "candidate": 3, "objective": 0.5, "front": 4, "hypervolume": 1.25}
    assert numbers.see(event) == {"best/maths": 0.5, "front": 4.0, "hypervolume": 1.25}
