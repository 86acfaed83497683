"""Every option of the groups search_space and strategy builds, and the demo's space is the one it says."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from contracts.space_samples import pool as without_tensors

from evomerge import conf_dir
from evomerge.config.compose import compose_config
from evomerge.config.construct import build
from evomerge.errors import ConfigError
from evomerge.genomes.arrays import ArraySpec
from evomerge.merge.methods import specs
from evomerge.objectives import Objective
from evomerge.protocols import SearchSpace, Strategy
from evomerge.recipes.pool_info import PoolInfo
from evomerge.recipes.switches import shared_recipe
from evomerge.session.builders import space_from_node, without_prior

SPACES = sorted(path.stem for path in (conf_dir() / "search_space").glob("*.yaml"))
PATHS = ("data_flow", "blocks", "permutation", "relaxed_data_flow")
TASKS = ("parameter", "by_layer", "mixed", "joint", "lines", "stage")
FIRST = {
    **dict.fromkeys(PATHS, "passthrough"),
    **dict.fromkeys(TASKS, "task_arithmetic"),
    "lineage": "linear",
    "switch": "emr_switch",
    "checkpoints": "linear",
    "perturbation": "linear",
    "layer_methods": "linear",
    "choice": "linear",
    "layer_map": "linear",
    "listed": "linear",
}
"""Methods at the start of the options that are not called after theirs."""
NEEDED = {
    "layer_map": ["search_space.mapped=[lang]"],
    "listed": ["search_space.recipes={mean: {method: linear}}"],
}
"""What a space is nothing without."""
STRATEGIES = sorted(path.stem for path in (conf_dir() / "strategy").glob("*.yaml"))


def pool() -> PoolInfo:
    """The sample pool with a tensor of 8 numbers in every slice."""
    info = without_tensors()
    return replace(info, tensors=tuple(((f"{slice_}.weight", 8),) for slice_ in info.slices))


def space(*overrides: str) -> SearchSpace:
    config: Any = compose_config([*overrides, *([] if "experiment=demo" in overrides else ["~fitness"])])
    made: SearchSpace = space_from_node(config.search_space, "search_space", pool())
    return made


@pytest.mark.parametrize(
    "option", [option for option in SPACES if option not in ("weights", "coefficients", "landscape", "zipped")]
)
def test_search_spaces(option: str) -> None:
    made = space(f"search_space={option}", *NEEDED.get(option, []))
    recipe = made.decode(made.spec.initial)
    recipe.check(specs())
    assert {entry.method for entry in recipe.slices} == {FIRST.get(option, option)}
    if option == "switch":
        assert {entry.method for entry in shared_recipe(recipe).slices} == {"emr"}


def test_weights_are_genes_without_a_recipe() -> None:
    made = space("search_space=weights", "search_space.seeds=null")
    assert isinstance(made.spec, ArraySpec)
    assert len(made.spec) == 64 * 256 + 256 + 256 * 10 + 10
    assert made.decode(made.spec.initial) is None


@pytest.mark.parametrize("option", STRATEGIES)
def test_strategies(option: str) -> None:
    if option == "smac":
        pytest.importorskip("smac", reason="needs pip install 'evomerge[smac]'")
    config: Any = compose_config([f"strategy={option}", "~fitness"])
    own = "search_space=perturbation" if option == "eggroll" else "search_space.resolution=0.1"
    spec = space(own).spec  # a grid: brute force goes through all of it
    node, _ = without_prior(config.strategy, "strategy")
    strategy: Strategy = build(node, "strategy", spec, [Objective("score")], seed=1)
    assert len(strategy.ask()) >= (2 if option == "map_nested" else 4)  # which begins with the models alone


def test_keys_are_changed_from_the_command_line() -> None:
    made = space(
        "search_space=ties",
        "search_space.layer_group=3",
        "search_space.components=[[attn,mlp,norm],[embed,final_norm,head]]",
        "search_space.parameters.weight.high=1.5",
        "search_space.parameters.density=0.5",
        "search_space.parameters.lambda={low: 0.5, high: 1.5}",
        "search_space.resolution=0.1",
    )
    assert [(g.name, g.low, g.high, g.resolution) for g in made.spec][3:6] == [
        ("layers.0-2/math/weight", 0.0, 1.5, 0.1),
        ("layers.0-2/lang/weight", 0.0, 1.5, 0.1),
        ("layers.0-2/lambda", 0.5, 1.5, 0.1),
    ]


def test_methods_and_their_options_from_the_command_line() -> None:
    made = space(
        "search_space=mixed",
        "search_space.layer_group=all",
        "search_space.method=[task_arithmetic,dare_ties,slerp]",
        "search_space.parameters.dare_ties.density=0.5",
        "search_space.parameters.dare_ties.rescale_by=[probability,magnitude]",
        "search_space.parameters.slerp={t: {low: 0.25}}",
    )
    assert [(g.name, g.low, g.choices) for g in made.spec][-5:] == [
        ("layers.0-5/method", 0.0, ("task_arithmetic", "dare_ties", "slerp")),
        ("layers.0-5/math/weight", 0.0, ()),
        ("layers.0-5/lang/weight", 0.0, ()),
        ("layers.0-5/dare_ties/rescale_by", 0.0, ("probability", "magnitude")),
        ("layers.0-5/slerp/t", 0.25, ()),
    ]


def test_the_demo_searches_sixteen_weights() -> None:
    made = space("experiment=demo")
    assert len(made.spec) == 16
    assert set(made.spec.initial.values) == {0.5}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("search_space.method=tise", r"search_space\.method is 'tise'; did you mean 'ties'"),
        ("search_space.layer_group=13", r"search_space\.layer_group is 13; 1 to 6"),
        ("search_space.layer_group=1.5", r"search_space\.layer_group is 1\.5"),
        (
            "search_space.parameters.weight.high=abc",
            r"search_space\.parameters\.weight\.high is 'abc'; allowed: a finite number",
        ),
        ("search_space.components=[attn]", r"search_space\.components is \['attn'\]"),
        ("search_space.anchors=x", r"search_space\.anchors is 'x'"),
        ("+search_space.layer_groups=2", r"search_space has no key 'layer_groups'; did you mean 'layer_group'"),
    ],
)
def test_wrong_values_are_named(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        space(override)
