"""Comparing a fitness with the results of the stock tool."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fitness.lm_eval_tasks import LmEvalFitness


def responses(fitness: LmEvalFitness) -> dict[str, list[Any]]:
    assert fitness._tasks is not None
    return {name: [i.resps for i in task.instances] for name, task in fitness._tasks.tasks.items()}


def assert_equal(fitness: LmEvalFitness, scores: Any, results: Any) -> None:
    """Every aggregate, every document's value and every response, exactly."""
    expected = {
        f"{task}/{key.removesuffix(',none')}": value
        for task, table in results["results"].items()
        for key, value in table.items()
        if "," in key and "_stderr" not in key
    }
    assert dict(scores.metrics) == expected
    checked = 0
    for task, samples in results["samples"].items():
        first = samples[0]["filter"]
        assert responses(fitness)[task] == [r for s in samples if s["filter"] == first for r in s["resps"]]
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
