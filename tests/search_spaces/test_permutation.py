from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from contracts.space_samples import METHODS, pool
from test_data_flow import path

from evomerge.errors import ConfigError, InfeasibleError
from evomerge.genomes.genome import Genome, Value
from search_spaces.permutation import PermutationSpace


def space(**config: Any) -> PermutationSpace:
    return PermutationSpace(pool(4), METHODS, **config)


def genome(made: PermutationSpace, **changed: Value) -> Genome:
    """Nothing taken, in the order of the models, scales 1, but for genes named as ``layers.`` and these words."""
    values: list[Value] = []
    for gene in made.spec:
        plain: Value = 1.0 if gene.name.endswith("/scale") else False if gene.kind == "boolean" else 0
        values.append(changed.get(gene.name.removeprefix("layers."), plain))
    return made.spec.genome(values)


def test_the_genes() -> None:
    made = space()
    one = ["layers.1/math", "layers.1/lang", "layers.1/order.0", "layers.1/scale"]
    assert [gene.name for gene in made.spec] == [*one, *(name.replace("1/", "2/") for name in one)]
    assert made.spec.initial.values == (True, False, 0, 1.0, True, False, 0, 1.0)
    assert path(made.decode(made.spec.initial)) == ["math.0", "math.1", "math.2", "math.3"]


def test_sources_and_order_are_chosen_at_every_depth() -> None:
    made = space()
    both = {"1/math": True, "1/lang": True, "1/order.0": 1, "2/lang": True}
    assert path(made.decode(genome(made, **both))) == ["math.0", "lang.1", "math.1", "lang.2", "math.3"]
    swapped = {**both, "1/order.0": 0, "1/scale": 0.5}
    assert path(made.decode(genome(made, **swapped))) == ["math.0", "math.1*2", "lang.1*2", "lang.2*2", "math.3*2"]


def test_layers_are_repeated_in_turns() -> None:
    made = space(repeats=3, scales="none")
    taken = {"1/math": 3, "1/lang": 2, "1/order.0": 1}
    turns = ["lang.1", "math.1", "lang.1", "math.1", "math.1"]
    assert path(made.decode(genome(made, **taken))) == ["math.0", *turns, "math.2", "math.3"]


def test_neighbouring_layers_are_permuted_with_each_other() -> None:
    made = space(group=2, scales="none")
    assert [gene.name for gene in made.spec][:5] == [
        *("layers.1-2/math.1", "layers.1-2/lang.1", "layers.1-2/math.2", "layers.1-2/lang.2"),
        "layers.1-2/order.0",
    ]
    # the third of four, the last of three, the first of two, what is left
    order = {"1-2/order.0": 2, "1-2/order.1": 2, "1-2/order.2": 0}
    all_of_them = {f"1-2/{name}": True for name in ("math.1", "lang.1", "math.2", "lang.2")}
    recipe = made.decode(genome(made, **order, **all_of_them))
    assert path(recipe) == ["math.0", "math.2", "lang.2", "math.1", "lang.1", "math.3"]


def test_where_nothing_is_taken_the_input_model_stays_or_nothing() -> None:
    made = space(input_model="lang")
    assert path(made.decode(genome(made))) == ["lang.0", "lang.1", "lang.2", "lang.3"]
    made = space(keep=False)
    assert path(made.decode(genome(made))) == ["math.0", "math.3"]
    bare = space(keep=False, fixed=0)
    with pytest.raises(InfeasibleError, match="the path is empty"):
        bare.decode(genome(bare))


def test_limits() -> None:
    made = space(repeats=2, max_uses=1, max_layers=5)
    with pytest.raises(InfeasibleError, match="layer 1 of math comes 2 times; at most 1"):
        made.decode(genome(made, **{"1/math": 2}))
    with pytest.raises(InfeasibleError, match="the path has 6 layers; at most 5"):
        made.decode(genome(made, **{"1/math": 1, "1/lang": 1, "2/math": 1, "2/lang": 1}))


def test_models_of_different_depths_are_refused() -> None:
    info = replace(pool(4), depths=(("lang", 6),))
    with pytest.raises(ConfigError, match=r"differ in their number of layers: math has 4, lang has 6.*=data_flow"):
        PermutationSpace(info, METHODS)
    with pytest.raises(ConfigError, match=r"search_space.scales is 'slot'; .*none, |layer"):
        space(scales="slot")
    with pytest.raises(ConfigError, match=r"search_space.group is 5; 1 to 4, the layers of math"):
        space(group=5)
