"""A model on two devices. There is one here: the other is ``meta``, which keeps shapes and no values."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from evomerge.errors import RecipeError
from evomerge.merge.planning.plan import make_plan
from evomerge.merge.resident import model as assemble
from evomerge.merge.resident.loading import load_module
from evomerge.merge.resident.model import Resident
from evomerge.models.opening import open_pool
from evomerge.models.pool import Pool

META = torch.device("meta")


@pytest.fixture
def pool(llamas: Callable[..., dict[str, Path]]) -> Pool:
    return open_pool({name: str(folder) for name, folder in llamas(layers=3).items()}, base="base")


@pytest.fixture
def resident(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> Resident:
    def load(pool: Pool, attn_implementation: str | None) -> Any:
        module = load_module(pool, attn_implementation)
        for part in (module.model.layers[1], module.model.layers[2], module.model.norm, module.lm_head):
            part.to(META)
        return module

    monkeypatch.setattr(assemble, "load_spread", load)
    return Resident(pool, "spread", cache=1 << 24)


def test_each_slice_is_where_its_layer_is(pool: Pool, resident: Resident) -> None:
    where = {name: p.device for name, p in resident.model.module.named_parameters()}
    assert {device.type for device in where.values()} == {"cpu", "meta"}
    plain = Resident(pool, "cpu", cache=0)
    plans = [make_plan(pool.info.linear({"a": share, "b": 1 - share}), pool) for share in (0.3, 0.6, 0.3)]
    first = resident.apply(plans[0])
    assert (first.computed, first.kept) == (len(plans[0].slices), 0)
    again = resident.apply(plans[0])
    assert (again.computed, again.kept) == (0, len(plans[0].slices))
    resident.apply(plans[1])
    back = resident.apply(plans[2])
    assert back.memory > 0
    assert back.computed + back.memory == len(plans[0].slices)
    plain.apply(plans[2])
    expected = dict(plain.model.module.named_parameters())
    for name, parameter in resident.model.module.named_parameters():
        assert parameter.device == where[name]
        assert parameter.shape == expected[name].shape
        if parameter.device != META:
            assert torch.equal(parameter, expected[name]), name


def test_layers_stay_where_they_are(pool: Pool, resident: Resident) -> None:
    recipe = pool.info.linear({"a": 1.0})
    with pytest.raises(RecipeError, match="layers in their own order"):
        resident.apply(make_plan(_turned(pool, recipe), pool))


def _turned(pool: Pool, recipe: Any) -> Any:
    """The recipe with its first two layers exchanged."""
    from dataclasses import replace

    def turn(number: int | None) -> int | None:
        return number if number is None or number > 1 else 1 - number

    slices = [
        replace(entry, inputs=tuple(replace(i, layer=turn(entry.slice.layer)) for i in entry.inputs))
        for entry in recipe.slices
    ]
    return pool.info.recipe(slices)
