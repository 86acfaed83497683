from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from merge.carry_out import carry_out, merged
from merge.mergekits import assert_same, by_mergekit, fine_tunes

from evomerge.merge.methods import blocks
from evomerge.recipes.method_spec import Scalar

BASE = [1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
A = [3.0, 2.0, 1.0, 1.0, 1.5, 1.0]  # +2, +1, 0, 0, +0.5, 0
B = [0.0, 1.0, 1.0, 2.0, 1.0, 5.0]  # -1, 0, 0, +1, 0, +4
C = [5.0, 1.0, 1.0, 4.0, 1.0, 1.0]  # +4, 0, 0, +3, 0, 0


def sparse(size: float = 0.02) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Models that changed different thirds of the elements of a base, as reinforcement learning does."""
    base, inputs = fine_tunes(size=size)
    generator = torch.Generator().manual_seed(9)
    kept = [torch.rand(base.shape, generator=generator) < share for share in (0.2, 0.5, 0.35)]
    return base, [torch.where(keep, x, base) for keep, x in zip(kept, inputs, strict=True)]


def test_unique_changes_are_kept_and_shared_ones_averaged() -> None:
    expected = [1 + (2 - 1 + 4) / 3, 2, 1, 3, 1.5, 5]
    assert merged("ram", [A, B, C], BASE) == pytest.approx(expected)


def test_changes_up_to_epsilon_are_none() -> None:
    # Of A only the first is larger than one, of B only the last.
    assert merged("ram", [A, B, C], BASE, epsilon=1.0) == [4, 1, 1, 4, 1, 5]
    assert merged("ram", [A, B, C], BASE, epsilon=9.0) == BASE


def test_unique_changes_grow_with_the_overlap() -> None:
    # Of A's changes one is shared and two are its own, of B's two and one; all of C's are shared.
    factors = 1 + 0.5 * 0.5, 1 + 0.5 * 0.8
    expected = [1 + 5 / 3, 1 + factors[0], 1, 3, 1 + 0.5 * factors[0], 1 + 4 * factors[1]]
    assert merged("ramplus_tl", [A, B, C], BASE, r=0.5, alpha=0.8) == pytest.approx(expected)


def test_without_strength_it_is_ram() -> None:
    base, inputs = sparse()
    plain = carry_out("ram", inputs, base)
    for shared in ({"r": 0.0}, {"alpha": 0.0}):
        torch.testing.assert_close(carry_out("ramplus_tl", inputs, base, None, shared), plain)


@pytest.mark.parametrize("method", ["ram", "ramplus_tl"])
def test_one_model_alone_is_itself(method: str) -> None:
    base, (x, *_) = fine_tunes()
    assert torch.equal(carry_out(method, [x], base, None, {"epsilon": 0.0}), x)
    kept = carry_out(method, [x], base, None, {"epsilon": 0.01})
    assert torch.equal(kept, torch.where((x - base).abs() > 0.01, x, base))


@pytest.mark.parametrize("shared", [{}, {"epsilon": 1e-2}, {"epsilon": 0.5}])
def test_ram_is_mergekits(shared: Mapping[str, Scalar]) -> None:
    for base, inputs in (sparse(), fine_tunes()):
        assert_same(carry_out("ram", inputs, base, None, shared), by_mergekit("ram", inputs, base, None, shared))


@pytest.mark.parametrize("shared", [{}, {"r": 1.0, "alpha": 5.0}, {"r": 0.7, "alpha": 0.3, "epsilon": 1e-2}])
def test_ramplus_is_mergekits(shared: Mapping[str, Scalar]) -> None:
    for base, inputs in (sparse(), fine_tunes()):
        theirs = by_mergekit("ramplus_tl", inputs, base, None, shared)
        assert_same(carry_out("ramplus_tl", inputs, base, None, shared), theirs)


def test_counts_do_not_depend_on_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    base, inputs = sparse()
    whole = carry_out("ramplus_tl", inputs, base)
    monkeypatch.setattr(blocks, "_CPU_BLOCK", 100)
    assert torch.equal(carry_out("ramplus_tl", inputs, base), whole)
