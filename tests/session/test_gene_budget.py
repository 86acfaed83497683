"""Search spaces whose grouping is left to the budget, and budgets that are too small for their genes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from contracts.space_samples import METHODS, pool
from omegaconf import OmegaConf

from evomerge.errors import ConfigError
from evomerge.recipes.pool_info import PoolInfo
from evomerge.session.builders import phase_nodes
from evomerge.session.gene_budget import PER_GENE, fit_spaces, free_genes
from search_spaces.parameter import ParameterSpace

TARGET = "search_spaces.parameter.ParameterSpace"


def config_of(evaluations: int, phases: Any = None, **space: Any) -> Any:
    node = {"_target_": TARGET, "method": "ties", "layer_group": "auto", "components": "auto", **space}
    content = {"search": {"evaluations": evaluations}, "search_space": node, "phases": phases, "strategy": {}}
    return OmegaConf.create(content)


def fitted(config: Any, info: PoolInfo | None = None) -> tuple[tuple[str, ...], int]:
    """What was chosen, and how many genes the first phase's space then has."""
    nodes = phase_nodes(config, info or pool(32))
    chosen = fit_spaces(nodes, info or pool(32))
    return chosen, free_genes(nodes[0].space(None).spec)


def test_the_finest_that_leaves_ten_evaluations_a_gene() -> None:
    """Two models with weight and density: four genes a group, 32 layers of three components and two outer slices."""
    for evaluations, group, components, genes in [
        (4000, "layer", "each", 4 * (32 * 3 + 2)),
        (3919, "layer", "all", 4 * 33),
        (1320, "layer", "all", 4 * 33),
        (1319, 2, "all", 4 * 17),
        (300, 6, "all", 4 * 7),
        (120, 16, "all", 4 * 3),
        (80, "all", "all", 4 * 2),
        (10, "all", "all", 4 * 2),
    ]:
        config = config_of(evaluations)
        chosen, found = fitted(config)
        assert (config.search_space.layer_group, config.search_space.components) == (group, components)
        assert chosen == (f"search_space.layer_group={group}", f"search_space.components={components}")
        assert found == genes
        assert found * PER_GENE <= evaluations or evaluations == 10


def test_what_is_given_stays() -> None:
    config = config_of(300, layer_group=4)
    assert fitted(config) == (("search_space.components=all",), 4 * 9)
    config = config_of(300, components=[["attn"], ["mlp", "norm"], ["embed", "final_norm", "head"]])
    chosen, genes = fitted(config)
    assert (chosen, genes) == (("search_space.layer_group=11",), 4 * 7)
    assert fitted(config_of(20, layer_group="layer", components="each"))[0] == ()


def test_interpolated_layers_have_no_groups() -> None:
    config = config_of(200, interpolation="linear", anchors=3)
    assert fitted(config) == (("search_space.layer_group=layer", "search_space.components=all"), 4 * 4)


def test_components_that_only_one_group_of_layers_can_have() -> None:
    config = config_of(4000, components=[["attn", "embed"], ["mlp", "norm", "final_norm"]])
    assert fitted(config) == (("search_space.layer_group=all",), 4 * 2)


def test_equal_slices_leave_room_for_more_layers() -> None:
    """Sixteen groups of two genes without those of the embeddings and the final norm, fifteen with them."""
    info = pool(32)
    equal = replace(info, constant=tuple(own for own in info.slices if own.layer is None))
    config = config_of(320, method="task_arithmetic")
    assert fitted(config, equal) == (("search_space.layer_group=2", "search_space.components=all"), 2 * 16)
    assert fitted(config_of(320, method="task_arithmetic"), info)[1] < 2 * 16


def test_each_phase_fits_its_own_evaluations_and_a_shared_space_the_shortest() -> None:
    own = {"_target_": TARGET, "method": "ties", "layer_group": "auto", "components": "all"}
    config = config_of(
        1000, phases={"first": {"evaluations": 800}, "second": {"evaluations": 200, "search_space": own}}
    )
    chosen, _ = fitted(config)
    assert "phases.second.search_space.layer_group=8" in chosen
    assert config.phases.second.search_space.layer_group == 8
    config = config_of(1000, phases={"first": {"evaluations": 800}, "second": {"evaluations": 200}})
    assert fitted(config)[1] <= 20


@pytest.mark.parametrize("node", [{"_target_": "search_spaces.data_flow.DataFlowSpace"}, {"method": "ties"}, None])
def test_other_spaces_are_left_alone(node: Any) -> None:
    config = OmegaConf.create({"search": {"evaluations": 50}, "search_space": node, "phases": None, "strategy": {}})
    assert fit_spaces(phase_nodes(config, pool()), pool()) == ()


def test_what_cannot_be_built_is_said_when_the_space_is_built() -> None:
    nodes = phase_nodes(config_of(50, method="tise"), pool())
    fit_spaces(nodes, pool())
    with pytest.raises(ConfigError, match="did you mean 'ties'"):
        nodes[0].space(None)


def test_without_a_budget_auto_is_the_finest() -> None:
    made = ParameterSpace(pool(), METHODS, layer_group="auto", components="auto")
    assert made.spec == ParameterSpace(pool(), METHODS, layer_group="layer", components="each").spec


def test_configurations_begin_so() -> None:
    from evomerge.config.compose import compose_config

    for name in ("task_arithmetic", "ties", "dare_ties", "linear", "slerp", "mixed"):
        config: Any = compose_config([f"search_space={name}"])
        assert config.search_space.layer_group == "auto"
    assert compose_config(["search_space=by_layer"]).search_space.layer_group == "layer"
