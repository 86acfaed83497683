from __future__ import annotations

import numpy as np
import pytest
import torch

from evomerge.demo.items import Question, Texts, text
from evomerge.demo.train import WIDTH, Stage, draw, learning_rate_at, loss_of, new_model, pack, torch_threads, train


def test_learning_rate_rises_then_falls():
    assert learning_rate_at(0, 100) == pytest.approx(1 / 20)
    assert learning_rate_at(19, 100) == 1.0
    assert learning_rate_at(60, 100) == pytest.approx(0.02 + 0.98 * 0.5)
    assert learning_rate_at(99, 100) < 0.03


def test_packing_keeps_texts_apart():
    first, second = text((("cat",), False), (("dog", "."), True)), text(((".",), True))
    batch = pack([second, first])
    assert batch.ids.shape == (1, WIDTH)
    assert batch.ids[0, :4].tolist() == [*first.ids[:3], second.ids[0]]
    assert batch.positions[0, :5].tolist() == [0, 1, 2, 0, 0]
    assert batch.targets[0, :5].tolist() == [-100, *first.ids[2:], second.ids[1], -100]
    assert (batch.mask[0, 0, :4, :4] == 0).tolist() == [
        [True, False, False, False],
        [True, True, False, False],
        [True, True, True, False],
        [False, False, False, True],
    ]


def test_loss_is_that_of_the_learnt_tokens_each_text_read_alone():
    model = new_model(0)
    texts = Texts([Question("sort", ("two", "one", "nine"))], frozenset())
    drawn = draw(texts, {"simple": 1.0, "restate": 1.0}, 6, np.random.default_rng(0))
    losses = []
    with torch.no_grad():
        for item in drawn:
            ids = torch.tensor([item.ids])
            log_probability = model(input_ids=ids[:, :-1]).logits.log_softmax(-1)
            picked = log_probability.gather(-1, ids[:, 1:, None])[0, :, 0]
            losses.append(-picked[torch.tensor(item.learnt[1:])])
        torch.testing.assert_close(loss_of(model, pack(drawn)), torch.cat(losses).mean())


def test_parameters_follow_from_the_seed_and_leave_the_global_generator_alone():
    before = torch.random.get_rng_state()
    one, same, other = new_model(1), new_model(1), new_model(2)
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(one.model.embed_tokens.weight, same.model.embed_tokens.weight)
    assert not torch.equal(one.model.embed_tokens.weight, other.model.embed_tokens.weight)


def test_training_lowers_the_loss_and_repeats():
    texts = Texts([Question("sort", ("two", "one", "nine"))], frozenset())
    stage = Stage("one", None, 12, 3e-3, {"sort": 1.0})
    batch = pack(draw(texts, stage.mixture, 16, np.random.default_rng(5)))
    losses = []
    for _ in range(2):
        model = new_model(0)
        before = loss_of(model, batch).item()
        train(model, stage, texts, np.random.default_rng(1), lambda: None)
        losses.append(loss_of(model, batch).item())
        assert losses[-1] < 0.8 * before
    assert losses[0] == losses[1]


def test_threads_are_given_back():
    before = torch.get_num_threads()
    with torch_threads(1):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before
