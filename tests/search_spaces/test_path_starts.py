"""The deep models of `scripts/benchmark_path_starts.py`: something to be right about, and every layer matters."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from evomerge.demo.languages import make_tokenizer
from evomerge.demo.train import WIDTH
from scripts.benchmark_path_starts import CHOICES, LAYERS, deep_model, noisy_copy, questions


def right(model: torch.nn.Module, inputs: torch.Tensor, choices: torch.Tensor, answers: torch.Tensor) -> float:
    with torch.inference_mode():
        logits = model(input_ids=inputs, use_cache=False).logits[:, -1]
    return float((logits.gather(1, choices).argmax(1) == answers).float().mean())


@pytest.mark.slow
def test_every_layer_matters() -> None:
    model, tokenizer = deep_model(0), make_tokenizer(WIDTH)
    rows = questions(model, tokenizer, np.random.default_rng(0))
    inputs = torch.tensor([tokenizer(row["text"])["input_ids"] for row in rows])
    choices = torch.tensor([tokenizer.convert_tokens_to_ids(row["choices"]) for row in rows])
    answers = torch.tensor([row["answer"] for row in rows])
    assert right(model, inputs, choices, answers) == 1.0
    assert 0.7 < right(noisy_copy(model, np.random.default_rng(0)), inputs, choices, answers) < 1
    layers = list(model.model.layers)
    assert len(layers) == LAYERS
    for number in range(0, LAYERS, 5):
        model.model.layers = torch.nn.ModuleList(layers[:number] + layers[number + 1 :])
        assert right(model, inputs, choices, answers) < 0.97
    model.model.layers = torch.nn.ModuleList(layers[::2])
    assert right(model, inputs, choices, answers) < 0.5 + 0.5 / CHOICES
