"""A fitness whose texts are written continuously: answers, errors and fall-backs are the stock tool's."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from evomerge.errors import ConfigError, FitnessError
from fitness._lm_eval import prepared
from fitness.lm_eval_tasks import LmEvalFitness

GREEDY: dict[str, Any] = {"until": ["w3", "w1 w2"], "max_gen_toks": 14}  # w3 begins w30 to w39, which are tokens


def task(tasks: Any, name: str, rows: int = 20, preamble: int = 12, **generation: Any) -> str:
    rng = np.random.default_rng(0)
    begin = tasks.text(rng, preamble, preamble)
    lines = [{"text": f"{begin} {tasks.text(rng, 1, 9)}", "target": "w1"} for _ in range(rows)]
    tasks.write(
        name,
        lines,
        {
            "output_type": "generate_until",
            "doc_to_text": "{{text}}",
            "doc_to_target": "{{target}}",
            "generation_kwargs": {**GREEDY, **generation},
            "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        },
    )
    return name


def scored(tasks: Any, model: Any, names: list[Any], generation: Any, **settings: Any) -> tuple[LmEvalFitness, Any]:
    more = {"include_path": str(tasks.path), "keep_responses": True, "generation": generation, **settings}
    fitness = LmEvalFitness(names, **more)
    fitness.prepare(model)
    return fitness, fitness.run(model)


@pytest.mark.parametrize(
    "settings",
    [{}, {"batch_size": 1}, {"batch_size": 3}, {"forwards": "shared", "batch_size": 5}, {"max_length": 24}],
    ids=str,
)
def test_answers_are_the_stock_tools(model: Any, tasks: Any, settings: dict[str, Any]) -> None:
    names = [task(tasks, "ragged"), task(tasks, "short", until=["w2"], max_gen_toks=5), "write"]
    stock = {name: value for name, value in settings.items() if name != "forwards"}
    _, expected = scored(tasks, model, names, "stock", **stock)
    fitness, found = scored(tasks, model, names, "continuous", **settings)
    assert found.responses == expected.responses
    assert found.items.keys() == expected.items.keys()
    assert len({len(text.split()) for text in expected.responses["ragged"]}) > 3
    again = fitness.run(model)
    assert (again.responses, again.tokens) == (found.responses, found.tokens)


def test_a_single_prompt(model: Any, tasks: Any) -> None:
    names = [task(tasks, "single", rows=1)]
    assert scored(tasks, model, names, "continuous")[1].responses == scored(tasks, model, names, "stock")[1].responses


def test_fewer_forwards_than_in_batches(model: Any, tasks: Any) -> None:
    forwards: list[int] = []
    hook = model.module.register_forward_pre_hook(
        lambda _, __, k: forwards.append(len(k["input_ids"])), with_kwargs=True
    )
    rows = []
    for generation in ("stock", "continuous"):
        fitness, _ = scored(tasks, model, [task(tasks, "ragged")], generation, batch_size=4)
        forwards.clear()
        fitness.run(model)
        rows.append(sum(forwards))
    hook.remove()
    assert rows[1] < 0.8 * rows[0]


@pytest.mark.parametrize(
    ("generation", "why"),
    [
        ({"do_sample": True, "temperature": 0.9}, "texts are sampled"),
        ({"num_beams": 2}, "num_beams is 2"),
        ({"repetition_penalty": 1.5}, "repetition_penalty is 1.5"),
    ],
    ids=str,
)
def test_what_is_not_greedy_is_left_to_the_stock_tool(
    model: Any, tasks: Any, caplog: pytest.LogCaptureFixture, generation: dict[str, Any], why: str
) -> None:
    names = [task(tasks, "ragged"), task(tasks, "other", **generation), task(tasks, "third", max_gen_toks=4)]
    _, expected = scored(tasks, model, names, "stock")
    fitness, found = scored(tasks, model, names, "continuous")
    fitness.run(model)
    assert found.responses == expected.responses
    assert caplog.text.count(f"texts are written in lm-eval's batches, not continuously: {why}") == 1


def test_generation_settings_of_the_model_count(model: Any, tasks: Any, caplog: pytest.LogCaptureFixture) -> None:
    model.module.generation_config.no_repeat_ngram_size = 2
    names = [task(tasks, "ragged")]
    assert scored(tasks, model, names, "continuous")[1].responses == scored(tasks, model, names, "stock")[1].responses
    assert "not continuously: no_repeat_ngram_size is 2" in caplog.text
    model.module.generation_config.no_repeat_ngram_size = 0
    caplog.clear()
    scored(tasks, model, names, "continuous")
    assert "continuously" not in caplog.text


@pytest.mark.parametrize("why", ["think", "model"])
def test_what_cannot_says_so_once_and_keeps_its_fingerprint(
    model: Any, tasks: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, why: str
) -> None:
    settings = {"think_end_token": "w7"} if why == "think" else {}
    if why == "model":
        monkeypatch.setattr(prepared, "no_continuous", lambda module: "it remembers")
    names = [task(tasks, "ragged")]
    stock, expected = scored(tasks, model, names, "stock", **settings)
    fitness, found = scored(tasks, model, names, "continuous", **settings)
    assert found.responses == expected.responses
    assert fitness.fingerprint() == stock.fingerprint()
    assert caplog.text.count("texts are written in lm-eval's batches, not continuously: ") == 1


def test_fingerprints_tell_of_it_where_texts_are_written(model: Any, tasks: Any) -> None:
    for names, differ in ((["write"], True), (["choose"], False)):
        found = [scored(tasks, model, names, how)[0].fingerprint() for how in ("stock", "auto", "continuous")]
        assert found[0] == found[1]
        assert (found[0] != found[2]) is differ


def test_a_score_that_is_not_finite_is_named(model: Any, tasks: Any) -> None:
    names = [task(tasks, "ragged", rows=6)]
    fitness, expected = scored(tasks, model, names, "continuous", batch_size=2)
    steps: list[int] = []

    def spoil(_: Any, __: Any, found: Any) -> None:
        steps.append(1)
        if len(steps) == 7:
            found.logits[-1, -1, 5] = math.nan

    hook = model.module.register_forward_hook(spoil)
    with pytest.raises(FitnessError, match=r"task 'ragged', document \d: a next-token score is not finite"):
        fitness.run(model)
    hook.remove()
    assert fitness.run(model).responses == expected.responses


def test_without_memory_there_are_fewer_at_a_time(model: Any, tasks: Any, caplog: pytest.LogCaptureFixture) -> None:
    names = [task(tasks, "ragged")]
    fitness, expected = scored(tasks, model, names, "continuous", batch_size=8)
    failed: list[int] = []

    def scarce(_: Any, __: Any, kwargs: Any) -> None:
        if len(kwargs["input_ids"]) > 3:
            failed.append(1)
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    hook = model.module.register_forward_pre_hook(scarce, with_kwargs=True)
    found = fitness.run(model)
    hook.remove()
    assert found.responses == expected.responses
    assert found.tokens["halved"] == 2
    assert "2 sequences are generated at a time from now on" in caplog.text
    assert failed


def test_what_was_interrupted_leaves_nothing(model: Any, tasks: Any) -> None:
    fitness, expected = scored(tasks, model, [task(tasks, "ragged")], "continuous", forwards="shared")
    steps: list[int] = []

    def late(*_: Any) -> None:
        steps.append(1)
        if len(steps) == 9:
            raise TimeoutError

    hook = model.module.register_forward_pre_hook(late)
    with pytest.raises(TimeoutError):
        fitness.run(model)
    hook.remove()
    found = fitness.run(model)
    assert (found.responses, found.tokens) == (expected.responses, expected.tokens)


def test_both_ways_are_compared(model: Any, tasks: Any) -> None:
    fitness, _ = scored(tasks, model, [task(tasks, "ragged")], "continuous")
    apart = {"nats": 0.0, "turned": 0, "items": 20, "texts": 0, "generated": 20, "objective/score": 0.0}
    assert fitness.apart(model) == apart


def test_a_typo_is_said() -> None:
    with pytest.raises(ConfigError, match="generation is 'continous'"):
        LmEvalFitness(["write"], generation="continous")  # type: ignore[arg-type]


@pytest.mark.parametrize("settings", [{}, {"mixed_precision_dtype": "bfloat16"}], ids=str)
def test_half_precision_writes_texts(load: Any, tasks: Any, settings: dict[str, Any]) -> None:
    model = load(torch.float32 if settings else torch.bfloat16)
    names = [task(tasks, "ragged")]
    _, expected = scored(tasks, model, names, "stock", **settings)
    _, found = scored(tasks, model, names, "continuous", forwards="shared", **settings)
    same = sum(a == b for a, b in zip(expected.responses["ragged"], found.responses["ragged"], strict=True))
    assert same >= 15  # of 20: what is beside a text decides where scores are equal but for rounding
