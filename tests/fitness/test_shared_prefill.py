"""Generation after prompts that were read as a tree: the same texts as after each of them alone."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from models.architectures import build
from shared_questions import DECODERS

from fitness._lm_eval import prepared, shared_prefill, token_batches
from fitness._lm_eval.shared_prefill import SharedPrefill
from fitness._lm_eval.shared_probe import no_prefill
from fitness.lm_eval_tasks import LmEvalFitness


@pytest.fixture(autouse=True)
def small_trunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_batches, "TRUNK", 4)
    monkeypatch.setattr(token_batches, "SAVED", 4)


def prompts(rng: random.Random, rows: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts after one preamble, one that another goes on from, one of a token, one again; padded on the left."""

    def text(low: int, high: int) -> list[int]:
        return [rng.randrange(3, 36) for _ in range(rng.randint(low, high))]

    preamble = [7, 9, 30, 12, 5, 21, 17, 33]
    found = [preamble + text(1, 5) for _ in range(rows)]
    found += [found[0][:-1], preamble[:6] + text(2, 2), [5], found[0]]
    width = max(map(len, found))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in found])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in found])
    return ids, mask


def generated(module: Any, ids: torch.Tensor, mask: torch.Tensor, **more: Any) -> Any:
    asked = {"max_new_tokens": 10, "do_sample": False, "pad_token_id": 0, "output_logits": True}
    with torch.no_grad():
        return module.generate(input_ids=ids, attention_mask=mask, return_dict_in_generate=True, **asked, **more)


@pytest.mark.parametrize("kind", DECODERS)
def test_architectures_go_on_as_after_each_prompt_alone(kind: str) -> None:
    module, rng = build(kind), random.Random(0)
    assert no_prefill(module) == ""
    prefill = SharedPrefill(module, 16, trunk=4)
    prefill.begin()
    for _ in range(3):
        ids, mask = prompts(rng)
        cache = prefill(module, ids, mask)
        assert cache is not None
        assert cache.get_seq_length() == ids.shape[1] - 1
        expected, found = generated(module, ids, mask), generated(module, ids, mask, past_key_values=cache)
        assert torch.equal(found.sequences, expected.sequences)
        for one, other in zip(found.logits, expected.logits, strict=True):
            torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
    assert prefill.run < 0.5 * prefill.stock


def test_a_preamble_is_run_once_for_all_batches_of_a_candidate() -> None:
    module, run = build("llama"), []
    module.register_forward_pre_hook(lambda _, __, kwargs: run.append(kwargs["input_ids"].numel()), with_kwargs=True)
    preamble = list(range(3, 23))
    prefill = SharedPrefill(module, 8, trunk=4)
    for _ in range(2):  # candidates
        prefill.begin()
        for last in range(24, 36):  # a prompt at a time
            ids = torch.tensor([[*preamble, last, 1]])
            prefill(module, ids, torch.ones_like(ids))
        assert run == [21, *[1] * 11]
        assert (prefill.run, prefill.stock) == (21 + 11 + 12, 22 * 12)
        run.clear()


def test_prompts_that_have_nothing_in_common_are_left_alone() -> None:
    module = build("llama")
    prefill = SharedPrefill(module, 16)
    ids = torch.arange(3, 33).view(3, 10)
    assert prefill(module, ids, torch.ones_like(ids)) is None
    assert prefill.run == prefill.stock == 30


def test_a_cache_of_another_kind_is_not_shared() -> None:
    module = build("llama")
    module.generation_config.cache_implementation = "static"
    assert "a cache of the kind static" in no_prefill(module)


def test_a_model_that_minds_the_cache_that_it_begins_with_is_found_out() -> None:
    class Minds(type(build("llama"))):  # type: ignore[misc]
        def forward(self, *args: Any, past_key_values: Any = None, **kwargs: Any) -> Any:
            found = super().forward(*args, past_key_values=past_key_values, **kwargs)
            if past_key_values is not None and kwargs["input_ids"].shape[1] == 1:
                found.logits = found.logits + len(past_key_values.layers[0].keys)
            return found

    assert "apart after prompts in a tree and alone" in no_prefill(Minds(build("llama").config).eval())


WRITE = "write_after"


def fitness_of(tasks: Any, model: Any, forwards: str, **settings: Any) -> tuple[LmEvalFitness, Any]:
    rng = np.random.default_rng(0)
    preamble = tasks.text(rng, 20, 20)
    rows = [{"text": f"{preamble} {tasks.text(rng, 1, 6)}", "target": "w1"} for _ in range(20)]
    tasks.write(
        WRITE,
        rows,
        {
            "output_type": "generate_until",
            "doc_to_text": "{{text}}",
            "doc_to_target": "{{target}}",
            "generation_kwargs": {"until": ["w3"], "max_gen_toks": 8, **settings.pop("generation", {})},
            "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        },
    )
    fitness = LmEvalFitness([WRITE], include_path=str(tasks.path), forwards=forwards, keep_responses=True, **settings)
    fitness.prepare(model)
    return fitness, fitness.run(model)


@pytest.mark.parametrize("settings", [{}, {"batch_size": 1}, {"batch_size": 7}, {"batch_tokens": 16}], ids=str)
def test_a_fitness_answers_as_the_stock_tool(model: Any, tasks: Any, settings: dict[str, Any]) -> None:
    _, exact = fitness_of(tasks, model, "exact", **{k: v for k, v in settings.items() if k != "batch_tokens"})
    fitness, shared = fitness_of(tasks, model, "shared", **settings)
    assert shared.responses == exact.responses
    assert len(set(exact.responses[WRITE])) > 3
    assert shared.tokens["run"] < 0.5 * shared.tokens["stock"]
    assert fitness.run(model).tokens == shared.tokens


@pytest.mark.parametrize("generation", [{"do_sample": True, "temperature": 0.9}, {"num_beams": 2}], ids=str)
def test_sampling_and_beams_are_the_stock_tools(model: Any, tasks: Any, generation: dict[str, Any]) -> None:
    _, exact = fitness_of(tasks, model, "exact", generation=generation)
    _, shared = fitness_of(tasks, model, "shared", generation=generation)
    assert shared.responses == exact.responses
    assert shared.tokens["run"] == shared.tokens["stock"]


def test_a_model_that_cannot_says_so_once(
    model: Any, tasks: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(prepared, "no_prefill", lambda module: "it remembers")
    _, exact = fitness_of(tasks, model, "exact")
    _, shared = fitness_of(tasks, model, "shared")
    assert shared.responses == exact.responses
    assert caplog.text.count("prompts of generation are not shared by this model: it remembers") == 1


def test_without_memory_prompts_are_read_in_smaller_batches(
    model: Any, tasks: Any, caplog: pytest.LogCaptureFixture
) -> None:
    _, exact = fitness_of(tasks, model, "exact")
    failed = []

    def scarce(_: Any, __: Any, kwargs: Any) -> None:
        if len(failed) < 2 and kwargs["input_ids"].shape[1] > 1:
            failed.append(1)
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    hook = model.module.register_forward_pre_hook(scarce, with_kwargs=True)
    _, shared = fitness_of(tasks, model, "shared")
    hook.remove()
    assert shared.responses == exact.responses
    assert "sequences are generated at a time from now on" in caplog.text


def test_nothing_of_a_candidate_is_left_for_the_next(model: Any, tasks: Any) -> None:
    fitness, first = fitness_of(tasks, model, "shared")
    assert not fitness._ready().session._lm.prefill._beginnings  # type: ignore[union-attr]
    with torch.no_grad():
        for parameter in model.module.parameters():
            parameter.mul_(1.3)
    _, exact = fitness_of(tasks, model, "exact")
    assert fitness.run(model).responses == exact.responses != first.responses
    assert shared_prefill.TRUNK == 16
