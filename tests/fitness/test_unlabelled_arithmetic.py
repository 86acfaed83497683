"""Metrics of predictions on distributions small enough to be worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from evomerge.errors import FitnessError
from fitness._unlabelled.divergences import Predictions, hidden_distance
from fitness._unlabelled.store import Distribution, Precision, Store, choose_precision
from fitness._unlabelled.terms import parse_texts
from fitness._unlabelled.totals import totals

P = torch.tensor([[1 / 2, 1 / 4, 1 / 4]])
Q = torch.tensor([[1 / 4, 1 / 4, 1 / 2]])
LN2 = math.log(2)


def kept(form: Precision, probabilities: torch.Tensor) -> Distribution:
    store = Store(len(probabilities), form)
    rows = torch.arange(len(probabilities))
    store.put_distribution(rows, probabilities.log())
    return store.distribution(rows)


def test_of_halves_and_quarters() -> None:
    p, q = Predictions.of(P.log() + 3.0), kept(Precision("float32"), Q)  # logits are known but for a constant
    assert p.entropy().item() == pytest.approx(1.5 * LN2, abs=1e-6)
    assert p.surprise(torch.tensor([1])).item() == pytest.approx(2 * LN2, abs=1e-6)
    assert p.cross_entropy(q).item() == pytest.approx(1.75 * LN2, abs=1e-6)
    assert p.divergence_from(q).item() == pytest.approx(0.25 * LN2, abs=1e-6)
    assert p.likeliest().tolist() == [0]
    assert Predictions.of(torch.zeros(1, 7)).entropy().item() == pytest.approx(math.log(7), abs=1e-6)


def test_what_the_likeliest_tokens_alone_lose() -> None:
    p, q = Predictions.of(P.log()), kept(Precision("top", 1), Q)
    assert q.tokens is not None
    assert q.tokens.tolist() == [[2]]
    assert q.log_q.exp()[0].tolist() == pytest.approx([0.5, 0.5])
    found = p.divergence_from(q).item()
    assert found == pytest.approx(0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75), abs=1e-6)
    # r KL(q' || p') of the rest, which holds half of q: (1/2, 1/2) beside (2/3, 1/3).
    within = 0.5 * math.log(0.5 / (2 / 3)) + 0.5 * math.log(0.5 / (1 / 3))
    assert 0.25 * LN2 - found == pytest.approx(0.5 * within, abs=1e-6)
    everything = kept(Precision("top", 3), Q)
    assert p.divergence_from(everything).item() == pytest.approx(0.25 * LN2, abs=1e-6)


@pytest.mark.parametrize(
    "form", [Precision("float32"), Precision("float16"), Precision("top", 16), Precision("top", 50)]
)
def test_a_model_beside_itself(form: Precision) -> None:
    logits = 4 * torch.randn(20, 50, generator=torch.Generator().manual_seed(0))
    own = Predictions.of(logits)
    q = kept(form, own.log_p.exp())
    assert q.log_q.exp().sum(dim=1).tolist() == pytest.approx([1.0] * 20, abs=1e-5)
    tolerance = 1e-5 if form.form == "float16" else 1e-6
    assert own.divergence_from(q).max().item() <= tolerance
    if form != Precision("top", 16):
        assert own.cross_entropy(q).tolist() == pytest.approx(own.entropy().tolist(), abs=2e-3)


@pytest.mark.parametrize("form", [Precision("float16"), Precision("top", 12)])
def test_kept_forms_are_near_the_exact_divergence(form: Precision) -> None:
    generator = torch.Generator().manual_seed(1)
    one, other = (3 * torch.randn(200, 64, generator=generator) for _ in range(2))
    p, q = Predictions.of(one), torch.log_softmax(other.double(), 1)
    exact = (q.exp() * (q - torch.log_softmax(one.double(), 1))).sum(1)
    found = p.divergence_from(kept(form, q.exp().float())).double()
    if form.form == "float16":
        assert (found - exact).abs().max() < 0.01
    else:
        assert ((found <= exact + 1e-5) & (found > 0)).all(), "the rest as one token never says more"
        assert (exact - found).mean() < 0.25 * exact.mean()


def test_tokens_that_are_impossible() -> None:
    masked = torch.tensor([[0.0, 0.0, -torch.inf]])
    p, q = Predictions.of(masked), kept(Precision("float32"), torch.tensor([[0.5, 0.5, 0.0]]))
    assert p.entropy().item() == pytest.approx(LN2)
    assert p.cross_entropy(q).item() == pytest.approx(LN2)
    assert p.divergence_from(kept(Precision("top", 2), torch.tensor([[0.5, 0.5, 0.0]]))).item() == 0.0
    assert p.cross_entropy(kept(Precision("float32"), Q)).item() == math.inf
    broken = Predictions.of(torch.tensor([[torch.nan, 0.0, 0.0]]))
    assert all(value.isnan().all() for value in (broken.entropy(), broken.cross_entropy(q), broken.divergence_from(q)))


def test_hidden_distance() -> None:
    one = [torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[1.0, 1.0], [1.0, 1.0]])]
    other = [torch.tensor([[1.0, 4.0], [0.0, 0.0]]), torch.tensor([[1.0, 1.0], [4.0, 1.0]])]
    assert hidden_distance(one, other).tolist() == [(4 / 2 + 0) / 2, (0 + 9 / 2) / 2]


def test_the_most_exact_form_that_fits() -> None:
    def form(budget: int) -> Precision:
        return choose_precision(budget, positions=10, vocabulary=1000, other=100, key="size")

    assert form(100 + 40_000) == Precision("float32")
    assert form(100 + 39_999) == Precision("float16")
    assert form(100 + 20_000) == Precision("float16")
    assert form(100 + 19_999) == Precision("top", (1999 - 4) // 8)
    assert form(100 + 10 * (8 * 16 + 4)) == Precision("top", 16)
    assert form(100 + 19_999).nbytes(10, 1000) <= 19_999
    with pytest.raises(FitnessError, match=r"size is 1\.4 kB, .* takes 1\.42 kB at least"):
        form(100 + 10 * (8 * 16 + 4) - 20)


def test_objectives_are_weighted_as_tasks_are() -> None:
    texts = {
        "a": {"file": "a.txt", "metrics": {"perplexity": {"weight": 2.0, "transform": "log"}, "entropy": 0.5}},
        "b": {"file": "b.txt", "weight": 3.0, "metrics": ["perplexity"]},
        "c": {"file": "c.txt", "metrics": {"kl_to_base": {"objective": "drift"}, "entropy": 0.0}},
    }
    items = {
        "a/perplexity": np.array([1.0, 3.0]),
        "a/entropy": np.array([4.0, np.nan]),
        "b/perplexity": np.array([math.log(5.0)]),
        "c/kl_to_base": np.array([0.25, 0.75]),
        "c/entropy": np.array([9.0]),
    }
    objectives, metrics = totals(parse_texts(texts, None), items)
    assert metrics["a/perplexity"] == pytest.approx(math.exp(2.0))
    assert metrics["b/perplexity"] == pytest.approx(5.0)
    assert objectives["score"] == pytest.approx((1 * (-2.0 * 2.0 - 0.5 * 4.0) + 3 * -5.0 + 1 * 0.0) / 5)
    assert objectives["drift"] == pytest.approx(-0.5)
