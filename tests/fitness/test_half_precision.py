"""bfloat16 that is multiplied in float32: as near to float32 as the processor's own, and only where it is due."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from models.architectures import build
from shared_questions import questions, shared
from torch import nn

from evomerge.models import arithmetic
from fitness._lm_eval import half_precision
from fitness._lm_eval.half_precision import float32_products


@pytest.fixture(autouse=True)
def without_matrix_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(half_precision, "multiplies_bfloat16", lambda: False)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("part", [7 * 48, 1 << 22])
def test_products_are_rounded_once(bias: bool, part: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(half_precision, "_PART", part)
    module: Any = nn.Sequential(nn.Linear(48, 33, bias=bias)).to(torch.bfloat16)
    module.dtype, module.device = torch.bfloat16, torch.device("cpu")
    inputs = torch.randn(2, 50, 48, dtype=torch.bfloat16)
    linear = module[0]
    exact = inputs.double() @ linear.weight.double().T + (linear.bias.double() if bias else 0)
    with torch.no_grad(), float32_products(module):
        found = module(inputs)
        few = module(inputs[:, :3])
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), exact, atol=0.0, rtol=2.0**-8 + 1e-6)
    assert torch.equal(few, module(inputs[:, :3]))  # few rows are the processor's
    assert "forward" not in vars(linear)


def test_scores_are_no_further_from_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    module = build("llama").to(torch.bfloat16)
    forwards = shared(module, questions(), 1000)
    true, _ = shared(module.float(), questions(), 1000).score(module)
    module.to(torch.bfloat16)
    found, _ = forwards.score(module)
    monkeypatch.setattr(half_precision, "multiplies_bfloat16", lambda: True)
    native, _ = forwards.score(module)
    assert np.abs(found - native).max() < 0.15
    assert np.abs(found - true).mean() < 1.5 * np.abs(native - true).mean()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_other_models_are_left_alone(dtype: torch.dtype) -> None:
    module = build("llama").to(dtype)
    with float32_products(module):
        assert not any("forward" in vars(part) for part in module.modules())


def test_layers_are_put_back_after_a_failure() -> None:
    module = build("llama").to(torch.bfloat16)

    def fails() -> None:
        with float32_products(module):
            assert any("forward" in vars(part) for part in module.modules())
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fails()
    assert not any("forward" in vars(part) for part in module.modules())


@pytest.mark.parametrize(("native", "words"), [(True, arithmetic.NATIVE), (False, arithmetic.FLOAT32)])
def test_the_choice_is_measured_and_said(native: bool, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False, raising=False)
    linear, clock = nn.functional.linear, iter(range(10**6))
    now = [0.0]

    def slow(inputs: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        now[0] += 1.0 if (inputs.dtype == torch.bfloat16) is not native else 0.5
        return linear(inputs, weight)

    monkeypatch.setattr(arithmetic.F, "linear", slow)
    monkeypatch.setattr(arithmetic.time, "perf_counter", lambda: now[0] + next(clock) * 1e-9)
    arithmetic.multiplies_bfloat16.cache_clear()
    try:
        assert arithmetic.multiplies_bfloat16() is native
        assert arithmetic.arithmetic_of("bfloat16") == words
        assert arithmetic.arithmetic_of("float32") == arithmetic.arithmetic_of("float16") == ""
    finally:
        arithmetic.multiplies_bfloat16.cache_clear()


def test_matrix_units_are_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True, raising=False)
    monkeypatch.setattr(arithmetic.F, "linear", None)
    arithmetic.multiplies_bfloat16.cache_clear()
    try:
        assert arithmetic.multiplies_bfloat16()
    finally:
        arithmetic.multiplies_bfloat16.cache_clear()
