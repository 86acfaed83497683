"""Questions that begin alike, for tiny decoders of every kind."""

from __future__ import annotations

import random
from typing import Any

import torch
from models.architectures import ARCHITECTURES

from fitness._lm_eval.model import TokenRequest
from fitness._lm_eval.shared_forwards import BatchLimits, SharedForwards

DECODERS = [kind for kind, found in ARCHITECTURES.items() if found.auto == "AutoModelForCausalLM"]


def questions(seed: int = 0, words: int = 36) -> list[TokenRequest]:
    """Choices after examples that all share, and texts of their own; with sliding windows of 8 most are longer."""
    rng = random.Random(seed)

    def text(low: int, high: int) -> list[int]:
        return [rng.randrange(3, words) for _ in range(rng.randint(low, high))]

    examples, found = text(6, 6), []
    for _ in range(6):
        question = text(2, 6)
        found += [TokenRequest(None, examples + question, text(1, 4)) for _ in range(4)]
    return [*found, *(TokenRequest(None, text(1, 12), text(1, 12)) for _ in range(6))]


def shared(module: Any, requests: list[TokenRequest], tokens: int, limit: int = 31) -> SharedForwards:
    return SharedForwards(requests, module, max_length=limit, limits=BatchLimits(tokens), softmax_dtype=torch.float32)
