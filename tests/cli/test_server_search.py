"""Whole searches on a server of the tests: equal to those in this process, through deaths, without a key."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from lora_server import BASE, KEY, LoraServer, running, save_adapters
from tiny_llama import VOCABULARY, save_llama

import evomerge
from evomerge.config.compose import compose_config
from evomerge.errors import ConfigError, EvomergeError
from evomerge.evaluation import server_client
from evomerge.search.hooks import GaveUpError
from evomerge.session.parts import build_parts


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, two adapters and a task."""
    root = tmp_path_factory.mktemp("place")
    save_llama(root / "base", 0, layers=2)
    save_adapters(root / "base", root, scale=0.15)
    rng = np.random.default_rng(3)

    def words(count: int) -> str:
        return " ".join(f"t{n}" for n in rng.integers(0, VOCABULARY - 2, count))

    rows = [{"q": words(6), "c": [words(2), words(1)], "gold": int(rng.integers(2))} for _ in range(12)]
    (root / "choose.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {
        "task": "choose",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(root / "choose.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{q}}",
        "doc_to_choice": "{{c}}",
        "doc_to_target": "{{gold}}",
        "metric_list": [
            {"metric": "acc"},
            {"metric": "brier_score", "aggregation": "brier_score", "higher_is_better": False},
        ],
    }
    (root / "choose.yaml").write_text(yaml.safe_dump(task))
    return root


@pytest.fixture
def server(place: Path) -> Iterator[Any]:
    server: Any = LoraServer(place / "base")
    with running(server) as url:
        server.url = url
        yield server


def asked(place: Path, run: Path, url: str = "", *more: str, space: str = "task_arithmetic") -> list[str]:
    models = f"{{base: {place}/base, a: '{place}/base+{place}/a', b: '{place}/base+{place}/b'}}"
    there = [f"evaluator.server.{key}={value}" for key, value in (("url", url), ("model", BASE), ("retries", 2))]
    there += [f"evaluator.server.adapters={place}/served", "evaluator.server.concurrency=2"]
    return [
        *(f"pool.models={models}", "pool.base=base", f"search_space={space}", "strategy=random", "fitness=lm_eval"),
        *("fitness.tasks=[{task: choose, metrics: {brier_score: 1}}]", f"fitness.include_path={place}"),
        *("fitness.add_bos_token=false", "search.evaluations=4", f"run_dir={run}", "display=quiet"),
        *(["experiment=lora_server", *there] if url else ["evaluator.device=cpu", "fitness.forwards=exact"]),
        *more,
    ]


def told(run: Path) -> list[dict[str, Any]]:
    events = [json.loads(line) for line in (run / "ledger.jsonl").read_text().splitlines()]
    return [event for event in events if "status" in event]


def test_a_search_is_the_one_in_this_process_and_no_key_is_written(
    place: Path, server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    server.key = KEY
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr(server_client, "_FIRST", 0.01)
    server.faults.extend([500, 429])
    found = evomerge.search(*asked(place, tmp_path / "served", server.url))
    expected = evomerge.search(*asked(place, tmp_path / "own"))
    one, other = told(tmp_path / "served"), told(tmp_path / "own")
    assert [event["status"] for event in one] == [event["status"] for event in other] == ["ok"] * len(one)
    assert len(one) >= 8
    for a, b in zip(one, other, strict=True):
        assert a["objectives"]["score"] == pytest.approx(b["objectives"]["score"], abs=1e-4)
    assert found.best.candidate == expected.best.candidate
    assert not server.adapters
    assert len(server.loaded) >= 7  # two adapters, their mean, and four candidates
    assert sorted(server.unloaded) == sorted(server.loaded)
    assert not list((place / "served").iterdir())
    files = [path for path in (tmp_path / "served").rglob("*") if path.is_file()]
    assert len(files) > 3
    for path in files:
        content = path.read_bytes()
        assert KEY.encode() not in content, path
        assert b"Bearer" not in content, path
    assert KEY not in "".join(capfd.readouterr())


def test_a_dead_server_ends_a_search_in_one_line_and_it_goes_on(
    place: Path, server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_client, "_FIRST", 0.01)
    stock, run = server.load, tmp_path / "run"

    def dies(name: str, path: str) -> None:
        stock(name, path)
        server.dead = len(server.loaded) >= 6

    monkeypatch.setattr(server, "load", dies)
    with pytest.raises(GaveUpError, match="3 candidates in a row failed the same way: POST http") as raised:
        evomerge.search(*asked(place, run, server.url, "search.give_up=3", "search.evaluations=8"))
    assert "Connection" in str(raised.value) or "disconnected" in str(raised.value)
    assert "\n" not in str(raised.value)
    failed = [event["status"] for event in told(run)].count("failed")
    assert failed in (3, 4)  # the first in the middle of its items, perhaps
    left = list(server.adapters)
    assert len(left) == 1
    monkeypatch.setattr(server, "load", stock)
    server.dead = False
    evomerge.Run(run).resume()
    statuses = [event["status"] for event in told(run)]
    assert statuses.count("failed") == failed
    assert statuses.count("ok") == 4 + 8 - failed
    assert not server.adapters
    assert left[0] in server.unloaded


@pytest.mark.slow
def test_a_killed_search_goes_on_and_cleans_up(place: Path, server: Any, tmp_path: Path) -> None:
    run, slow = tmp_path / "run", server.complete

    def pausing(given: dict[str, Any]) -> Any:
        time.sleep(0.05)
        return slow(given)

    server.complete = pausing
    words = asked(place, run, server.url, "search.evaluations=6")
    process = subprocess.Popen([sys.executable, "-m", "evomerge", "search", *words])
    try:
        while len(server.loaded) < 6 and process.poll() is None:
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
    finally:
        process.wait()
    server.complete = slow
    left = list(server.adapters)
    assert left
    evomerge.Run(run).resume()
    assert not server.adapters
    assert left[0] in server.unloaded
    assert not list((place / "served").iterdir())
    evomerge.search(*asked(place, tmp_path / "whole", server.url, "search.evaluations=6"))
    scores = [[event["objectives"]["score"] for event in told(each)] for each in (run, tmp_path / "whole")]
    assert scores[0] == pytest.approx(scores[1], abs=1e-6)


@pytest.mark.parametrize(
    ("space", "more", "words"),
    [
        (
            "ties",
            [],
            "search_space describes models that it cannot hold: tensor 'model.layers.0.self_attn.q_proj.weight'",
        ),
        ("ties", [], "ties gives no sum of the adapters' factors here; candidates that are adapters of their base"),
        ("data_flow", [], "candidates that are adapters of their base: weighted sums of adapters"),
        (
            "task_arithmetic",
            ["+pool.models.c={place}/other"],
            "the pool is none of adapters: model 'c' is a model of its own",
        ),
        ("task_arithmetic", ["fitness.truncation=true"], "truncation is True and evaluator.engine is server"),
        ("task_arithmetic", ["fitness.think_end_token=x"], "does not cut what a model thinks"),
        ("task_arithmetic", ["evaluator.server.key_from=NO_SUCH"], "there is no such environment variable"),
    ],
)
def test_what_no_server_holds_is_refused_before_it_is_asked(
    space: str, more: list[str], words: str, place: Path, tmp_path: Path
) -> None:
    if not (place / "other").is_dir():
        save_llama(place / "other", 5, layers=2)
    given = [word.format(place=place) if "{place}" in word else word for word in more]
    config = compose_config(asked(place, tmp_path / "run", "http://127.0.0.1:9", *given, space=space))
    with pytest.raises(EvomergeError) as found:
        build_parts(config)
    assert words in str(found.value)
    assert isinstance(found.value, ConfigError) or "fitness." in str(found.value)


def test_validate_counts_no_model(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from evomerge.cli.main import main

    assert main(["validate", *asked(place, tmp_path / "run", "http://127.0.0.1:9")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Python, its libraries and the items" in said
    assert "texts read" in said
    assert "forwards" not in said  # the server batches by itself
