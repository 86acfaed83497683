from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from merge.carry_out import carry_out

from evomerge.errors import ConfigError
from evomerge.merge.methods import derived_method, merge_method, mix_method, registry, specs
from evomerge.merge.methods.registry import Context, Values
from evomerge.merge.mixes.mix import Mix, Statistics, weighted
from evomerge.recipes.method_spec import ParameterSpec


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> dict[str, registry.Method]:
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))
    return registry._METHODS


def test_users_register_functions_on_whole_tensors(table: dict[str, registry.Method]) -> None:
    @merge_method("transpose_mean", ParameterSpec("share", 0.5), summary="not elementwise", max_inputs=2)
    def transpose_mean(
        inputs: Sequence[torch.Tensor], base: torch.Tensor | None, *, share: float, context: Context
    ) -> torch.Tensor:
        return inputs[0] * share + inputs[0].T * (1 - share)

    method = table["transpose_mean"]
    assert method.spec.parameters[0].name == "share"
    assert "transpose_mean" not in specs()  # the patched table is not the public one
    result = carry_out(method, [torch.tensor([[1.0, 2.0], [4.0, 8.0]])], dtype=torch.bfloat16)
    assert result.tolist() == [[1.0, 3.0], [3.0, 8.0]]
    with pytest.raises(ConfigError, match="'transpose_mean' is registered twice"):
        merge_method("transpose_mean", summary="")(transpose_mean)


def test_users_register_mixes(table: dict[str, registry.Method]) -> None:
    @mix_method("by_norm", summary="models by their norm", min_inputs=2)
    def by_norm(values: Values, statistics: Statistics) -> Mix:
        return weighted([float(statistics.gram()[i, i]) for i in range(2)])

    result = carry_out(table["by_norm"], [torch.tensor([3.0, 4.0]), torch.tensor([0.0, 2.0])])
    assert result.tolist() == [75.0, 108.0]


def test_users_register_what_is_made_once(table: dict[str, registry.Method]) -> None:
    @derived_method(
        "peak",
        ParameterSpec("lambda", 1.0),
        ParameterSpec("power", 1, kind="integer"),
        summary="the largest change, to a power",
        factors=lambda values: (values["lambda_"], -values["lambda_"] / 2),
        given=lambda values: {"power": values["power"]},
    )
    def peak(tasks: Sequence[torch.Tensor], power: int) -> tuple[torch.Tensor, ...]:
        stacked = torch.stack(list(tasks)) ** power
        return stacked.amax(0), stacked.amin(0)

    method, base = table["peak"], torch.tensor([1.0, 1.0])
    inputs = [torch.tensor([3.0, 4.0]), torch.tensor([5.0, 2.0])]
    assert method.spec.base == "required"
    assert carry_out(method, inputs, base, None, {"power": 2}).tolist() == [1 + 16 - 2, 1 + 9 - 0.5]
    assert carry_out(method, inputs, base, None, {"power": 2, "lambda": 0.5}).tolist() == [1 + 8 - 1, 1 + 4.5 - 0.25]
    assert carry_out(method, inputs, base, None, {"lambda": 0.0}).tolist() == [1.0, 1.0]
    code = registry.code_of(method)
    assert code is not None
    assert len(code) == 16  # of this module's text
