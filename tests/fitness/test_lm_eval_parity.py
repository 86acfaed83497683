"""The fitness against the stock tool: the same numbers, to the last bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from fitness_parity import assert_equal, responses

from fitness.lm_eval_tasks import LmEvalFitness

ALL = ["choose", "complete", "read", "write"]


@pytest.fixture(scope="module")
def plain(load: Any, tasks: Any) -> dict[str, list[Any]]:
    """The responses without any option."""
    fitness = LmEvalFitness(ALL, include_path=str(tasks.path))
    model = load()
    fitness.prepare(model)
    fitness.run(model)
    return responses(fitness)


@pytest.mark.parametrize("batch_size", [1, 7, 16])
def test_float32_equals_stock(stock: Any, model: Any, tasks: Any, batch_size: int) -> None:
    fitness = LmEvalFitness(ALL, include_path=str(tasks.path), batch_size=batch_size)
    fitness.prepare(model)
    assert_equal(fitness, fitness.run(model), stock(ALL, batch_size=batch_size))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_equals_stock_with_float32_softmax(stock: Any, load: Any, tasks: Any, dtype: str) -> None:
    model = load(getattr(torch, dtype))
    fitness = LmEvalFitness(ALL, include_path=str(tasks.path))
    fitness.prepare(model)
    assert_equal(fitness, fitness.run(model), stock(ALL, dtype, {"softmax_dtype": "float32"}))


def test_model_softmax_equals_stock_without_arguments(stock: Any, load: Any, tasks: Any) -> None:
    model = load(torch.bfloat16)
    fitness = LmEvalFitness(ALL, include_path=str(tasks.path), softmax_dtype="model")
    fitness.prepare(model)
    assert_equal(fitness, fitness.run(model), stock(ALL, "bfloat16"))


@pytest.mark.parametrize(
    ("ours", "theirs", "arguments"),
    [
        ({"num_fewshot": 2}, {"num_fewshot": 2}, {}),
        ({"num_fewshot": 1, "fewshot_seed": 5}, {"num_fewshot": 1, "fewshot_random_seed": 5}, {}),
        ({"limit": 5}, {"limit": 5}, {}),
        ({"limit": 0.3}, {"limit": 0.3}, {}),
        ({"apply_chat_template": True, "num_fewshot": 1}, {"apply_chat_template": True, "num_fewshot": 1}, {}),
        (
            {
                "apply_chat_template": True,
                "system_instruction": "w1 w2",
                "fewshot_as_multiturn": False,
                "num_fewshot": 1,
            },
            {
                "apply_chat_template": True,
                "system_instruction": "w1 w2",
                "fewshot_as_multiturn": False,
                "num_fewshot": 1,
            },
            {},
        ),
        ({"max_length": 20}, {}, {"max_length": 20}),
        ({"add_bos_token": True}, {}, {"add_bos_token": True}),
        ({"add_bos_token": False}, {}, {"add_bos_token": False}),
        ({"gen_kwargs": {"max_gen_toks": 3}}, {"gen_kwargs": {"max_gen_toks": 3}}, {}),
    ],
    ids=str,
)
def test_options_equal_stock(
    stock: Any,
    plain: Any,
    model: Any,
    tasks: Any,
    ours: dict[str, Any],
    theirs: dict[str, Any],
    arguments: dict[str, Any],
) -> None:
    names = ["choose", "complete", "write"] if "num_fewshot" in ours else ALL
    fitness = LmEvalFitness(names, include_path=str(tasks.path), **ours)
    fitness.prepare(model)
    assert_equal(fitness, fitness.run(model), stock(names, arguments=arguments, **theirs))
    if ours != {"add_bos_token": False}:  # which is what this tokenizer does by itself
        assert responses(fitness) != {name: plain[name] for name in names}, "the option made no difference"


def test_whole_configurations_equal_stock(stock: Any, model: Any, tasks: Any) -> None:
    """Tasks given as a path and as a configuration with its own rows, in an order of their own."""
    inline = {
        "task": "inline",
        "dataset_path": "rows",
        "custom_dataset": _rows,
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{q}}",
        "doc_to_choice": ["w1", "w2 w3"],
        "doc_to_target": "{{gold}}",
        "repeats": 2,
    }
    names = [str(tasks.path / "read.yaml"), dict(inline), "choose"]
    fitness = LmEvalFitness([names[0], {"task": dict(inline)}, "choose"], include_path=str(tasks.path), batch_size=8)
    fitness.prepare(model)
    assert_equal(fitness, fitness.run(model), stock(names, batch_size=8))


def test_tasks_that_use_the_global_generators_equal_stock(stock: Any, model: Any, tasks: Any) -> None:
    (tasks.path / "chance.py").write_text(
        "import random\nimport numpy as np\n"
        "def text(doc):\n    return f\"{doc['q']} w{random.randrange(40)} w{np.random.randint(40)} :\"\n"
    )
    config = (tasks.path / "complete.yaml").read_text().replace("task: complete", "task: chance")
    config = config.replace("'{{q}} :'", "!function chance.text")
    assert "!function" in config
    (tasks.path / "chance.yaml").write_text(config)
    fitness = LmEvalFitness(["chance"], include_path=str(tasks.path))
    fitness.check()
    fitness.prepare(model)
    first = fitness.fingerprint()
    fitness.prepare(model)
    assert fitness.fingerprint() == first
    assert_equal(fitness, fitness.run(model), stock(["chance"]))


def test_groups_equal_stock(stock: Any, model: Any, tasks: Any) -> None:
    (tasks.path / "both.yaml").write_text(
        "group: both\ntask: [choose, complete]\n"
        "aggregate_metric_list: [{metric: acc, aggregation: mean, weight_by_size: true}]\n"
    )
    fitness = LmEvalFitness([{"task": "both", "metrics": "acc"}], include_path=str(tasks.path))
    fitness.prepare(model)
    scores = fitness.run(model)
    assert_equal(fitness, scores, stock(["both"]))
    assert scores.objectives == {"score": scores.metrics["both/acc"]}


def _rows(**_: Any) -> Any:
    from datasets import Dataset

    rng = np.random.default_rng(3)
    rows = [{"q": f"w{rng.integers(40)} w{rng.integers(40)} :", "gold": int(rng.integers(2))} for _ in range(10)]
    return {"test": Dataset.from_list(rows)}
