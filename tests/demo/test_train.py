from __future__ import annotations

import numpy as np
import pytest
import torch

from evomerge.demo.items import Question, Texts, text
from evomerge.demo.train import Stage, collate, draw, learning_rate_at, loss_of, new_model, torch_threads, train


def test_learning_rate_rises_then_falls():
    assert learning_rate_at(0, 100) == pytest.approx(1 / 20)
    assert learning_rate_at(19, 100) == 1.0
    assert learning_rate_at(60, 100) == pytest.approx(0.02 + 0.98 * 0.5)
    assert learning_rate_at(99, 100) < 0.03


def test_collate_pads_right_and_shifts_what_is_learnt():
    ids, learnt = collate([text((("cat",), False), (("dog", "."), True)), text(((".",), True))])
    assert ids.shape == (2, 4)
    assert ids[1, 2:].tolist() == [0, 0]
    assert learnt.tolist() == [[False, True, True], [True, False, False]]


def test_loss_is_that_of_the_learnt_tokens():
    model = new_model(0)
    texts = Texts([Question("sort", ("two", "one", "nine"))], frozenset())
    ids, learnt = collate(draw(texts, {"simple": 1.0, "restate": 1.0}, 4, np.random.default_rng(0)))
    with torch.no_grad():
        log_probability = model(input_ids=ids[:, :-1]).logits.log_softmax(-1)
        picked = log_probability.gather(-1, ids[:, 1:, None])[..., 0]
        torch.testing.assert_close(loss_of(model, ids, learnt), -picked[learnt].mean())


def test_parameters_follow_from_the_seed_and_leave_the_global_generator_alone():
    before = torch.random.get_rng_state()
    one, same, other = new_model(1), new_model(1), new_model(2)
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(one.model.embed_tokens.weight, same.model.embed_tokens.weight)
    assert not torch.equal(one.model.embed_tokens.weight, other.model.embed_tokens.weight)


def test_training_lowers_the_loss_and_repeats():
    texts = Texts([Question("sort", ("two", "one", "nine"))], frozenset())
    stage = Stage("one", None, 12, 3e-3, {"sort": 1.0})
    ids, learnt = collate(draw(texts, stage.mixture, 16, np.random.default_rng(5)))
    losses = []
    for _ in range(2):
        model = new_model(0)
        before = loss_of(model, ids, learnt).item()
        train(model, stage, texts, np.random.default_rng(1), lambda: None)
        losses.append(loss_of(model, ids, learnt).item())
        assert losses[-1] < 0.8 * before
    assert losses[0] == losses[1]


def test_threads_are_given_back():
    before = torch.get_num_threads()
    with torch_threads(1):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before
