"""Genes of slices that are equal in all models: left out where, and only where, they change nothing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from contracts.space_samples import METHODS, pool, with_sources

from evomerge.errors import ConfigError
from evomerge.merge.methods import METHODS as REGISTERED
from evomerge.merge.methods import specs
from evomerge.recipes.pool_info import PoolInfo
from evomerge.recipes.slices import SliceId
from search_spaces.hybrid import JointSpace
from search_spaces.lineage import LineageSpace
from search_spaces.parameter import ParameterSpace
from search_spaces.permutation import PermutationSpace

OUTER = (SliceId("embed"), SliceId("final_norm"))
MLP = tuple(SliceId("mlp", layer) for layer in range(6))


def equal(slices: Iterable[SliceId], info: PoolInfo | None = None) -> PoolInfo:
    info = info or pool()
    return replace(info, constant=tuple(own for own in info.slices if own in set(slices)))


def names(**config: Any) -> list[str]:
    info = config.pop("info", equal(OUTER))
    return [gene.name for gene in ParameterSpace(info, METHODS, **{"components": "each", **config}).spec]


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "slerp", "linear", ["task_arithmetic", "ties"]])
def test_genes_that_change_nothing_are_left_out(method: Any) -> None:
    full = ParameterSpace(pool(), METHODS, method=method)
    made = ParameterSpace(equal(OUTER), METHODS, method=method)
    outer = [gene.name for gene in full.spec if gene.name.startswith(("embed/", "final_norm/"))]
    assert outer
    assert list(made.left_out) == outer
    assert [g.name for g in made.spec] == [g.name for g in full.spec if g.name not in outer]
    assert not full.left_out


@pytest.mark.parametrize(
    ("config", "kept"),
    [
        ({"method": "linear", "normalize": False}, True),  # weights scale what is equal
        ({"method": "linear", "parameters": {"normalize": [True, False]}}, True),
        ({"method": "linear", "normalize": True}, False),
        ({"method": ["task_arithmetic", "della"]}, True),  # a method that does not say so, a user's say
        ({"method": "task_arithmetic", "parameters": {"lambda": {"low": 0.5, "high": 1.5}}}, False),
        ({"method": "task_arithmetic", "normalize": True}, False),
        ({"method": "task_arithmetic", "negative_weights": True}, False),
    ],
)
def test_only_where_equal_models_come_out_as_they_are(config: dict[str, Any], kept: bool) -> None:
    assert any(name.startswith("embed/") for name in names(**config)) == kept


def test_a_group_with_anything_that_differs_keeps_its_genes() -> None:
    assert any(name.startswith("embed+final_norm/") for name in names(components="all", info=equal(OUTER[:1])))
    assert not any(name.startswith("embed+final_norm/") for name in names(components="all"))
    some = names(layer_group=3, info=equal(MLP[:4]))
    assert not any(name.startswith("layers.0-2.mlp/") for name in some)
    assert any(name.startswith("layers.3-5.mlp/") for name in some)


def test_an_anchor_that_only_equal_layers_use_has_none() -> None:
    some = names(interpolation="linear", anchors=3, info=equal(MLP[:3]))  # anchors at 0, 2.5 and 5
    assert [name for name in some if ".mlp" in name and name.endswith("math/weight")] == [
        "layers@2.5.mlp/math/weight",
        "layers@5.mlp/math/weight",
    ]
    made = ParameterSpace(equal(MLP[:3]), METHODS, interpolation="linear", components="each")
    made.decode(made.spec.initial)


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "slerp", "linear"])
def test_equal_slices_are_copies_and_the_others_as_before(method: str) -> None:
    """By what the engine takes for a copy, and in the method of the others: a file of mergekit's has only one."""
    info, declared = equal(OUTER), specs()
    made, full = ParameterSpace(info, declared, method=method), ParameterSpace(pool(), declared, method=method)
    genome = made.spec.sample(np.random.default_rng(0))
    values = full.spec.named(full.spec.initial) | made.spec.named(genome)
    before = full.decode(full.spec.genome([values[gene.name] for gene in full.spec]))
    recipe = made.decode(genome)
    recipe.check(declared)
    for own, other in zip(recipe.slices, before.slices, strict=True):
        if own.slice not in OUTER:
            assert own == other
            continue
        assert own.method == method
        each = {name: [dict(i.parameters)[name] for i in own.inputs] for name in dict(own.inputs[0].parameters)}
        shared = {f"{name}_" if name == "lambda" else name: value for name, value in own.parameters}
        unchanged = REGISTERED[method].unchanged
        assert unchanged is not None
        assert unchanged({**each, **shared}) == 0


def test_models_that_are_all_the_same_are_said() -> None:
    info = equal(pool().slices)
    with pytest.raises(ConfigError, match=r"equal in every slice: base, math, lang; models that differ"):
        ParameterSpace(info, METHODS)
    with pytest.raises(ConfigError, match="equal in every slice"):
        LineageSpace(info, METHODS)


@pytest.mark.parametrize("shared", [False, True])
def test_joint_paths_have_no_merge_genes_for_them(shared: bool) -> None:
    config: dict[str, Any] = {"repeats": 2, "shared": shared, "components": "each", "method": "ties"}
    made, full = JointSpace(equal((*OUTER, *MLP)), METHODS, **config), JointSpace(pool(), METHODS, **config)
    gone = {gene.name for gene in full.spec} - {gene.name for gene in made.spec}
    assert gone == {gene.name for gene in full.spec if ".mlp/" in gene.name or gene.name.startswith(("embed", "final"))}
    assert set(made.left_out) == gone
    rng = np.random.default_rng(1)
    for _ in range(5):
        made.decode(made.spec.sample(rng)).check(METHODS)


def test_paths_themselves_do_not_change() -> None:
    """A layer that is equal in two models is still one more layer where it is taken twice."""
    made = [PermutationSpace(info, METHODS).spec for info in (pool(), equal((*OUTER, *MLP)))]
    assert made[0] == made[1]


@pytest.mark.parametrize("method", ["slerp", "linear"])
def test_lineages_leave_them_out_of_their_chromosomes(method: Any) -> None:
    info = equal(OUTER, with_sources(pool(), "math", "lang"))
    config: dict[str, Any] = {"method": method, "split": "slice", "chromosomes": [["embed", "final_norm"], ["attn"]]}
    made = LineageSpace(info, METHODS, **config)
    assert made.spec.chromosomes == ("attn", "rest")
    first = made.spec.sample(np.random.default_rng(0))
    recipe = made.decode(made.spec.child(first, made.spec.sample(np.random.default_rng(1)), [0.3, 0.5, 0.4, 0.2]))
    recipe.check(METHODS)
    assert [entry.slice for entry in recipe.slices] == list(info.slices)
    for entry in recipe.slices:
        if entry.slice in OUTER:
            assert [value for i in entry.inputs for _, value in i.parameters] == [1.0]
