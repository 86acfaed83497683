"""Which experts become one, and what of them is made."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from evomerge.errors import EvomergeError
from evomerge.merge.experts.grouping import by_clusters, by_dominant, dominant, numbers_by_threshold
from evomerge.merge.experts.merging import Layer, in_order, merged_layer

COUNTS = np.array([10.0, 40.0, 20.0, 30.0])


def test_the_most_used_are_dominant_and_the_others_join_the_likest() -> None:
    assert dominant(COUNTS, 2) == (1, 3)
    assert dominant(np.array([5.0, 5.0, 5.0]), 2) == (0, 1)
    similarity = np.eye(4)
    similarity[0, 3] = similarity[2, 1] = 0.9
    similarity[0, 2] = 0.95  # which is not dominant
    similarity[2, 3] = 0.8
    assert by_dominant(similarity, COUNTS, 2) == ((1, 2), (3, 0))
    assert by_dominant(similarity, COUNTS, 3) == ((1,), (3,), (2, 0))


def test_one_threshold_for_all_layers_leaves_each_an_expert() -> None:
    even, steep = np.array([30.0, 30.0, 20.0, 20.0]), np.array([970.0, 10.0, 10.0, 10.0])
    # By frequency: 0.97, 0.3, 0.3, 0.2, 0.2, then 0.01; the best of each layer count as 1.
    assert numbers_by_threshold({0: even, 3: steep}, 2) == {0: 3, 3: 1}
    assert numbers_by_threshold({0: even, 3: steep}, 1) == {0: 1, 3: 1}
    assert numbers_by_threshold({0: even, 3: steep}, 3) == {0: 4, 3: 2}
    assert even[0] == 30  # what is given stays as it is


def test_clusters_are_of_like_outputs() -> None:
    similarity = np.array([[1, 0.1, 0.9, 0.1], [0.1, 1, 0.1, 0.8], [0.9, 0.1, 1, 0.1], [0.1, 0.8, 0.1, 1]])
    assert by_clusters(similarity, COUNTS, 2, seed=0) == ((1, 3), (2, 0))
    assert by_clusters(np.ones((4, 4)), COUNTS, 3, seed=0) == ((1, 3), (0,), (2,))  # all alike: the least used alone


def random_layer(count: int = 3, units: int = 4, width: int = 5, dtype: torch.dtype = torch.float32) -> Layer:
    generator = torch.Generator().manual_seed(0)
    shapes = ((count, width), (count, 2 * units, width), (count, width, units))
    return Layer(*(torch.randn(shape, generator=generator).to(dtype) for shape in shapes))


def output(layer: Layer, expert: int, x: torch.Tensor) -> torch.Tensor:
    gate, up = (x @ layer.gate_up[expert].T).chunk(2, dim=-1)
    return (torch.nn.functional.silu(gate) * up) @ layer.down[expert].T


def test_means_by_use() -> None:
    layer, counts = random_layer(), np.array([3.0, 1.0, 0.0])
    made = merged_layer(layer, ((0, 1), (2,)), counts, align=False)
    torch.testing.assert_close(made.gate_up[0], 0.75 * layer.gate_up[0] + 0.25 * layer.gate_up[1])
    torch.testing.assert_close(made.down[0], 0.75 * layer.down[0] + 0.25 * layer.down[1])
    torch.testing.assert_close(made.router[0], 0.75 * layer.router[0] + 0.25 * layer.router[1])
    assert torch.equal(made.down[1], layer.down[2])
    unused = merged_layer(layer, ((0, 1, 2),), np.zeros(3), align=False)
    torch.testing.assert_close(unused.down[0], layer.down.mean(0))


def test_routers() -> None:
    layer, counts = random_layer(), np.array([1.0, 3.0, 2.0])
    groups = ((1, 0), (2,))
    made = merged_layer(layer, groups, counts, router="dominant")
    assert torch.equal(made.router, layer.router[[1, 2]])
    kept = merged_layer(layer, groups, counts, router="kept")
    assert torch.equal(kept.router, layer.router)
    assert torch.equal(kept.gate_up, made.gate_up[[0, 0, 1]])
    assert torch.equal(kept.down, made.down[[0, 0, 1]])
    dropped = merged_layer(layer, ((2,),), counts)
    assert torch.equal(dropped.router, layer.router[[2]])
    with pytest.raises(EvomergeError, match="groups of all"):
        merged_layer(layer, ((2,),), counts, router="kept")
    with pytest.raises(EvomergeError, match="each in one group"):
        merged_layer(layer, ((0, 1), (1, 2)), counts)


def test_units_in_another_order_are_one_expert() -> None:
    """An expert and its copy with units elsewhere merge into it: aligned means are exact, plain ones are not."""
    layer = random_layer(1)
    order = torch.tensor([2, 0, 3, 1])
    gate, up = layer.gate_up[0].chunk(2)
    copy = torch.cat([gate[order], up[order]]), layer.down[0][:, order]
    back = in_order((layer.gate_up[0], layer.down[0]), copy)
    assert torch.equal(back[0], layer.gate_up[0])
    assert torch.equal(back[1], layer.down[0])
    both = Layer(
        layer.router.repeat(2, 1), torch.stack([layer.gate_up[0], copy[0]]), torch.stack([layer.down[0], copy[1]])
    )
    x = torch.randn(7, 5, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(output(both, 1, x), output(layer, 0, x))
    counts = np.array([1.0, 1.0])
    torch.testing.assert_close(output(merged_layer(both, ((0, 1),), counts), 0, x), output(layer, 0, x))
    plain = output(merged_layer(both, ((0, 1),), counts, align=False), 0, x)
    assert (plain - output(layer, 0, x)).abs().max() > 0.1


@pytest.mark.parametrize("rank", [1.0, 0.6])
def test_sub_moe_is_its_formula(rank: float) -> None:
    """U S (sum f_i V_i^T) of the matrices side by side; with all singular values, the mean by use."""
    layer, shares = random_layer(), np.array([0.5, 0.2, 0.3])
    made = merged_layer(layer, ((0, 1, 2),), shares, align=False, rank=rank)
    gates, ups = layer.gate_up.numpy()[:, :4], layer.gate_up.numpy()[:, 4:]
    for found, matrices in (
        (made.gate_up[0][:4], gates),
        (made.gate_up[0][4:], ups),
        (made.down[0], layer.down.numpy()),
    ):
        u, s, vt = np.linalg.svd(np.concatenate(list(matrices), axis=1), full_matrices=False)
        kept = int(np.ceil(rank * len(s)))
        blocks = np.split(vt[:kept], 3, axis=1)
        expected = u[:, :kept] @ np.diag(s[:kept]) @ sum(f * block for f, block in zip(shares, blocks, strict=True))
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)
        if rank == 1:
            np.testing.assert_allclose(expected, np.tensordot(shares, matrices, 1), atol=1e-5)


def test_single_experts_are_copied_bit_for_bit() -> None:
    layer = random_layer(dtype=torch.float64)
    made = merged_layer(layer, ((2,), (0, 1)), np.ones(3))
    assert torch.equal(made.gate_up[0], layer.gate_up[2])
    assert made.down.dtype == torch.float64
