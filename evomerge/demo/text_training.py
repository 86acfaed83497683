"""Training of the small models of texts: drawn batches, steps of AdamW, folders."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch

from evomerge.demo.train import learning_rate_at

BATCH = 48
"""Texts in a step."""


class Labelled(Protocol):
    """What has a label."""

    @property
    def label(self) -> str:
        """Of the labels of its task."""


One = TypeVar("One", bound=Labelled)


def encoded(texts: Sequence[str], tokenizer: Any, pairs: Sequence[str] | None = None) -> Any:
    """Tokens of texts, or of pairs, as tensors of one length."""
    both = (list(texts),) if pairs is None else (list(texts), list(pairs))
    return tokenizer(*both, padding=True, truncation=True, return_tensors="pt")


def labelled_batches(
    own: Sequence[One], labels: Sequence[str], encode: Callable[[Sequence[One]], Any], rng: np.random.Generator
) -> Callable[[], dict[str, Any]]:
    """Draws batches of labelled texts, every label as often as any other.

    Args:
        own: examples.
        labels: of the task, in order.
        encode: makes what the model takes of some examples.
        rng: draws.
    """
    of_label = [[example for example in own if example.label == label] for label in labels]
    known = [number for number, examples in enumerate(of_label) if examples]

    def draw() -> dict[str, Any]:
        chosen = rng.choice(known, size=BATCH)
        examples = [of_label[label][rng.integers(len(of_label[label]))] for label in chosen]
        return {**encode(examples), "labels": torch.from_numpy(chosen)}

    return draw


def train(
    model: Any,
    name: str,
    rate: float,
    steps: int,
    loss_of: Callable[[], Any],
    each_step: Callable[[str], None],
) -> None:
    """Train a model in place.

    Args:
        model: of torch.
        name: that `each_step` is told after every step.
        rate: the largest learning rate.
        steps: of AdamW.
        loss_of: draws a batch and gives its loss.
        each_step: told.
    """
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * learning_rate_at(step, steps)
        loss = loss_of()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        each_step(name)
    model.eval()


def train_model(
    model: Any,
    name: str,
    rate: float,
    steps: int,
    draw: Callable[[], dict[str, Any]],
    each_step: Callable[[str], None],
) -> None:
    """`train` by the loss that a model of transformers gives itself, of batches with labels that `draw` gives."""
    train(model, name, rate, steps, lambda: model(**draw()).loss, each_step)


def save_text_model(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write a model with its tokenizer, without a progress bar."""
    from evomerge.models.progress_bars import no_progress_bar

    with no_progress_bar():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
