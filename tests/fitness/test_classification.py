"""Labelled texts: metrics beside scikit-learn and scipy, values of items, files, labels, heads and parts."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
import torch
from contracts.fitness_contract import FitnessContract
from pyarrow import parquet
from scipy.stats import pearsonr
from sklearn.metrics import f1_score, matthews_corrcoef
from tiny_classifiers import LABELS, rows, save, save_pool, write_rows
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from evomerge.candidate import Candidate
from evomerge.errors import ConfigError, FitnessError
from evomerge.evaluation.worker import Worker
from evomerge.models.loaded import LoadedModel
from evomerge.models.opening import open_pool
from evomerge.models.pool import Pool
from evomerge.search.racing.joined import joined_items
from evomerge.session.builders import check_fitnesses
from evomerge.session.switches import check_switches
from fitness._classification import metrics as m
from fitness.classification import ClassificationFitness
from fitness.lm_eval_tasks import LmEvalFitness
from fitness.several import SeveralFitness

COUNTS = {"mood": 18, "topic": 25}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_pool(tmp_path_factory.mktemp("labelled"))
    for seed, (task, count) in enumerate(COUNTS.items()):
        write_rows(folder / f"{task}.jsonl", rows(LABELS[task], count, seed))
    return folder


@pytest.fixture(scope="module")
def pool(folder: Path) -> Pool:
    return open_pool({name: name for name in ("base", *LABELS)}, "base", folder, fingerprints=False)


def tasks(folder: Path, **more: Any) -> list[dict[str, Any]]:
    return [{"task": task, "file": str(folder / f"{task}.jsonl"), "head": task, **more} for task in LABELS]


def loaded(folder: Path) -> LoadedModel:
    module = AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return LoadedModel(module, tokenizer, torch.float32, torch.device("cpu"), str(folder))


class TestContract(FitnessContract):
    @pytest.fixture
    def make(self, folder: Path) -> Callable[[], ClassificationFitness]:
        task = {"task": "topic", "file": str(folder / "topic.jsonl"), "metrics": {"accuracy": 1.0, "loss": 0.5}}
        return lambda: ClassificationFitness([task])

    @pytest.fixture
    def load(self, folder: Path) -> Callable[[], LoadedModel]:
        return lambda: loaded(folder / "topic")


def one_by_one(folder: Path, task: str) -> np.ndarray[Any, Any]:
    """A source's own logits, text by text."""
    module = AutoModelForSequenceClassification.from_pretrained(folder / task)
    tokenizer = AutoTokenizer.from_pretrained(folder / task)
    texts = [json.loads(line)["text"] for line in (folder / f"{task}.jsonl").read_text().splitlines()]
    with torch.no_grad():
        found = [module(**tokenizer(text, return_tensors="pt")).logits[0].double() for text in texts]
    return torch.stack(found).numpy()


def test_each_source_is_scored_by_its_own_head_as_plain_transformers_does(pool: Pool, folder: Path) -> None:
    given = {"f1": 1.0, "accuracy": 0.5, "loss": 0.25}
    fitness = ClassificationFitness(tasks(folder, metrics=given), batch_tokens=30, per_class=True)
    worker = Worker(pool, {"search": fitness}, device="cpu")
    found = {task: worker.evaluate(Candidate(0, pool.info.linear({task: 1.0}))) for task in LABELS}
    for task, evaluation in found.items():
        assert evaluation.ok, evaluation.error
        logits = one_by_one(folder, task)
        gold = [json.loads(line)["label"] for line in (folder / f"{task}.jsonl").read_text().splitlines()]
        right = np.array([LABELS[task].index(label) for label in gold])
        predicted = logits.argmax(1)
        loss = torch.nn.functional.cross_entropy(torch.from_numpy(logits), torch.from_numpy(right))
        wanted = {
            "accuracy": (predicted == right).mean(),
            "loss": float(loss),
            "f1": f1_score(right, predicted, average="macro", labels=range(len(LABELS[task]))),
            "matthews": matthews_corrcoef(right, predicted),
        }
        by_class = f1_score(right, predicted, average=None, labels=range(len(LABELS[task])))
        wanted |= {f"f1 {label}": value for label, value in zip(LABELS[task], by_class, strict=True)}
        own = {name.partition("/")[2]: value for name, value in evaluation.metrics.items() if name.startswith(task)}
        assert own == pytest.approx(wanted, abs=1e-6)
        assert evaluation.items[f"{task}/f1"].mean() == pytest.approx(wanted["f1"], abs=1e-12)
        assert np.array_equal(evaluation.items[f"{task}/error"], np.where(predicted == right, 0, predicted + 1))
        assert evaluation.responses[task][:3] == [LABELS[task][number] for number in predicted[:3]]
    metrics = found["mood"].metrics
    score = np.mean([metrics[f"{t}/f1"] + 0.5 * metrics[f"{t}/accuracy"] - 0.25 * metrics[f"{t}/loss"] for t in LABELS])
    assert found["mood"].objectives == {"score": pytest.approx(score, abs=1e-12)}


def test_values_of_items_are_the_metric_and_its_derivative_by_their_weights() -> None:
    rng = np.random.default_rng(0)
    gold, predicted = rng.integers(0, 4, 40), rng.integers(0, 4, 40)
    x = rng.normal(size=40)
    y = x + rng.normal(size=40)

    def weighted_pearson(weights: Any) -> float:
        mean = lambda values: (weights * values).sum() / weights.sum()  # noqa: E731
        cov = lambda a, b: mean((a - mean(a)) * (b - mean(b)))  # noqa: E731
        return float(cov(x, y) / np.sqrt(cov(x, x) * cov(y, y)))

    of_weights: dict[str, tuple[Any, Callable[[Any], float]]] = {
        "f1": (m.f1(gold, predicted), lambda w: f1_score(gold, predicted, average="macro", sample_weight=w)),
        "matthews": (m.matthews(gold, predicted), lambda w: matthews_corrcoef(gold, predicted, sample_weight=w)),
        "pearson": (m.pearson(x, y), weighted_pearson),
    }
    assert m.pearson(x, y)[0] == pytest.approx(pearsonr(x, y).statistic)
    for name, ((value, items), metric) in of_weights.items():
        assert value == pytest.approx(metric(np.ones(40)), abs=1e-12), name
        assert items.mean() == pytest.approx(value, abs=1e-12), name
        for place in (0, 7, 39):
            step = np.zeros(40)
            step[place] = 1e-5
            slope = (metric(1 + step) - metric(1 - step)) / 2e-5  # of the sum of weights 40
            assert 40 * slope == pytest.approx(items[place] - value, abs=1e-6), (name, place)


def test_metrics_of_predictions_that_are_all_alike_are_defined() -> None:
    gold = np.array([0, 0, 1, 2])
    value, items = m.f1(gold, np.zeros(4, dtype=np.int64))
    assert value == pytest.approx((2 * 2 / (4 + 2)) / 3)
    assert items.mean() == pytest.approx(value)
    assert m.matthews(gold, np.zeros(4, dtype=np.int64))[0] == 0
    assert m.pearson(np.array([1.0, 2.0]), np.array([3.0, 3.0]))[0] == 0
    assert m.f1(np.array([0, 0]), np.array([1, 0]))[0] == pytest.approx(2 / 3), "class 1 is nobody's"


def test_parts_of_the_items_are_told_together_as_if_run_at_once(pool: Pool, folder: Path) -> None:
    fitness = ClassificationFitness(tasks(folder, metrics=["f1", "matthews"]), batch_tokens=40)
    check_fitnesses(fitness, pool=pool)
    worker = Worker(pool, {"search": fitness}, device="cpu")
    recipe = pool.info.linear({"mood": 0.5, "topic": 0.5})
    whole = worker.evaluate(Candidate(0, recipe))
    estimator = fitness.build_estimator()
    estimator.fit([])
    found: dict[str, Any] = {}
    for part in ({t: range(0, c, 2) for t, c in COUNTS.items()}, {t: range(1, c, 2) for t, c in COUNTS.items()}):
        one = worker.evaluate(Candidate(0, recipe, part=part))
        assert one.ok, one.error
        estimate = estimator.estimate(one.items)["score"]
        assert estimate.value == pytest.approx(one.objectives["score"], abs=1e-9)
        assert estimate.error > 0
        found = joined_items(found, one.items)
    joined = estimator.estimate(found)["score"]
    assert joined.value == pytest.approx(whole.objectives["score"], abs=1e-9)
    assert joined.error == 0
    source = worker.evaluate(Candidate(0, pool.info.linear({"mood": 1.0})))
    gain = estimator.difference(found, source.items)["score"]
    assert gain.value == pytest.approx(whole.objectives["score"] - source.objectives["score"], abs=1e-9)


def test_pairs_and_numbers_are_scored_with_one_output(tmp_path: Path) -> None:
    save(tmp_path / "like", 5, ("LABEL_0",), problem_type="regression")
    rng = np.random.default_rng(1)
    pairs = [{"one": f"w{a} w{b}", "two": f"w{b}", "score": float(a) / 7} for a, b in rng.integers(4, 40, (15, 2))]
    table = pyarrow.Table.from_pylist(pairs)
    parquet.write_table(table, tmp_path / "like.parquet")
    task = {"task": "like", "file": str(tmp_path / "like.parquet"), "text": "one", "pair": "two", "label": "score"}
    fitness = ClassificationFitness([{**task, "metrics": ["pearson", "squared_error"]}])
    model = loaded(tmp_path / "like")
    fitness.check()
    fitness.check_labels(lambda head: model.module.config.id2label)
    fitness.prepare(model)
    found = fitness.run(model)
    with torch.no_grad():
        outputs = [
            float(model.module(**model.tokenizer(row["one"], row["two"], return_tensors="pt")).logits) for row in pairs
        ]
    gold = np.array([row["score"] for row in pairs])
    assert found.metrics["like/pearson"] == pytest.approx(pearsonr(gold, outputs).statistic, abs=1e-5)
    assert found.metrics["like/squared_error"] == pytest.approx(np.square(gold - outputs).mean(), abs=1e-5)
    assert found.objectives["score"] == found.metrics["like/pearson"] - found.metrics["like/squared_error"]
    assert found.items["like/error"] == pytest.approx(np.array(outputs) - gold, abs=1e-5)
    with pytest.raises(FitnessError, match=r"has pearson, and the head of the model has 2 outputs; .*one output"):
        fitness.check_labels(lambda head: {0: "a", 1: "b"})


def test_csv_and_numbers_of_classes_are_the_same_items_as_json_lines(folder: Path, tmp_path: Path) -> None:
    own = rows(LABELS["topic"], 25, 1)
    with (tmp_path / "topic.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["sentence", "class"])
        writer.writeheader()
        writer.writerows({"sentence": row["text"], "class": LABELS["topic"].index(row["label"])} for row in own)
    german = {"Kunst": "arts", "Recht": "law"}
    back = {name: other for other, name in german.items()}
    write_rows(tmp_path / "german.jsonl", [row | {"label": back.get(row["label"], row["label"])} for row in own])
    model, found = loaded(folder / "topic"), []
    for task in (
        {"file": str(folder / "topic.jsonl")},
        {"file": str(tmp_path / "topic.csv"), "text": "sentence", "label": "class"},
        {"file": str(tmp_path / "german.jsonl"), "labels": german},
    ):
        fitness = ClassificationFitness([{"task": "topic", "metrics": "f1", **task}])
        fitness.prepare(model)
        found.append(fitness.run(model))
    assert found[0].metrics == found[1].metrics == found[2].metrics


def test_a_text_lies_in_one_part_however_often_it_occurs(folder: Path, tmp_path: Path) -> None:
    own = rows(LABELS["topic"], 60, 3)
    file = write_rows(tmp_path / "all.jsonl", [*own, *own])
    split = {"held_out": 0.4, "validation": 0.2, "seed": 3}
    texts: dict[str, set[str]] = {}
    for part in ("search", "validation", "held_out"):
        fitness = ClassificationFitness([{"task": "topic", "file": file}], part=part, split=split)
        assert fitness.items()["topic"] % 2 == 0
        texts[part] = {row["prompt"] for row in fitness.texts(1000)["topic"]}
    assert sum(map(len, texts.values())) == len({row["text"] for row in own})
    assert len(texts["held_out"]) > len(texts["validation"]) > 3
    documents = {
        part: set(ClassificationFitness([{"task": "t", "file": file}], part=part, split=split).documents())
        for part in texts
    }
    assert not documents["search"] & documents["held_out"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"tasks": []}, r"tasks is '\[\]'; a list of tasks"),
        ({"tasks": [{"task": "a"}]}, r"tasks\[0\] has no file"),
        ({"metrics": "f2"}, r"tasks\[0\].metrics has 'f2'; .*f1"),
        ({"metrics": ["f1", "pearson"]}, "of classes accuracy, f1"),
        ({"metrics": {"f1": -1}}, "metrics.f1 is -1; a number above 0"),
        ({"metrics": "per_class"}, r"tasks\[0\].metrics has 'per_class'; .*; per_class: true beside metrics tells"),
        ({"per_class": "yes"}, r"tasks\[0\].per_class is 'yes'; true or false"),
        ({"per_class": True, "metrics": "pearson"}, r"tasks\[0\].per_class is true, and its metrics are of numbers"),
        ({"metric": "f1"}, r"tasks\[0\] has no key 'metric'; .*metrics"),
        ({"weight": 0}, r"tasks\[0\].weight is 0"),
        ({"limit": 0}, r"tasks\[0\].limit is 0"),
        ({"objective": "a b"}, r"tasks\[0\].objective is 'a b'"),
        ({"part": "test"}, "part is 'test'; .*search"),
        ({"part": "held_out"}, "part is 'held_out', of which split says nothing"),
        ({"split": {"held_out": 0.5}}, "split is given without a part"),
        ({"split": {"heldout": 0.5}}, "split has no key 'heldout'"),
        ({"split": {"held_out": 1.0}}, "shares from 0 that leave something"),
        ({"batch_tokens": 0}, "batch_tokens is 0"),
        ({"max_length": "long"}, "max_length is 'long'"),
    ],
)
def test_arguments_that_mean_nothing_are_named(change: dict[str, Any], said: str) -> None:
    task = {"task": "mood", "file": "mood.jsonl"}
    whole = {"tasks", "part", "split", "batch_tokens", "max_length"}
    own = {key: value for key, value in change.items() if key not in whole}
    rest = {key: value for key, value in change.items() if key in whole}
    with pytest.raises(ConfigError, match=said):
        ClassificationFitness(**{"tasks": [task | own], **rest})


@pytest.mark.parametrize("key", ["part", "split", "batch_tokens", "max_length"])
def test_what_holds_for_all_tasks_is_no_key_of_one(key: str) -> None:
    with pytest.raises(ConfigError, match=rf"tasks\[0\] has the key '{key}', which holds for all.*{key}=\.\.\. beside"):
        ClassificationFitness([{"task": "mood", "file": "mood.jsonl", key: 3}])


def test_one_task_of_several_tells_the_f1_of_each_class(pool: Pool, folder: Path) -> None:
    found = {}
    for given, whole in ((None, True), (True, False), (False, True)):
        own = tasks(folder, metrics="f1")
        own[0] |= {} if given is None else {"per_class": given}
        worker = Worker(pool, {"search": ClassificationFitness(own, per_class=whole)}, device="cpu")
        metrics = worker.evaluate(Candidate(0, pool.info.linear({"topic": 1.0}))).metrics
        found[given] = {name: value for name, value in metrics.items() if "/f1 " in name}
    one, other = ({name for name in found[None] if name.startswith(f"{task}/")} for task in LABELS)
    assert (len(one), len(other)) == tuple(len(own) for own in LABELS.values())
    assert found[True].keys() == one
    assert found[False].keys() == other
    assert found[None] == found[True] | found[False]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.jsonl", '{"text": "w5", "label": "good"}\n{"text": " ", "label": "bad"}', "line 2: its text is ' '"),
        ("a.jsonl", '{"txt": "w5", "label": "good"}', "line 1 has no 'text'; .*txt"),
        ("a.jsonl", '{"text": "w5", "label": 0.5}', "its label is '0.5'; a label"),
        ("a.jsonl", '{"text": "w5", "label": "goood"}', "has the label 'goood'.*id2label has bad, good.*labels"),
        ("a.jsonl", '{"text": "w5", "label": 2}', "has the label '2', which the model of mood does not have"),
        ("a.csv", "text,label\nw5,good\nw6\n", "row 2 has another number of cells"),
        ("a.parquet", "no table", "a.parquet cannot be read"),
        ("a.txt", "w5", "a file .jsonl, .csv, .tsv or .parquet"),
        ("a.jsonl", "\n", "has no texts"),
    ],
)
def test_files_that_hold_something_else_are_named(pool: Pool, tmp_path: Path, name: str, text: str, said: str) -> None:
    (tmp_path / name).write_text(text)
    task = {"task": "mood", "file": str(tmp_path / name), "head": "mood"}
    with pytest.raises(FitnessError, match=said):
        check_fitnesses(ClassificationFitness([task]), pool=pool)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ({"godo": "bad"}, r"tasks.mood.labels has 'godo', a label of no row of .*did you mean 'good'"),
        (
            {"good": "bda"},
            r"tasks.mood.labels says that 'good' is 'bda', which the model of mood does not .*mean 'bad'",
        ),
    ],
)
def test_a_slip_in_what_labels_are_called_is_named(pool: Pool, folder: Path, labels: dict[str, str], said: str) -> None:
    task = {"task": "mood", "file": str(folder / "mood.jsonl"), "head": "mood", "labels": labels}
    for part in ({}, {"part": "held_out", "split": {"held_out": 0.2}}):
        with pytest.raises(FitnessError, match=said):
            check_fitnesses(ClassificationFitness([task], **part), pool=pool)


def test_a_part_without_a_label_that_is_translated_is_no_slip(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.jsonl", [{"text": f"w{n}", "label": "bad" if n else "gut"} for n in range(9)])
    task = {"task": "mood", "file": str(tmp_path / "a.jsonl"), "labels": {"gut": "good"}}
    for part in ("search", "held_out"):
        found = ClassificationFitness([task], part=part, split={"held_out": 0.5}).texts(9)["mood"]
        assert 0 < len(found) < 9
    assert len(ClassificationFitness([{**task, "labels": {"bad": "good"}, "limit": 1}]).texts(9)["mood"]) == 1


@pytest.mark.parametrize("metric", ["pearson", "spearman", "squared_error"])
def test_labels_that_are_all_alike_correlate_with_nothing(tmp_path: Path, metric: str) -> None:
    write_rows(tmp_path / "a.jsonl", [{"text": f"w{n}", "label": 2.5} for n in range(3)])
    fitness = ClassificationFitness([{"task": "likeness", "file": str(tmp_path / "a.jsonl"), "metrics": metric}])
    if metric == "squared_error":
        assert len(fitness.texts(9)["likeness"]) == 3
        return
    with pytest.raises(FitnessError, match=r"a.jsonl has 2.5 for a label in every row that counts; two different ones"):
        fitness.texts(9)


def test_of_one_class_matthews_coefficient_is_0_whatever_a_model_does(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "a.jsonl", [{"text": f"w{n}", "label": "bad" if n else "poor"} for n in range(4)])
    task = {"task": "mood", "file": file, "metrics": "matthews"}
    assert len(ClassificationFitness([task]).texts(9)["mood"]) == 4
    for more in ({"limit": 1}, {"labels": {"poor": "bad"}}):
        with pytest.raises(
            FitnessError, match=r"a.jsonl has '\w+' for a label in every row that counts; two different"
        ):
            ClassificationFitness([{**task, **more}]).texts(9)
    assert len(ClassificationFitness([{**task, "limit": 1, "metrics": "f1"}]).texts(9)["mood"]) == 1


@pytest.mark.parametrize("columns", [{"pair": "label"}, {"pair": "text"}, {"text": "kind", "label": "kind"}])
def test_a_model_does_not_read_what_it_is_to_find_out(columns: dict[str, str]) -> None:
    with pytest.raises(
        ConfigError, match=r"tasks\[0\]\.\w+ is '\w+', which is the column of (text|pair); another column"
    ):
        ClassificationFitness([{"task": "mood", "file": "a.jsonl", **columns}])


def test_tasks_of_written_texts_are_not_for_heads_of_classifiers(folder: Path) -> None:
    parts = {"mood": ClassificationFitness(tasks(folder)[:1]), "lm": LmEvalFitness(["gsm8k"])}
    said = r"fitness.parts.lm.tasks\[0\] \(gsm8k\) is for models that write texts, .* mood; fitness=classification"
    with pytest.raises(ConfigError, match=said):
        check_switches(SeveralFitness(parts), None, (), heads=("mood",))


def test_every_task_names_a_head_that_the_pool_has(folder: Path) -> None:
    named, unnamed = ClassificationFitness(tasks(folder)), ClassificationFitness(tasks(folder, head=None))
    check_switches(named, None, (), heads=("mood", "topic"))
    check_switches(unnamed, None, ())
    for fitness, heads, said in (
        (named, ("mood", "topics"), r"fitness.tasks\[1\].head is 'topic'; .*topics"),
        (unnamed, ("mood",), r"fitness.tasks\[0\] \(mood\) has no head; the source whose own head is on: mood"),
        (named, (), r"fitness.tasks\[0\].head is 'mood', and the models have no head; .*pool.heads"),
        (object(), ("mood",), "fitness scores a model in one piece, and candidates have a head for mood"),
    ):
        with pytest.raises(ConfigError, match=said):
            check_switches(fitness, None, (), heads=heads)


def test_long_texts_rare_classes_and_unknown_words_are_said(pool: Pool, tmp_path: Path) -> None:
    own = [*rows(("bad",), 6, 0), {"text": "zebra " * 60, "label": "good"}]
    task = {"task": "mood", "file": write_rows(tmp_path / "mood.jsonl", own), "head": "mood"}
    fitness = ClassificationFitness([task], max_length=16)
    check_fitnesses(fitness, pool=pool)
    said = "\n".join(fitness.cautions())
    assert "tasks.mood: 1 of 7 texts are longer than the model reads, and are cut" in said
    assert "classes with fewer than 5 items tell little: good (1)" in said
    assert "are unknown to the tokenizer" in said


def test_fingerprints_tell_items_labels_and_metrics_apart_and_not_places(folder: Path, tmp_path: Path) -> None:
    model, found = loaded(folder / "topic"), []
    own = rows(LABELS["topic"], 25, 1)
    for number, (change, metrics) in enumerate(
        (({}, "f1"), ({}, "f1"), ({"label": "news"}, "f1"), ({"text": "w9 w9"}, "f1"), ({}, "accuracy"))
    ):
        file = write_rows(tmp_path / f"{number}.jsonl", [own[0] | change, *own[1:]])
        fitness = ClassificationFitness([{"task": "topic", "file": file, "metrics": metrics}])
        fitness.prepare(model)
        found.append(fitness.fingerprint())
    assert found[0] == found[1]
    assert len(set(found)) == 4
