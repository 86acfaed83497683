from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from contracts.space_samples import pool

from evomerge.errors import ConfigError
from evomerge.recipes.pool_info import PoolInfo
from evomerge.recipes.slices import Component, SliceId
from search_spaces.groups import component_lists, layer_anchors, layer_groups


@pytest.mark.parametrize(
    ("given", "lists"),
    [
        ("each", [["attn"], ["mlp"], ["norm"], ["embed"], ["final_norm"], ["head"]]),
        ("all", [["attn", "mlp", "norm"], ["embed", "final_norm", "head"]]),
        ([], [["attn", "mlp", "norm"], ["embed", "final_norm", "head"]]),
        ([["mlp", "attn"]], [["attn", "mlp"], ["norm"], ["embed", "final_norm", "head"]]),
        ([["head", "embed"], ["attn", "mlp", "norm"]], [["embed", "head"], ["attn", "mlp", "norm"], ["final_norm"]]),
    ],
)
def test_component_lists_are_completed(given: str | list[list[str]], lists: list[list[str]]) -> None:
    assert component_lists(given, "components") == lists


def test_layer_groups_cover_every_slice_once() -> None:
    info = pool(layers=5, head=True)
    sharing = layer_groups(info, 2, component_lists("each", "components"), "layer_group")
    assert set(sharing.shares) == set(info.slices)
    assert {len(shares) for shares in sharing.shares.values()} == {1}
    by_group = [
        [str(s) for s, ((group, _),) in sharing.shares.items() if group == i] for i in range(len(sharing.names))
    ]
    assert dict(zip(sharing.names, by_group, strict=True)) == {
        "embed": ["embed"],
        "layers.0-1.attn": ["layers.0.attn", "layers.1.attn"],
        "layers.0-1.mlp": ["layers.0.mlp", "layers.1.mlp"],
        "layers.0-1.norm": ["layers.0.norm", "layers.1.norm"],
        "layers.2-3.attn": ["layers.2.attn", "layers.3.attn"],
        "layers.2-3.mlp": ["layers.2.mlp", "layers.3.mlp"],
        "layers.2-3.norm": ["layers.2.norm", "layers.3.norm"],
        "layers.4.attn": ["layers.4.attn"],
        "layers.4.mlp": ["layers.4.mlp"],
        "layers.4.norm": ["layers.4.norm"],
        "final_norm": ["final_norm"],
        "head": ["head"],
    }


@pytest.mark.parametrize(("size", "names"), [("layer", 6), (1, 6), (2, 3), (4, 2), (5, 2), (6, 1), ("all", 1)])
def test_group_sizes(size: int | str, names: int) -> None:
    sharing = layer_groups(pool(), size, component_lists("all", "components"), "layer_group")
    assert sum(name.startswith("layers") for name in sharing.names) == names


def test_a_list_may_cross_the_layers_when_they_are_one_group() -> None:
    lists = component_lists([["attn", "head"], ["mlp", "embed"]], "components")
    names = layer_groups(pool(head=True), "all", lists, "layer_group").names
    assert names == ("embed+layers.0-5.mlp", "layers.0-5.attn+head", "layers.0-5.norm", "final_norm")


def test_anchors_share_by_distance() -> None:
    info = pool(layers=5)
    sharing = layer_anchors(info, 3, component_lists("all", "components"), "anchors")
    assert sharing.names == ("embed+final_norm", "layers@0", "layers@2", "layers@4")
    found = [sharing.shares[SliceId("mlp", layer)] for layer in range(5)]
    assert found == [((1, 1.0),), ((1, 0.5), (2, 0.5)), ((2, 1.0),), ((2, 0.5), (3, 0.5)), ((3, 1.0),)]
    assert sharing.shares[SliceId("embed")] == sharing.shares[SliceId("final_norm")] == ((0, 1.0),)


@pytest.mark.parametrize("anchors", range(2, 33))
def test_shares_sum_to_one_and_every_anchor_is_used(anchors: int) -> None:
    info = pool(layers=32)
    sharing = layer_anchors(info, anchors, component_lists("each", "components"), "anchors")
    assert len(sharing.names) == 3 * anchors + 2
    for shares in sharing.shares.values():
        assert sum(share for _, share in shares) == pytest.approx(1, abs=1e-15)
    assert {group for shares in sharing.shares.values() for group, _ in shares} == set(range(len(sharing.names)))


def test_one_layer_has_no_depth() -> None:
    with pytest.raises(ConfigError, match="the pool has 1 layer"):
        layer_anchors(pool(layers=1), 2, component_lists("all", "components"), "anchors")


def drawn() -> PoolInfo:
    """Of a network that draws images: three blocks, with convolutions and embeddings of the time."""
    inner: list[tuple[Component, int]] = [("resnet", 0), ("time", 0), ("attn", 1), ("resnet", 1), ("resnet", 2)]
    slices = [SliceId("embed"), SliceId("time_embed"), *(SliceId(c, layer) for c, layer in inner), SliceId("head")]
    blocks = (("down.0", 1), ("down.1", 1), ("mid", 1))
    return replace(pool(layers=3), slices=tuple(slices), layers=3, blocks=blocks, sizes=(), tensors=())


@pytest.mark.parametrize(
    ("group", "components", "names"),
    [
        ("block", "all", ["embed+time_embed+head", "down.0", "down.1", "mid"]),
        ("section", "all", ["embed+time_embed+head", "down", "mid"]),
        ("section", [["attn"]], ["embed+time_embed+head", "down.attn", "down.resnet+time", "mid.resnet+time"]),
        ("layer", [["time", "time_embed"]], None),
        ("all", "each", ["embed", "time_embed", "layers.1.attn", "layers.0-2.resnet", "layers.0.time", "head"]),
    ],
)
def test_blocks_with_names_of_their_own(group: str, components: Any, names: list[str] | None) -> None:
    lists = component_lists(components, "components")
    if names is None:
        with pytest.raises(ConfigError, match="'time_embed', which belongs to no layer, with 'time'"):
            layer_groups(drawn(), group, lists, "layer_group")
        return
    assert sorted(layer_groups(drawn(), group, lists, "layer_group").names) == sorted(names)


def test_blocks_are_asked_of_architectures_that_have_them() -> None:
    with pytest.raises(ConfigError, match="layer_group is 'block'"):
        layer_groups(pool(layers=4), "block", component_lists("each", "components"), "layer_group")
