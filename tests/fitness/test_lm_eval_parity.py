"""The fitness against the stock tool: the same numbers, to the last bit."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lm_eval import evaluator
from lm_eval.tasks import TaskManager

from fitness.lm_eval_tasks import LmEvalFitness

ALL = ["choose", "complete", "read", "write"]


@pytest.fixture
def stock(model_folder: Path, tasks: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`simple_evaluate` as the command line calls it."""
    monkeypatch.setattr(evaluator, "add_env_info", lambda *_: None)  # a second of subprocesses

    def run(names: list[Any], dtype: str = "float32", arguments: dict[str, Any] | None = None, **kwargs: Any) -> Any:
        return evaluator.simple_evaluate(
            model="hf",
            model_args={"pretrained": str(model_folder), "dtype": dtype, **(arguments or {})},
            tasks=names,
            device="cpu",
            bootstrap_iters=0,
            task_manager=TaskManager(include_path=str(tasks.path), include_defaults=False),
            **{"batch_size": 16, **kwargs},
        )

    return run


def assert_equal(scores: Any, results: Any) -> None:
    """Every aggregate and every document's value, exactly."""
    expected = {
        f"{task}/{key.removesuffix(',none')}": value
        for task, table in results["results"].items()
        for key, value in table.items()
        if "," in key and "_stderr" not in key
    }
    assert dict(scores.metrics) == expected
    checked = 0
    for task, samples in results["samples"].items():
        for sample in samples:
            for metric in sample["metrics"]:
                key = f"{task}/{metric}" + ("" if sample["filter"] == "none" else f",{sample['filter']}")
                item, value = scores.items[key][sample["doc_id"]], sample[metric]
                if metric == "perplexity":
                    value = -value
                elif metric in ("word_perplexity", "byte_perplexity", "bits_per_byte"):
                    value = -value[0] / value[1] / math.log(2)
                elif metric == "brier_score":
                    value = ((value[1] - np.eye(3)[value[0]]) ** 2).sum()
                assert item == value, (key, sample["doc_id"])
                checked += 1
    assert checked == sum(len(values) for values in scores.items.values()) > 0


@pytest.mark.parametrize("batch_size", [1, 7, 16])
def test_float32_equals_stock(stock: Any, model: Any, tasks: Any, batch_size: int) -> None:
    fitness = LmEvalFitness(ALL, include_path=str(tasks.path), batch_size=batch_size)
    fitness.prepare(model)
    assert_equal(fitness.run(model), stock(ALL, batch_size=batch_size))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_equals_stock_with_float32_softmax(stock: Any, load: Any, tasks: Any, dtype: str) -> None:
    model = load(getattr(torch, dtype))
    fitness = LmEvalFitness(ALL, include_path=str(tasks.path))
    fitness.prepare(model)
    assert_equal(fitness.run(model), stock(ALL, dtype, {"softmax_dtype": "float32"}))


def test_model_softmax_equals_stock_without_arguments(stock: Any, load: Any, tasks: Any) -> None:
    model = load(torch.bfloat16)
    fitness = LmEvalFitness(ALL, include_path=str(tasks.path), softmax_dtype="model")
    fitness.prepare(model)
    assert_equal(fitness.run(model), stock(ALL, "bfloat16"))


@pytest.mark.parametrize(
    ("ours", "theirs", "arguments"),
    [
        ({"num_fewshot": 2}, {"num_fewshot": 2}, {}),
        ({"num_fewshot": 1, "fewshot_seed": 5}, {"num_fewshot": 1, "fewshot_random_seed": 5}, {}),
        ({"limit": 5}, {"limit": 5}, {}),
        ({"limit": 0.3}, {"limit": 0.3}, {}),
        ({"apply_chat_template": True, "num_fewshot": 1}, {"apply_chat_template": True, "num_fewshot": 1}, {}),
        (
            {"apply_chat_template": True, "system_instruction": "w1 w2", "fewshot_as_multiturn": False, "num_fewshot": 1},
            {"apply_chat_template": True, "system_instruction": "w1 w2", "fewshot_as_multiturn": False, "num_fewshot": 1},
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
    stock: Any, model: Any, tasks: Any, ours: dict[str, Any], theirs: dict[str, Any], arguments: dict[str, Any]
) -> None:
    names = ["choose", "complete", "write"] if "num_fewshot" in ours else ALL
    fitness = LmEvalFitness(names, include_path=str(tasks.path), **ours)
    fitness.prepare(model)
    plain = LmEvalFitness(names, include_path=str(tasks.path))
    plain.prepare(model)
    scores = fitness.run(model)
    assert_equal(scores, stock(names, arguments=arguments, **theirs))
    if ours != {"add_bos_token": False}:  # which is what this tokenizer does by itself
        assert scores.metrics != plain.run(model).metrics


def test_item_values_are_those_of_the_responses(stock: Any, model: Any, tasks: Any) -> None:
    """Log-likelihoods, not only what is made of them: 0 of all responses differ."""
    fitness = LmEvalFitness(["choose", "read"], include_path=str(tasks.path))
    fitness.prepare(model)
    fitness.run(model)
    assert fitness._tasks is not None
    theirs = stock(["choose", "read"])["samples"]
    for name, task in fitness._tasks.tasks.items():
        ours = [instance.resps for instance in task.instances]
        assert ours == [resps for sample in theirs[name] for resps in sample["resps"]]
