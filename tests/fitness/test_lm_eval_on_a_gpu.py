"""The lm-eval fitness on a pretended GPU: the right device, few waits, and what happens when memory runs out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pretended_gpu import CUDA, PretendedGpu

from evomerge.models.loaded import LoadedModel
from fitness.lm_eval_tasks import LmEvalFitness

TASKS: list[str | dict[str, Any]] = ["choose", "complete", "read", "write"]


def on(model: LoadedModel, device: torch.device, spare: Callable[[], bool] = bool) -> LoadedModel:
    module: Any = model.module
    return LoadedModel(module.to(device), model.tokenizer, model.dtype, device, model.name_or_path, spare)


@pytest.fixture
def expected(model: LoadedModel, tasks: Any) -> Any:
    fitness = LmEvalFitness(TASKS, include_path=str(tasks.path))
    fitness.prepare(model)
    return fitness.run(model)


def test_every_kind_of_request(model: LoadedModel, expected: Any, tasks: Any, gpu: PretendedGpu) -> None:
    fitness = LmEvalFitness(TASKS, include_path=str(tasks.path))
    there = on(model, CUDA)
    fitness.prepare(there)
    gpu.reset()
    scores = fitness.run(there)
    first = gpu.reset()
    again = fitness.run(there)
    assert again.metrics == scores.metrics
    for name, values in expected.items.items():
        assert scores.items[name] == pytest.approx(values, abs=1e-4), name
    # Requests are on the device; of log-likelihoods two copies come back for all that are asked together.
    waits = {where: count for where, count in gpu.counts.waits.items() if "batches.py" in where}
    assert waits.pop("copy back in fitness/_lm_eval/batches.py score_batches") == 2 * 2
    # transformers asks once in a forward whether texts are packed.
    assert list(waits) == ["__bool__ in fitness/_lm_eval/batches.py _score"]
    assert not {where for where in gpu.counts.copies if "batches.py" in where}
    assert gpu.counts.copies.total() <= first.copies.total()


def test_texts_that_are_written_continuously(model: LoadedModel, expected: Any, tasks: Any, gpu: PretendedGpu) -> None:
    fitness = LmEvalFitness(
        ["write"], include_path=str(tasks.path), forwards="shared", generation="continuous", batch_size=4
    )
    there = on(model, CUDA)
    fitness.prepare(there)
    gpu.reset()
    scores = fitness.run(there)
    assert scores.responses["write"] == expected.responses["write"]
    waits = {where: count for where, count in gpu.reset().waits.items() if "continuous.py" in where}
    steps = fitness._ready().session._lm.continuous.steps  # type: ignore[union-attr]
    # A step tells which tokens were written, and transformers asks whether texts are padded; of the prompts come their
    # lengths and last tokens, as many at a time as are read.
    assert waits == {
        "tolist in fitness/_lm_eval/continuous.py _run": steps,
        "__bool__ in fitness/_lm_eval/continuous.py _run": steps,
        "tolist in fitness/_lm_eval/continuous.py _read": 2 * 9,
    }
    fitness.run(there)
    gpu.memory = gpu.used + (gpu.peak - gpu.used) // 2
    smaller = fitness.run(there)
    assert smaller.responses == scores.responses
    assert smaller.tokens["halved"] >= 1


def test_what_is_kept_is_let_go_before_batches_become_smaller(
    model: LoadedModel, expected: Any, tasks: Any, gpu: PretendedGpu, caplog: pytest.LogCaptureFixture
) -> None:
    kept = [gpu.put(torch.zeros(1 << 20, dtype=torch.uint8)) for _ in range(2)]

    def spare() -> bool:
        return bool(kept) and kept.pop() is not None

    fitness = LmEvalFitness(TASKS, include_path=str(tasks.path))
    there = on(model, CUDA, spare)
    fitness.prepare(there)
    gpu.reset()
    fitness.run(there)
    gpu.memory = gpu.peak - (1 << 21) + (1 << 16)  # a full batch fits once both are gone
    scores = fitness.run(there)
    assert kept == []
    assert "memory" not in caplog.text
    gpu.reset()
    fitness.run(there)
    gpu.memory = gpu.used + (gpu.peak - gpu.used) // 2
    smaller = fitness.run(there)
    assert "do not fit into memory" in caplog.text or "at a time from now on" in caplog.text
    for name, values in scores.items.items():
        assert smaller.items[name] == pytest.approx(values, abs=1e-4), name
        assert values == pytest.approx(expected.items[name], abs=1e-4), name


@pytest.mark.parametrize("forwards", ["exact", "shared"])
def test_an_evaluation_says_that_its_batches_were_halved(
    forwards: Any, model: LoadedModel, tasks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once memory has no room for a batch, of that candidate and of all that come after it."""
    fitness = LmEvalFitness(["choose"], include_path=str(tasks.path), forwards=forwards, batch_tokens=4096)
    fitness.prepare(model)
    assert "halved" not in fitness.run(model).tokens
    module: Any = model.module
    whole: list[int] = []
    seen = module.register_forward_pre_hook(lambda _, a, k: whole.append(_tokens(a, k)), with_kwargs=True)
    plain = fitness.run(model)
    seen.remove()

    def scarce(_: Any, args: Any, kwargs: Any) -> None:
        if _tokens(args, kwargs) >= max(whole):
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    hook = module.register_forward_pre_hook(scarce, with_kwargs=True)
    try:
        found = [fitness.run(model), fitness.run(model)]
    finally:
        hook.remove()
    for scores in found:
        assert scores.tokens["halved"] >= 1
        assert scores.tokens["stock"] == plain.tokens["stock"]
        for name, values in plain.items.items():
            assert scores.items[name] == pytest.approx(values, abs=1e-4), name


def _tokens(args: Any, kwargs: Any) -> int:
    return int((args[0] if args else kwargs["input_ids"]).numel())
