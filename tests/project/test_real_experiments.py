"""The experiments for real clusters, on stand-ins: models of the same classes and depths with few numbers in them, and
their own tasks with made-up items. Names of tasks are looked up among those that lm-eval brings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_models import TinyModel

from evomerge import conf_dir
from evomerge.config.compose import compose_config
from evomerge.config.construct import to_builtin
from evomerge.merge.methods import specs
from evomerge.recipes.recipe import Recipe
from evomerge.session.parts import Parts, build_parts
from fitness.lm_eval_tasks import LmEvalFitness

KINDS = {
    "evollm_ja_math": ("mistral", {"num_hidden_layers": 32}),
    "evollm_ja_math_hybrid": ("mistral", {"num_hidden_layers": 32}),
    "m2n2_llm": ("llama", {"num_hidden_layers": 32}),
    "small_24gb": ("qwen2", {"num_hidden_layers": 28, "tie_word_embeddings": True}),
}
NUMBERS = ["3", "-18", "1,000"]
ROWS = {
    "gsm8k_ja_search": [{"question": "いくつ?", "answer": number} for number in NUMBERS],
    "gsm8k_train": [{"question": "How many?", "answer": f"So much.\n#### {number}"} for number in NUMBERS],
    "arc_train": [
        {"question": "Why?", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": key} for key in "ABA"
    ],
}


def offline(node: Any, folder: Path) -> dict[str, Any]:
    """A fitness's node whose own tasks read made-up items, without those that lm-eval brings."""
    settings = {key: value for key, value in to_builtin(node).items() if key != "_target_"}
    own = [entry for entry in settings["tasks"] if isinstance(entry["task"], dict)]
    for entry in own:
        task = entry["task"]
        file = folder / f"{task['task']}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in ROWS[task["task"]]))
        task.pop("dataset_name", None)
        split = task["test_split"]
        entry["task"] = task | {"dataset_path": "json", "dataset_kwargs": {"data_files": {split: str(file)}}}
    return settings | {"tasks": own}


@pytest.fixture(params=sorted(KINDS))
def experiment(request: pytest.FixtureRequest, tiny_model: TinyModel, tmp_path: Path) -> tuple[str, Any, Parts]:
    """A name, the configuration as it stands, and its parts on stand-ins."""
    name: str = request.param
    kind, overrides = KINDS[name]
    config: Any = compose_config([f"experiment={name}"])
    models = {
        key: str(tiny_model(key, kind, seed, dtype="bfloat16", **overrides))
        for seed, key in enumerate(config.pool.models)
    }
    tasks = json.dumps(offline(config.fitness, tmp_path)["tasks"], ensure_ascii=False)
    small: Any = compose_config([f"experiment={name}", "held_out=null"])
    small.pool.models = models
    small.fitness.tasks = json.loads(tasks)
    return name, config, build_parts(small)


GENES = {
    "evollm_ja_math": [6],  # a weight and a density for each of three models
    "evollm_ja_math_hybrid": [6, 2 * 32 * 3 - 2 + (2 * 32) ** 2],  # two slots are always taken
    "m2n2_llm": [1],  # a lineage
    "small_24gb": [3 * (4 + 1)],  # three models, four groups of layers, what comes before and after them
}


def test_the_search_is_the_one_that_is_announced(experiment: tuple[str, Any, Parts]) -> None:
    name, config, parts = experiment
    winner: Recipe | None = None
    for phase, genes in zip(parts.phases, GENES[name], strict=True):
        space = phase.space(winner)
        assert abs(len(space.spec) - genes) <= (64 if genes > 1000 else 0), (phase.name, len(space.spec))
        recipe = space.decode(space.spec.initial)
        assert recipe is not None
        recipe.check(specs())
        winner = recipe
        strategy = phase.strategy(space.spec, {})
        assert len(strategy.ask()) > 0
    assert sum(phase.evaluations for phase in parts.phases) == config.search.evaluations
    assert [objective.name for objective in parts.fitness.objectives] == ["score"]


@pytest.mark.parametrize("name", sorted(KINDS))
def test_answers_are_found_in_what_is_written(name: str, tmp_path: Path) -> None:
    config: Any = compose_config([f"experiment={name}"])
    settings = offline(config.fitness, tmp_path)
    fitness = LmEvalFitness(**settings)
    fitness.check()
    for task in fitness._loaded().tasks.values():
        documents = list(task.test_docs())
        if task.config.output_type == "multiple_choice":
            assert [task.doc_to_target(document) for document in documents] == [0, 1, 0]
            assert task.doc_to_choice(documents[0]) == ["a", "b"]
            continue
        assert [str(task.doc_to_target(document)) for document in documents] == NUMBERS
        assert task.doc_to_text(documents[0]).endswith("\nAnswer:")
        (chain,) = task._filters
        said = ["first 2, then it is 3.", "so -18", "it is 1000.00", "no number"]
        values = [[text] for text in said]
        for step in chain.filters:
            values = list(step().apply(values, documents))
        right = [task.process_results(d, [v])["exact_match"] for d, v in zip(documents, values, strict=False)]
        assert right == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("name", sorted(KINDS))
def test_tasks_that_are_named_exist(name: str) -> None:
    import lm_eval

    config: Any = compose_config([f"experiment={name}"])
    folder = Path(lm_eval.__file__).parent / "tasks"
    entries = [entry.task for node in (config.fitness, config.held_out) for entry in node.tasks]
    named = [task for task in entries if isinstance(task, str)]
    assert named
    for task in named:
        assert any(f"task: {task}\n" in file.read_text() for file in folder.rglob(f"{task}.yaml")), task


@pytest.mark.parametrize("name", sorted(KINDS))
def test_the_comment_says_what_it_costs(name: str) -> None:
    text = (conf_dir() / "experiment" / f"{name}.yaml").read_text()
    assert "GPU-hours" in text
    assert "evaluations: " in text


def test_the_arithmetic_of_the_comments() -> None:
    h100, l4 = 989e12, 121e12
    assert 2 * 1069 * 400 * 7.24e9 / (0.04 * h100) == pytest.approx(156, abs=1)
    assert pytest.approx(43, abs=1) == 1000 * 156 / 3600
    assert 2 * 200 * 400 * 7.24e9 / (0.04 * h100) == pytest.approx(29, abs=1)
    assert pytest.approx(142, abs=1) == 12_800 * 40 / 3600
    assert 2 * 6.74e9 * (0.46e6 / 0.04 + 0.12e6 / 0.3) / h100 == pytest.approx(162, abs=1)
    assert 2 * 1.54e9 * (0.10e6 / 0.04 + 0.04e6 / 0.25) / l4 == pytest.approx(68, abs=1)
