from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from contracts.space_samples import METHODS, pool
from test_data_flow import scales

from evomerge.errors import ConfigError, InfeasibleError
from evomerge.genomes.genome import Genome, Value
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.slices import Input, SliceId, SliceRecipe
from search_spaces.hybrid import JointSpace
from search_spaces.parameter import ParameterSpace


def space(layers: int = 4, **config: Any) -> JointSpace:
    return JointSpace(pool(layers), METHODS, **config)


def genome(made: JointSpace, **changed: Value) -> Genome:
    """The start with these genes changed; ``__`` stands for a slash."""
    named = made.spec.named(made.spec.initial) | {name.replace("__", "/"): value for name, value in changed.items()}
    return made.spec.genome(list(named.values()))


def entry(recipe: Recipe, name: str) -> SliceRecipe:
    return next(e for e in recipe.slices if e.slice == SliceId.parse(name))


def weights(recipe: Recipe, name: str) -> list[tuple[str, int | None, object]]:
    return [(i.model, i.layer, dict(i.parameters)["weight"]) for i in entry(recipe, name).inputs]


def test_the_start_is_that_of_the_parameter_space() -> None:
    made = space(scales="none", method="ties")
    same = ParameterSpace(pool(4), METHODS, method="ties", components="all")
    assert made.decode(made.spec.initial) == same.decode(same.spec.initial)
    assert [gene.name for gene in made.spec] == ["take.1", "take.2", *(gene.name for gene in same.spec)]


def test_slots_are_merged_by_their_own_genes_of_their_own_layers() -> None:
    made = space(repeats=2, scales="slot")
    word = "slots.5/math/weight"  # the second slot of the second repeat
    assert word in made.spec.named(made.spec.initial)
    recipe = made.decode(genome(made, **{"take.2": False, "take.5": True, word: 0.125, "take.5/scale": 0.5}))
    assert [dict(entry(recipe, f"layers.{k}.mlp").inputs[0].parameters)["weight"] for k in range(4)] == [
        *(0.5, 0.5, 0.125, 0.5)
    ]
    assert weights(recipe, "layers.2.attn") == [("math", 1, 0.125), ("lang", 1, 0.5)]
    assert entry(recipe, "layers.2.attn").base == Input("base", 1)
    assert weights(recipe, "layers.1.attn") == [("math", None, 0.5), ("lang", None, 0.5)]
    assert weights(recipe, "layers.3.norm") == [
        ("math", None, 0.5),
        ("lang", None, 0.5),
    ]  # the last layer, at its place
    assert scales(recipe, "attn") == [None, None, 2.0, 2.0]


def test_repeats_may_share_their_genes() -> None:
    made = space(repeats=2, shared=True, scales="none")
    assert "layers.1/math/weight" in made.spec.named(made.spec.initial)
    recipe = made.decode(genome(made, **{"take.5": True, "layers.1/math/weight": 0.25}))
    assert weights(recipe, "layers.1.mlp")[0] == ("math", None, 0.25)
    assert weights(recipe, "layers.3.mlp")[0] == ("math", 1, 0.25)


def test_slots_that_are_not_taken_need_no_weights() -> None:
    made = space(method="linear", scales="none")
    nothing = {"layers.2__math__weight": 0.0, "layers.2__lang__weight": 0.0}
    with pytest.raises(InfeasibleError, match=r"the weights of slice layers.2.attn sum to 0"):
        made.decode(genome(made, **nothing))
    recipe = made.decode(genome(made, **nothing, **{"take.2": False}))
    assert max(e.slice.layer or 0 for e in recipe.slices) == 2


def test_negative_scales_flip_norms() -> None:
    made = space(negative_scales=True)
    recipe = made.decode(genome(made, **{"take.2/scale": -1.25}))
    assert scales(recipe, "mlp") == [None, None, -0.8, -0.8]
    assert scales(recipe, "norm") == [None, None, -1.0, -1.0]
    assert scales(recipe, "final_norm") == [-1.0]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"method": "tise"}, r"search_space.method is 'tise'; did you mean 'ties'"),
        ({"fixed": 3}, r"search_space.fixed is 3; 0 to 2"),
        ({"max_layers": 1}, r"leaves no path to start from"),
        ({"scales": "layer"}, r"search_space.scales is 'layer'"),
    ],
)
def test_what_cannot_be_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        space(**config)


def test_models_of_different_depths_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"merges layers and the models of the pool differ.*search_space=data_flow"):
        JointSpace(replace(pool(4), depths=(("lang", 3),)), METHODS)
