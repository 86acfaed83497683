"""The two ways to run log-likelihoods: shared for a search, exact where the stock tool's digits are promised."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from evomerge.errors import ConfigError
from fitness._lm_eval import prepared
from fitness._lm_eval.shared_forwards import SharedForwards
from fitness.lm_eval_tasks import LmEvalFitness

ALL = ["choose", "complete", "read", "write"]


def scored(folder: Any, model: Any, **settings: Any) -> Any:
    fitness = LmEvalFitness(settings.pop("tasks", ALL), include_path=str(folder.path), **settings)
    fitness.prepare(model)
    return fitness, fitness.run(model)


@pytest.mark.parametrize("settings", [{}, {"num_fewshot": 3}, {"batch_tokens": 16}, {"max_length": 20}], ids=str)
def test_shared_scores_are_the_exact_ones_to_rounding(model: Any, tasks: Any, settings: dict[str, Any]) -> None:
    _, exact = scored(tasks, model, **{k: v for k, v in settings.items() if k != "batch_tokens"})
    _, shared = scored(tasks, model, forwards="shared", **settings)
    assert exact.items.keys() == shared.items.keys()
    for name, values in exact.items.items():
        np.testing.assert_allclose(shared.items[name], values, rtol=1e-5, atol=1e-4, err_msg=name)
    for name, value in exact.objectives.items():
        assert shared.objectives[name] == pytest.approx(value, rel=1e-4)
    assert exact.responses["write"] == shared.responses["write"]  # generation is the stock tool's in both


def test_prompts_that_answers_share_are_run_once(model: Any, tasks: Any) -> None:
    _, exact = scored(tasks, model, tasks=["choose"], num_fewshot=1)
    _, shared = scored(tasks, model, tasks=["choose"], num_fewshot=1, forwards="shared")
    assert exact.tokens["run"] == exact.tokens["stock"] == shared.tokens["stock"]
    assert shared.tokens["run"] < 0.7 * shared.tokens["stock"]


def test_parts_share_within_themselves(model: Any, tasks: Any) -> None:
    fitness, whole = scored(tasks, model, tasks=["choose"], forwards="shared")
    parts = [fitness.run(model, {"choose": range(first, 24, 2)}) for first in (0, 1)]
    joined = np.fmax(*(part.items["choose/acc"] for part in parts))
    np.testing.assert_allclose(joined, whole.items["choose/acc"])
    assert sum(part.tokens["stock"] for part in parts) == whole.tokens["stock"]
    assert sum(part.tokens["run"] for part in parts) >= whole.tokens["run"]


def test_a_model_that_cannot_share_is_scored_exactly_with_a_line(
    model: Any, tasks: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fitness, exact = scored(tasks, model)
    monkeypatch.setattr(prepared, "unsupported", lambda module, longest: "it is recurrent")
    other, found = scored(tasks, model, forwards="shared")
    assert "fitness.forwards=shared is not for this model: it is recurrent" in caplog.text
    assert other.fingerprint() == fitness.fingerprint()
    for name, values in exact.items.items():
        assert (found.items[name] == values).all()


def test_fingerprints_tell_the_modes_apart(model: Any, tasks: Any) -> None:
    found = [
        scored(tasks, model, tasks=["choose"], **settings)[0].fingerprint()
        for settings in ({}, {"forwards": "exact"}, {"forwards": "auto"}, {"forwards": "shared"})
    ]
    assert found[0] == found[1] == found[2] != found[3]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_near(load: Any, tasks: Any, dtype: torch.dtype) -> None:
    model = load(dtype)
    _, exact = scored(tasks, model, tasks=["choose", "read"])
    _, shared = scored(tasks, model, tasks=["choose", "read"], forwards="shared")
    name = "read/bits_per_byte"
    np.testing.assert_allclose(shared.items[name], exact.items[name], rtol=0.05)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"forwards": "share"}, "forwards is 'share'"),
        ({"batch_tokens": 0}, "batch_tokens is 0"),
        ({"compare_forwards": "no"}, "compare_forwards is 'no'"),
    ],
)
def test_typos_are_said(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LmEvalFitness(["choose"], **settings)


def test_both_ways_are_compared_on_one_model(model: Any, tasks: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fitness, shared = scored(tasks, model, forwards="shared")
    found = fitness.apart(model)
    assert 0 <= found["nats"] < 1e-4
    assert (found["turned"], found["texts"], found["generated"]) == (0, 0, 9)
    assert found["items"] == 24 + 24 + 31 + 9 + 9  # acc, acc_norm; acc; exact_match by two filters
    assert abs(found["objective/score"]) < 1e-4
    assert fitness.run(model).tokens == shared.tokens  # shared again
    exact, _ = scored(tasks, model)
    assert exact.apart(model) == {}
    silent, _ = scored(tasks, model, forwards="shared", compare_forwards=False)
    assert silent.apart(model) == {}

    real = SharedForwards.score

    def off(*args: Any) -> Any:
        values, greedy = real(*args)
        values[3] -= 0.25
        return values, ~greedy

    monkeypatch.setattr(SharedForwards, "score", off)
    wrong = fitness.apart(model)
    assert wrong["nats"] == pytest.approx(0.25, abs=1e-4)
    assert wrong["turned"] >= 31
    assert wrong["objective/score"] != 0
