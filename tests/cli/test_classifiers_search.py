"""A search over classifiers with heads of their own: scored, resumed, written, read by transformers' pipeline."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score
from tiny_classifiers import LABELS, rows, save, save_pool, write_rows
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoTokenizer, pipeline

import evomerge
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
    assert main(["evaluate", str(run), "--held-out", "--json", "--task", "topic"]) == 0
    of_one = json.loads(capsys.readouterr().out)["metrics"]
    assert of_one.items() >= {name: value for name, value in found.items() if name.startswith("topic/")}.items()
    assert not [name for name in of_one if name.startswith("mood/")]
    assert main(["evaluate", str(run), "--held-out", "--task", "topics"]) == 2
    assert "has no task 'topics'; did you mean 'topic'?" in capsys.readouterr().err
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


def test_the_folder_of_all_tasks_is_scored_as_the_run_is(
    run: Path, pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["merge", str(run), str(tmp_path / "all"), "--all-tasks"]) == 0
    assert main(["evaluate", str(run), "--held-out", "--json"]) == 0
    wanted = json.loads(capsys.readouterr().out.partition("\n{")[2].join("{ "))["metrics"]
    how = [word for word in words(pool) if word.startswith("fitness")]
    how = [word.replace("part=search", "part=held_out") for word in how if "@" not in word]
    assert main(["evaluate", str(tmp_path / "all"), *how, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["metrics"]
    assert found == pytest.approx(wanted, abs=1e-12)
    assert main(["evaluate", str(tmp_path / "all"), *how, "--json", "--task", "topic"]) == 0
    of_one = json.loads(capsys.readouterr().out)["metrics"]
    assert of_one == {name: value for name, value in found.items() if name.startswith("topic/")}
    assert main(["evaluate", str(tmp_path / "all"), *how, "--task", "topics"]) == 2
    assert "did you mean 'topic'?" in capsys.readouterr().err
    assert main(["merge", str(tmp_path / "all"), str(tmp_path / "again")]) == 2
    assert f"the recipe that this folder was made by is {tmp_path / 'all'}" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "all" / "topic")
    assert main(["evaluate", str(tmp_path / "all"), *how]) == 2
    assert "holds a model for each task, and that of topic is missing" in capsys.readouterr().err


def test_mergekit_refuses_heads_and_what_to_do_is_said(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(run), "--format", "mergekit"]) == 2
    said = capsys.readouterr().err
    assert "the recipe has heads of their own (mood, topic)" in said
    assert "`evomerge merge RUN OUT --task NAME` writes a task's model, with --all-tasks those of all" in said


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


KEYS = {"two": range(4, 6), "five": range(6, 11), "nine": range(11, 20)}
"""By task the words that tell its labels, a word for each; words from 20 on say nothing."""


def keyed(task: str, count: int, seed: int) -> list[dict[str, Any]]:
    """Texts of 4 to 7 words, one of which is a key of the task; its keys are the labels."""
    rng, found = np.random.default_rng(seed), []
    for _ in range(count):
        words = rng.integers(20, 40, rng.integers(4, 8))
        key = int(rng.choice(list(KEYS[task])))
        words[rng.integers(len(words))] = key
        found.append({"text": " ".join(f"w{word}" for word in words), "label": f"w{key}"})
    return found


def train(folder: Path) -> None:
    """A start, and from it a classifier for each task."""
    save(folder / "base", 0)
    for seed, (task, keys) in enumerate(KEYS.items()):
        labels = [f"w{key}" for key in keys]
        save(folder / task, seed + 1, labels)
        model = AutoModelForSequenceClassification.from_pretrained(folder / task)
        start = AutoModelForMaskedLM.from_pretrained(folder / "base").bert.state_dict()
        model.bert.load_state_dict(start, strict=False)
        tokenizer = AutoTokenizer.from_pretrained(folder / task)
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        for step in range(100):  # without dropout: the same models every time
            batch = keyed(task, 32, 1000 * seed + step)
            inputs = tokenizer([row["text"] for row in batch], padding=True, return_tensors="pt")
            loss = model(**inputs, labels=torch.tensor([labels.index(row["label"]) for row in batch])).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        model.save_pretrained(folder / task)
        write_rows(folder / f"{task}-search.jsonl", keyed(task, 60, 7))
        write_rows(folder / f"{task}-held_out.jsonl", keyed(task, 200, 8))


def test_a_search_finds_an_encoder_for_all_heads_where_an_average_has_none(tmp_path: Path) -> None:
    train(tmp_path)
    given = ["pool.models={base: base, two: two, five: five, nine: nine}", "pool.base=base", f"pool.root='{tmp_path}'"]
    for node, part in (("fitness", "search"), ("held_out", "held_out")):
        own = [f"{{task: {t}, file: '{tmp_path / t}-{part}.jsonl', head: {t}, metrics: f1}}" for t in KEYS]
        group = node if node == "fitness" else f"fitness@{node}"
        given += [f"{group}=classification", f"{node}.tasks=[{', '.join(own)}]"]
    how = [*given, "search_space.layer_group=all", "search_space.components=all"]
    few = ["search.evaluations=40", "strategy.popsize=8", "search.racing.first=null", "display=quiet"]
    assert main(["search", *how, *few, f"run_dir='{tmp_path / 'run'}'"]) == 0
    summary = evomerge.open_run(tmp_path / "run").summary
    found = summary.against["uniform average"]
    assert summary.split == "held_out"
    assert found.difference > 0.05
    assert found.p_value < 0.01
