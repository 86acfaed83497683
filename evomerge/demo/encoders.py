"""Training of small BERTs: their tokenizer, texts with gaps, steps, and what is written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_MASKED = 0.15


def wordpiece(texts: Sequence[str], vocabulary: int, length: int) -> Any:
    """A WordPiece tokenizer of these texts, in lower case, for so many tokens at most."""
    from tokenizers import BertWordPieceTokenizer
    from transformers import BertTokenizerFast

    made = BertWordPieceTokenizer(lowercase=True)
    made.train_from_iterator(texts, vocabulary, special_tokens=list(SPECIAL), show_progress=False)
    return BertTokenizerFast(tokenizer_object=made._tokenizer, model_max_length=length, do_lower_case=True)


def encoded(texts: Sequence[str], tokenizer: Any) -> Any:
    """A batch of texts as tensors."""
    return tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")


def gaps(texts: Sequence[str], tokenizer: Any, batch: int, rng: np.random.Generator) -> Callable[[], dict[str, Any]]:
    """Draws batches of texts with gaps, and what they hide."""
    import torch

    def draw() -> dict[str, Any]:
        found = encoded([texts[i] for i in rng.integers(len(texts), size=batch)], tokenizer)
        ids = found["input_ids"]
        hidden = torch.from_numpy(rng.random(ids.shape) < _MASKED) & (ids >= len(SPECIAL))
        hidden[0, 1] = True  # of each batch at least one
        labels = torch.where(hidden, ids, -100)
        return {**found, "input_ids": torch.where(hidden, tokenizer.mask_token_id, ids), "labels": labels}

    return draw


def train(
    model: Any, name: str, rate: float, steps: int, loss_of: Callable[[], Any], each_step: Callable[[str], None]
) -> None:
    """Train in place.

    Args:
        model: it.
        name: for `each_step`.
        rate: of learning, at its peak.
        steps: how many.
        loss_of: draws a batch and gives its loss.
        each_step: called after every step.
    """
    import torch

    from evomerge.demo.train import learning_rate_at

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


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write a model with its tokenizer, without a progress bar."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    finally:
        if shown:
            logging.enable_progress_bar()
