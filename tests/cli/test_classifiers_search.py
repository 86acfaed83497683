"""A search over classifiers with heads of their own: scored, resumed, written, read by transformers' pipeline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sklearn.metrics import f1_score
from tiny_classifiers import LABELS, rows, save_pool, write_rows
from transformers import pipeline

from evomerge.cli.main import main
from evomerge.run.ledger import read_ledger


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_pool(tmp_path_factory.mktemp("classifiers"))
    for seed, (task, labels) in enumerate(LABELS.items()):
        write_rows(folder / f"{task}.jsonl", rows(labels, 40, seed))
    return folder


def words(pool: Path, *more: str) -> list[str]:
    tasks = ", ".join(
        f"{{task: {t}, file: '{pool / t}.jsonl', head: {t}, metrics: {{f1: 1, loss: 0.1}}}}" for t in LABELS
    )
    split = "{held_out: 0.4}"
    return [
        *("fitness=classification", f"fitness.tasks=[{tasks}]", "fitness.part=search", f"fitness.split={split}"),
        *("fitness@held_out=classification", f"held_out.tasks=[{tasks}]", "held_out.part=held_out"),
        *(f"held_out.split={split}", "pool.models={base: base, mood: mood, topic: topic}", "pool.base=base"),
        *(f"pool.root='{pool}'", "search_space.layer_group=all", "search_space.components=all", "strategy.popsize=3"),
        *("search.racing.first=null", "display=quiet", *more),
    ]


@pytest.fixture(scope="module")
def run(pool: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert main(["search", *words(pool, "search.evaluations=6", f"run_dir='{folder}'")]) == 0
    return folder


def told(folder: Path, split: str = "search") -> list[dict[str, Any]]:
    events = [event for event in read_ledger(folder) if event["event"] == "told" and event["split"] == split]
    return [{key: event[key] for key in ("candidate", "status", "objectives", "metrics")} for event in events]


def test_folders_of_all_tasks_give_the_numbers_of_the_search_in_a_pipeline(
    run: Path, pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(run), "--held-out", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["metrics"]
    assert found in [event["metrics"] for event in told(run, "held_out")]
    assert main(["merge", str(run), str(tmp_path / "all"), "--all-tasks"]) == 0
    said = capsys.readouterr().out
    assert "the encoder, " in said
    assert "  topic: its head, " in said
    assert main(["merge", str(run), str(tmp_path / "topic"), "--task", "topic"]) == 0
    from fitness.classification import ClassificationFitness

    for task in LABELS:
        own = {"task": task, "file": str(pool / f"{task}.jsonl")}
        items = ClassificationFitness([own], part="held_out", split={"held_out": 0.4}).texts(100)[task]
        for folder in (tmp_path / "all" / task, *([tmp_path / "topic"] if task == "topic" else [])):
            read = pipeline("text-classification", model=str(folder))([item["prompt"] for item in items])
            labels = [item["target"] for item in items]
            score = f1_score(labels, [own["label"] for own in read], labels=sorted(set(labels)), average="macro")
            assert score == pytest.approx(found[f"{task}/f1"], abs=1e-12)
    one = f"fitness.tasks=[{{task: topic, file: '{pool}/topic.jsonl', metrics: f1}}]"
    how = ["fitness=classification", one, "fitness.part=held_out", "fitness.split={held_out: 0.4}"]
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "topic"), *how, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"]["topic/f1"] == pytest.approx(found["topic/f1"], abs=1e-12)


def test_a_run_is_resumed_as_if_it_had_not_stopped(run: Path, pool: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert main(["search", *words(pool, "search.evaluations=3", f"run_dir='{folder}'")]) == 0
    assert main(["resume", str(folder), "search.evaluations=6", "--quiet"]) == 0
    assert told(folder) == told(run)
    assert main(["report", str(folder), "--out", str(tmp_path / "report.html")]) == 0
    assert "the heads of mood and topic are carried" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["fitness.tasks.0.head=moods"], "fitness.tasks[0].head is 'moods'; did you mean 'mood'?"),
        (["pool.heads=null"], "all models of a pool share one architecture"),
        (["pool.heads=clasifier*"], "pool.heads has 'clasifier*'"),
        (
            ["held_out.tasks.1.file=nowhere.jsonl"],
            "held_out.tasks.topic.file names 'nowhere.jsonl', which is not there",
        ),
        (["held_out.part=search"], "items of the search"),
    ],
)
def test_what_does_not_fit_is_said_before_the_search(
    pool: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, given: list[str], said: str
) -> None:
    assert main(["search", *words(pool, f"run_dir='{tmp_path / 'run'}'", *given)]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
