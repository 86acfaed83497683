from __future__ import annotations

import pytest
import torch
from merge.carry_out import KEYS, carry_out, merged
from merge.mergekits import assert_same, by_mergekit, fine_tunes

from evomerge.errors import EvomergeError
from evomerge.merge.mixes.masks import uniform
from evomerge.recipes.method_spec import Scalar

sparsify = pytest.importorskip("mergekit.sparsify")


def mask(count: int, density: float, index: int = 0) -> torch.Tensor:
    return uniform(KEYS[index], 0, count, torch.device("cpu")) < density * 2**31


def test_by_probability_or_by_magnitude() -> None:
    task = torch.arange(1.0, 13.0)
    kept = mask(12, 0.5)
    assert 0 < int(kept.sum()) < 12
    zero, each = torch.zeros(12), [{"density": 0.5}]
    for method in ("dare_linear", "dare_ties"):
        paper = carry_out(method, [task], zero, each)
        assert torch.equal(paper, torch.where(kept, task * 2, 0))
        assert torch.equal(carry_out(method, [task], zero, each, {"rescale": False}), torch.where(kept, task, 0))
        ours = carry_out(method, [task], zero, each, {"rescale_by": "magnitude"})
        torch.testing.assert_close(ours, torch.where(kept, task * (78 / float(task[kept].sum())), 0))


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties"])
def test_by_magnitude_is_mergekits_for_the_same_masks(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    base, inputs = fine_tunes()
    each: list[dict[str, Scalar]] = [{"weight": w, "density": d} for w, d in ((0.7, 0.4), (0.5, 0.2), (-0.3, 0.9))]
    masks = [mask(base.numel(), float(given["density"]), i) for i, given in enumerate(each)]
    drawn = iter([*masks, *masks])
    monkeypatch.setattr(sparsify.torch, "bernoulli", lambda chances: next(drawn).view_as(chances).to(chances.dtype))
    for normalize in (False, True):
        shared: dict[str, Scalar] = {"normalize": normalize, "lambda": 0.8}
        theirs = by_mergekit(method, inputs, base, each, shared)
        assert_same(carry_out(method, inputs, base, each, {**shared, "rescale_by": "magnitude"}), theirs)
        paper = carry_out(method, inputs, base, each, shared)
        assert float((paper - theirs).abs().max()) > 1e-5


def test_the_paper_is_right_on_average() -> None:
    task = torch.ones(100_000)
    result = carry_out("dare_linear", [task], torch.zeros_like(task), [{"density": 0.2}])
    assert abs(float(result.mean()) - 1) < 4 * (0.8 / 0.2 / 100_000) ** 0.5


@pytest.mark.parametrize("rescale", [False, True])
def test_ties_restores_the_sum_of_magnitudes_as_mergekit_does(rescale: bool) -> None:
    base, inputs = fine_tunes()
    each: list[dict[str, Scalar]] = [{"weight": w, "density": d} for w, d in ((0.7, 0.4), (0.5, 1.0), (-0.3, 0.2))]
    for normalize in (False, True):
        shared: dict[str, Scalar] = {"rescale": rescale, "normalize": normalize}
        assert_same(carry_out("ties", inputs, base, each, shared), by_mergekit("ties", inputs, base, each, shared))


def test_ties_rescaled_by_hand() -> None:
    # Of 1 + 2 + 5 the largest is kept, and made up to the whole.
    assert merged("ties", [[1.0, -2.0, 5.0]], [0.0] * 3, [{"density": 0.34}], rescale=True) == [0, 0, 8]


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties"])
@pytest.mark.parametrize("rescale_by", ["probability", "magnitude"])
def test_nothing_kept_gives_the_base(method: str, rescale_by: str) -> None:
    base, inputs = fine_tunes(count=1)
    for density in (0.0, 1e-60, 1e-20, 1e-10):
        result = carry_out(method, inputs, base, [{"density": density}], {"rescale_by": rescale_by})
        assert torch.equal(result, base)


def test_a_task_vector_of_zeros() -> None:
    zero = torch.zeros(50)
    for method in ("dare_linear", "dare_ties", "ties"):
        shared: dict[str, Scalar] = {"rescale": True}
        if method != "ties":
            shared["rescale_by"] = "magnitude"
        assert torch.equal(carry_out(method, [zero] * 2, zero, [{"density": 0.5}] * 2, shared), zero)


@pytest.mark.parametrize("method", ["dare_linear", "ties", "breadcrumbs"])
def test_sums_of_magnitudes_that_are_not_finite_are_refused(method: str) -> None:
    task = torch.arange(1.0, 41.0)
    task[20] = float("nan")
    shared: dict[str, Scalar] = {"rescale": True}
    if method == "dare_linear":
        shared["rescale_by"] = "magnitude"
    with pytest.raises(EvomergeError, match="NaN or infinite"):
        carry_out(method, [task], torch.zeros(40), [{"density": 0.5}], shared)
