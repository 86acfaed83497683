from __future__ import annotations

import math

import pytest
import torch
from merge.carry_out import carry_out, merged, weights
from merge.mergekits import fine_tunes

from evomerge.errors import PoolError
from evomerge.merge.methods import blocks

BASE = [1.0, 1.0, 1.0]
A = [5.0, 3.0, 1.0]  # +4 +2  0: sizes 1, 1/2, 0
B = [1.0, 3.0, -3.0]  # 0 +2 -4: sizes 0, 1/2, 1
# Scores of A: e^2 tanh 1, e^0.5 2 tanh 0.25, 0; of B the same from the end.


def test_elements_count_by_their_scores() -> None:
    assert merged("pcb", [A, B], BASE, density=1.0, clip=0.0) == pytest.approx([5, 3, -3])
    # Of three scores the largest is above the second: the middle goes.
    assert merged("pcb", [A, B], BASE, density=0.5, clip=0.0) == pytest.approx([5, 1, -3])
    assert merged("pcb", [A, B], BASE, density=0.0) == BASE
    half = merged("pcb", [A, B], BASE, weights(1, 0.5), density=1.0, clip=0.0, lambda_=2.0)
    assert half == pytest.approx([1 + 2 * 4, 1 + 2 * (2 + 0.5 * 2) / 2, 1 - 2 * 0.5 * 4])


def test_shares_are_of_the_kept_scores() -> None:
    # The first element is wanted by both, with sizes 1 and 1/2 in A and C: +4 and +2.
    c = [3.0, 5.0, 1.0]  # +2 +4 0: sizes 1/2 1 0
    top = math.exp(2) * (math.tanh(1) + math.tanh(0.5))
    low = math.exp(0.5) * (math.tanh(0.25) + math.tanh(0.5))
    share = low / top
    expected = 1 + (4 + share * 2) / (1 + share)
    assert merged("pcb", [A, c], BASE, density=1.0, clip=0.0) == pytest.approx([expected, expected, 1])


def test_one_model_and_one_element() -> None:
    for shortcut in (True, False):
        assert merged("pcb", [A], BASE, shortcut=shortcut) == A
        assert merged("pcb", [A, B], BASE, weights(0, 1), shortcut=shortcut) == B
    # All scores of a tensor of one element are equal: what is above zero is in the mean.
    assert merged("pcb", [[3.0], [5.0]], [1.0]) == [4]
    assert merged("pcb", [[3.0], [5.0], [0.0]], [1.0]) == [4]
    assert merged("pcb", [[3.0], [-1.0]], [1.0]) == [1]
    # What did not change has no say.
    assert merged("pcb", [BASE, A], BASE, density=1.0, clip=0.0) == pytest.approx(A)


def by_the_authors(tasks: torch.Tensor, density: float, clip: float) -> torch.Tensor:
    """The merged task vector by the rule of the authors' search, on task vectors as rows."""

    def spread(x: torch.Tensor, low: int, high: int) -> torch.Tensor:
        ordered = x.sort(dim=1).values
        first, last = ordered[:, low, None], ordered[:, high, None]
        return (x.maximum(first).minimum(last) - first) / (last - first)

    count, size = tasks.shape
    low, high = int(size * clip), int(size * (1 - clip) - 1)
    ordered = tasks.abs().sort(dim=1).values
    clipped = tasks.sign() * tasks.abs().maximum(ordered[:, low, None]).minimum(ordered[:, high, None])
    sizes = spread(tasks.abs(), low, high)
    signed = tasks.sign() * sizes
    inter = torch.stack([(one * signed).tanh().sum(0) for one in signed])
    shares = spread((count * sizes**2).exp() * inter, int(size * (1 - density)), size - 1)
    return (clipped * shares).sum(0) / shares.sum(0).clamp_min(1e-12)


@pytest.mark.parametrize(("density", "clip"), [(0.05, 0.01), (0.2, 0.0), (1.0, 0.05)])
def test_same_as_the_authors_code(density: float, clip: float) -> None:
    """As in duguodong7/pcb-merging, pcb_ES.py, with the tensor as the whole model; fusion_bench 0.2.33 has no PCB. The
    other file, pcb-merging.py, multiplies unscaled task vectors by their sum, whose tanh is that of numbers near 0."""
    base, inputs = fine_tunes()
    tasks = torch.stack([(x - base).double().view(-1) for x in inputs])
    expected = base.double().view(-1) + by_the_authors(tasks, density, clip)
    result = carry_out("pcb", inputs, base, None, {"density": density, "clip": clip})
    assert result.shape == base.shape
    torch.testing.assert_close(result.view(-1).double(), expected, rtol=1e-5, atol=1e-6)


def test_same_for_any_block(monkeypatch: pytest.MonkeyPatch) -> None:
    base, inputs = fine_tunes()
    whole = carry_out("pcb", inputs, base)
    monkeypatch.setattr(blocks, "_CPU_BLOCK", 100)
    assert torch.equal(carry_out("pcb", inputs, base), whole)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_refused(bad: float) -> None:
    base, inputs = fine_tunes()
    inputs[1][3, 4] = bad
    with pytest.raises(PoolError, match="input 2 has values that are NaN"):
        carry_out("pcb", inputs, base)
