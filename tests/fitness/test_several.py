"""Several fitnesses as one: names, scores, parts, estimates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from contracts.fitness_contract import FitnessContract
from tiny_classifiers import LABELS, rows, save_pool, write_rows

from evomerge.candidate import Candidate
from evomerge.config.compose import compose_config
from evomerge.config.trust import check_trust
from evomerge.errors import ConfigError, FitnessError
from evomerge.evaluation.worker import Worker
from evomerge.models.opening import open_pool
from evomerge.session.builders import check_fitnesses
from evomerge.session.switches import check_fitness_switches, is_headed
from fitness.classification import ClassificationFitness
from fitness.lm_eval_tasks import LmEvalFitness
from fitness.several import SeveralFitness
from fitness.unlabelled import UnlabelledFitness


@pytest.fixture
def make(tasks: Any, tmp_path: Path) -> Any:
    (tmp_path / "words.txt").write_text("".join(f"w{i} w{i + 1} w3 {'w5 ' * i}\n" for i in range(9)))
    text = {"file": str(tmp_path / "words.txt"), "metrics": {"perplexity": {"transform": "log"}}}

    def several() -> SeveralFitness:
        tasks_ = LmEvalFitness(
            [{"task": "choose"}, {"task": "complete", "metrics": {"acc": 1.0}, "objective": "words"}],
            include_path=str(tasks.path),
        )
        return SeveralFitness({"skill": tasks_, "fluency": UnlabelledFitness({"raw": text})})

    return several


class TestSeveralContract(FitnessContract):
    """A stock fitness and one without labels."""

    @pytest.fixture
    def make(self, make: Any) -> Any:
        return make


def test_scores_are_those_of_the_parts(make: Any, load: Any, tasks: Any, tmp_path: Path) -> None:
    model = load()
    several = make()
    several.check()
    several.prepare(model)
    found = several.run(model)
    assert [(o.name, o.direction) for o in several.objectives] == [
        ("skill", "maximize"), ("words", "maximize"), ("fluency", "maximize")
    ]  # fmt: skip
    alone = LmEvalFitness(["choose"], include_path=str(tasks.path))
    alone.prepare(model)
    scores = alone.run(model)
    assert found.objectives["skill"] == scores.objectives["score"]
    assert found.metrics["choose/acc"] == scores.metrics["choose/acc"]
    assert found.objectives["fluency"] == pytest.approx(-found.items["raw/perplexity"].mean())
    assert set(several.items()) == {"choose", "complete", "raw"}
    shares = {share.metric: (share.objective, share.direction) for share in several.shares()}
    assert shares == {
        "choose/acc": ("skill", "maximize"),
        "complete/acc": ("words", "maximize"),
        "raw/perplexity": ("fluency", "minimize"),
    }
    estimator = several.build_estimator()
    estimator.fit([found.items])
    for name, value in found.objectives.items():
        assert estimator.estimate(found.items)[name].value == pytest.approx(value, rel=1e-9)
        assert estimator.difference(found.items, found.items)[name].value == 0.0
    by_item = estimator.by_item(found.items, found.items)
    assert {name: set(own) for name, own in by_item.items()} == {
        "skill": {"choose/acc"}, "words": {"complete/acc"}, "fluency": {"raw/perplexity"}
    }  # fmt: skip
    with pytest.raises(FitnessError, match="did you mean 'choose'"):
        several.run(model, {"chose": [0]})


def test_names_that_meet(tasks: Any, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("w1 w2\n")

    def text(**more: Any) -> UnlabelledFitness:
        return UnlabelledFitness({"a": {"file": str(tmp_path / "a.txt"), **more}})

    with pytest.raises(ConfigError, match=r"parts.one and parts.two both have the objective 'drift'"):
        SeveralFitness({"one": text(objective="drift"), "two": text(objective="drift")})
    with pytest.raises(FitnessError, match=r"parts.one and parts.two both have items of 'a'"):
        SeveralFitness({"one": text(), "two": text()}).check()
    with pytest.raises(ConfigError, match=r"parts\.one is 3; a fitness"):
        SeveralFitness({"one": 3})  # type: ignore[dict-item]
    with pytest.raises(ConfigError, match="a fitness for each name"):
        SeveralFitness({})


def test_one_that_cannot_count_its_items_keeps_all_from_it(make: Any) -> None:
    class Own:
        objectives = make().objectives[2:]
        prepare = run = fingerprint = check = cautions = None

    assert hasattr(make(), "items")
    assert not hasattr(make(), "references") or make().references is not None
    several = SeveralFitness({"own": Own()})  # type: ignore[dict-item]
    assert not any(hasattr(several, name) for name in ("items", "shares", "documents", "build_estimator", "refer"))


def test_code_of_tasks_in_parts_is_asked_for(tmp_path: Path) -> None:
    task = tmp_path / "evil.yaml"
    task.write_text("task: evil\ndataset_path: json\ndoc_to_text: !function helper.run\n")
    text = {"_target_": "fitness.unlabelled.UnlabelledFitness", "texts": {"a": {"task": str(task)}}}
    several = {"_target_": "fitness.several.SeveralFitness", "parts": {"x": text}}
    for node, key in ((text, "fitness"), (several, "fitness.parts.x")):
        with pytest.raises(ConfigError, match="is not run unasked"):
            check_trust({"fitness": node}, [], "the configuration")
        check_trust({"fitness": node}, [f"{key}.texts={{a: {{task: {task}}}}}"], "the configuration")


def test_options_compose_below_one_another() -> None:
    words = ["fitness=several", "+fitness@fitness.parts.a=lm_eval", "+fitness@fitness.parts.b=unlabelled"]
    parts: Any = compose_config(words).fitness.parts
    assert parts.a.forwards == "auto"
    assert parts.b.reference_size == "1GB"


def test_parts_with_heads_score_as_one_fitness_does(tmp_path: Path) -> None:
    """A task and its head in each: the metrics of the one fitness, an objective for each part."""
    folder, tasks = save_pool(tmp_path / "models"), []
    for seed, (task, labels) in enumerate(LABELS.items()):
        path = tmp_path / f"{task}.jsonl"
        write_rows(path, rows(labels, 20, seed))
        tasks.append({"task": task, "file": str(path), "head": task, "metrics": "f1"})
    pool = open_pool({name: str(folder / name) for name in ("base", *LABELS)}, base="base")
    one = ClassificationFitness(tasks)
    several = SeveralFitness({f"by_{own['task']}": ClassificationFitness([own]) for own in tasks})
    names = tuple(LABELS)
    check_fitness_switches(several, "fitness", names, has_head=is_headed(several))
    recipe = pool.info.linear(dict.fromkeys(LABELS, 0.5))
    found = []
    for fitness in (one, several):
        check_fitnesses(fitness, pool=pool)
        found.append(Worker(pool, {"search": fitness}, device="cpu").evaluate(Candidate(0, recipe)))
        assert found[-1].ok, found[-1].error
    assert dict(found[1].metrics) == dict(found[0].metrics)
    assert found[1].objectives == {f"by_{task}": found[0].metrics[f"{task}/f1"] for task in LABELS}
    wrong = SeveralFitness({"mood": ClassificationFitness([{**tasks[0], "head": "moods"}])})
    with pytest.raises(ConfigError, match=r"fitness\.parts\.mood\.tasks\[0\]\.head is 'moods'; did you mean 'mood'"):
        check_fitness_switches(wrong, "fitness", names, has_head=True)
