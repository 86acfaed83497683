"""What small BERTs learn to read from: their tokenizer, and texts with gaps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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


def gaps(texts: Sequence[str], tokenizer: Any, batch: int, rng: np.random.Generator) -> Callable[[], dict[str, Any]]:
    """Draws batches of texts with gaps, and what they hide."""
    import torch

    from evomerge.demo.text_training import encoded

    def draw() -> dict[str, Any]:
        found = encoded([texts[i] for i in rng.integers(len(texts), size=batch)], tokenizer)
        ids = found["input_ids"]
        hidden = torch.from_numpy(rng.random(ids.shape) < _MASKED) & (ids >= len(SPECIAL))
        hidden[0, 1] = True  # of each batch at least one
        labels = torch.where(hidden, ids, -100)
        return {**found, "input_ids": torch.where(hidden, tokenizer.mask_token_id, ids), "labels": labels}

    return draw
