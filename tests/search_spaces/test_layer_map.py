from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from contracts.search_space_contract import SearchSpaceContract, SpaceCase
from contracts.space_samples import METHODS, pool
from tiny_models import TinyModel

from evomerge.errors import ConfigError
from evomerge.export.in_memory import merged_model
from evomerge.merge.execution.engine import TORCH_DTYPES
from evomerge.merge.methods import specs
from evomerge.merge.planning.plan import make_plan
from evomerge.merge.resident.model import Resident
from evomerge.models.opening import open_pool
from evomerge.recipes.pool_info import PoolInfo
from search_spaces.layer_map import LayerMapSpace


def uneven(**depths: int) -> PoolInfo:
    """A base of four layers and two sources, of which some have other depths."""
    return replace(pool(4, head=True), depths=tuple(depths.items()))


CASES: dict[str, tuple[dict[str, int], dict[str, Any]]] = {
    "one deeper, one less deep": ({"lang": 7, "math": 2}, {"layer_group": 2}),
    "all mapped, methods": ({"lang": 7}, {"mapped": ["lang", "math"], "method": ["linear", "ties"], "window": 2}),
}


class TestLayerMapSpace(SearchSpaceContract):
    @pytest.fixture(params=CASES, ids=str)
    def case(self, request: pytest.FixtureRequest) -> SpaceCase:
        depths, options = CASES[request.param]
        info = uneven(**depths)
        return SpaceCase(partial(LayerMapSpace, info, METHODS, **options), info, METHODS)


def test_maps_begin_even_and_keep_their_order() -> None:
    space = LayerMapSpace(uneven(lang=7), METHODS, layer_group="all", components="all", parameters={"weight": 0.5})
    assert [gene.name for gene in space.spec] == [f"map/lang/{layer}" for layer in range(4)]

    def layers(values: list[int]) -> list[list[int | None]]:
        recipe = space.decode(space.spec.genome(values))
        assert {own.layer for e in recipe.slices if e.slice.layer is None for own in e.inputs} == {None}
        return [[own.layer for own in e.inputs] for e in recipe.slices if e.slice.component == "attn"]

    assert layers(list(space.spec.initial.values)) == [[None, 0], [None, 2], [None, 4], [None, 6]]
    assert layers([6, 1, 1, 0]) == [[None, 0], [None, 1], [None, 1], [None, 6]]
    near = LayerMapSpace(uneven(lang=7), METHODS, window=1).spec
    assert [(gene.low, gene.high) for gene in near if gene.name.startswith("map")] == [(0, 1), (1, 3), (3, 5), (5, 6)]


def test_a_recipe_becomes_its_genome_again() -> None:
    space = LayerMapSpace(uneven(lang=7), METHODS, layer_group=2)
    genome = space.spec.genome([*(0.1 * i for i in range(len(space.spec) - 4)), 0, 3, 3, 5])
    assert space.encode(space.decode(genome)) == genome


@pytest.mark.parametrize(
    ("info", "options", "message"),
    [
        (
            uneven(),
            {},
            r"all sources have 4 layers.*choose search_space=parameter, or set search_space\.mapped=\[lang\]",
        ),
        (uneven(lang=7), {"mapped": ["math"]}, r"mapped leaves out 'lang', of 7 layers where the result has 4"),
        (uneven(lang=7), {"mapped": ["long"]}, r"search_space\.mapped names 'long'; did you mean 'lang'"),
        (uneven(lang=7), {"mapped": ["lang", "lang"]}, r"search_space\.mapped is lang, lang; every source once"),
        (uneven(lang=7), {"window": -1}, r"search_space\.window is -1; a number of layers, 0 or more"),
        (uneven(base=7, lang=7), {}, r"the base 'base' has 7 layers, and the result 4"),
        (
            replace(uneven(lang=7), immovable="they count"),
            {},
            r"layers of this architecture cannot change places: they",
        ),
    ],
)
def test_settings_that_cannot_be(info: PoolInfo, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LayerMapSpace(info, METHODS, **options)


def test_the_model_is_the_sum_of_the_layers_that_are_mapped(tiny_model: TinyModel, tmp_path: Path) -> None:
    """Two Llamas of 2 and 3 layers: by hand from their tensors, exported and resident."""
    from transformers import AutoModelForCausalLM

    folders = {"small": str(tiny_model("small")), "deep": str(tiny_model("deep", seed=1, num_hidden_layers=3))}
    opened = open_pool(folders)
    space = LayerMapSpace(opened.info, specs(), layer_group="all", components="all", parameters={"weight": 0.5})
    recipe = space.decode(space.spec.genome([2, 1]))  # sorted: layers 1 and 2 of the deeper
    made = merged_model(recipe, opened)
    states = {n: AutoModelForCausalLM.from_pretrained(folder).state_dict() for n, folder in folders.items()}
    for name, tensor in made.state_dict().items():
        other = name.replace("layers.1.", "layers.2.").replace("layers.0.", "layers.1.")
        torch.testing.assert_close(tensor, (states["small"][name] + states["deep"][other]) / 2)
    resident = Resident(opened)
    for values in ([0, 0], [2, 1]):  # a layer twice, then others
        resident.apply(make_plan(space.decode(space.spec.genome(values)), opened))
    assert resident.model.dtype == TORCH_DTYPES["float32"]
    tokens = torch.tensor([[1, 5, 9, 7]])
    with torch.no_grad():
        assert torch.equal(resident.model.module(tokens).logits, made(tokens).logits)
    resident.close()
