"""What a model answered: in lm-eval's own files, and in words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from lm_eval.loggers import EvaluationTracker

from evomerge.errors import FitnessError
from fitness.lm_eval_tasks import LmEvalFitness

ALL = ["choose", "complete", "read", "write"]


def scored(tasks: Any, model: Any, **settings: Any) -> LmEvalFitness:
    fitness = LmEvalFitness(ALL, include_path=str(tasks.path), **settings)
    fitness.prepare(model)
    fitness.run(model)
    return fitness


def lines(folder: Path, task: str) -> list[dict[str, Any]]:
    (file,) = folder.rglob(f"samples_{task}_*.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()]


def table(folder: Path) -> dict[str, Any]:
    (file,) = folder.rglob("results_*.json")
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def test_the_files_are_those_that_lm_eval_writes(stock: Any, model: Any, tasks: Any, tmp_path: Path) -> None:
    files = scored(tasks, model, limit=6).write_samples(tmp_path / "ours", "me/mine")
    assert {file.parent for file in files} == {tmp_path / "ours" / "me__mine"}
    results = stock(ALL, limit=6, bootstrap_iters=100_000)
    tracker = EvaluationTracker(output_path=str(tmp_path / "stock"))
    tracker.general_config_tracker.log_experiment_args("hf", {"pretrained": "me/mine"}, None, None, True)
    samples = results.pop("samples")
    tracker.save_results_aggregated(results=results, samples=samples)
    for name, of_task in samples.items():
        tracker.save_results_samples(task_name=name, samples=of_task)
        assert lines(tmp_path / "ours", name) == lines(tmp_path / "stock", name)
    own, expected = table(tmp_path / "ours"), table(tmp_path / "stock")
    for key in ("results", "versions", "n-shot", "higher_is_better", "n-samples", "task_hashes", "model_name"):
        assert own[key] == expected[key], key
    assert own["config"]["limit"] == 6


def test_a_second_time_adds_files_and_takes_none_away(model: Any, tasks: Any, tmp_path: Path) -> None:
    fitness = scored(tasks, model, limit=2)
    first = fitness.write_samples(tmp_path, "m")
    second = fitness.write_samples(tmp_path, "m")
    assert len({*first, *second}) == 2 * (1 + len(ALL))
    assert all(path.is_file() for path in (*first, *second))
    assert not list(tmp_path.glob(".samples-*"))


def test_a_folder_that_is_a_file_is_one_line(model: Any, tasks: Any, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(FitnessError, match="taken cannot be written: "):
        scored(tasks, model, limit=2).write_samples(tmp_path / "taken", "m")


def test_responses_are_words(model: Any, tasks: Any) -> None:
    fitness = LmEvalFitness(ALL, include_path=str(tasks.path), limit=5)
    fitness.prepare(model)
    scores = fitness.run(model)
    assert {name: len(texts) for name, texts in scores.responses.items()} == dict.fromkeys(ALL, 5)
    assert fitness._tasks is not None
    for place, text in enumerate(scores.responses["choose"]):
        instances = fitness._ready().scorers["choose"].documents[place]
        assert text == max(instances, key=lambda i: i.resps[0][0]).args[1].strip()
        right = instances[0].doc["c"][instances[0].doc["gold"]] == text
        assert scores.items["choose/acc"][place] == right
    written = [instances[0].resps[0] for instances in fitness._ready().scorers["write"].documents]
    assert list(scores.responses["write"]) == written
    assert all(text.startswith("log-likelihood -") for text in scores.responses["read"])
    assert {text.split("gives ")[1] for text in scores.responses["complete"]} <= {"it", "something else"}


def test_items_that_were_not_run_have_no_response(model: Any, tasks: Any) -> None:
    fitness = LmEvalFitness(["choose"], include_path=str(tasks.path))
    fitness.prepare(model)
    whole = fitness.run(model).responses["choose"]  # of every item: the next run must not show these
    part = fitness.run(model, {"choose": range(0, 20, 2)})
    seen = [place for place, text in enumerate(part.responses["choose"]) if text]
    assert len(seen) == 10
    assert len(whole) == len(part.responses["choose"]) > 10


def test_whether_responses_are_kept_is_no_part_of_the_fingerprint(model: Any, tasks: Any) -> None:
    found = {scored(tasks, model, limit=2, keep_responses=keep).fingerprint() for keep in (False, True)}
    assert len(found) == 1
