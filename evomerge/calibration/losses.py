"""The loss of one calibration item: minus the log-likelihood of its own labels, or of labels that the model draws."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch.nn import functional

from evomerge.calibration.encoding import Item
from evomerge.calibration.forwards import forward, predicted
from evomerge.calibration.measurement import Measurement
from evomerge.errors import PoolError


def loss_of(module: Any, item: Item, how: Measurement, number: int) -> torch.Tensor:
    """An item's loss, summed over what is predicted, in nats.

    Args:
        module: in evaluation mode.
        item: that it reads.
        how: says which labels.
        number: of the item, by which labels are drawn.

    Raises:
        PoolError: the model has no likelihood of such items.
    """
    scores, labels = predicted(module, item, forward(module, item))
    if how.labels == "sampled":
        labels = _sampled(scores.detach(), how.seed, number)
    elif labels is None:
        raise PoolError(
            f"{type(module).__name__} gives an item without a label no likelihood",
            "causal language models of texts; tensors with labels",
            "set statistics.labels=sampled",
        )
    return functional.cross_entropy(scores, labels, reduction="sum")


def generator_of(words: str) -> torch.Generator:
    """A generator on the CPU whose seed is the hash of a text: the same for the same item, wherever one begins."""
    digest = hashlib.sha256(words.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def _sampled(scores: torch.Tensor, seed: int, number: int) -> torch.Tensor:
    """A label for each row of scores by its probability."""
    chances = scores.double().cpu().softmax(-1)
    return torch.multinomial(chances, 1, generator=generator_of(f"{seed} {number}"))[:, 0].to(scores.device)
