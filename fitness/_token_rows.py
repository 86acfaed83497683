"""Texts as tokens, and batches of texts of like length: what fitnesses that read whole texts share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from evomerge.errors import FitnessError, one_line

Rows = list[dict[str, list[int]]]
"""Of each item its tensors by the names of the model's arguments, not padded."""

_OFFSET = ("roberta", "camembert", "mpnet", "longformer")
"""Parts of model types whose positions begin behind the padding token's number."""


@dataclass
class Batch:
    """Items that a model reads at once.

    Attributes:
        places: of the items, shape ``(items,)``.
        tensors: padded, each of shape ``(items, tokens)``.
    """

    places: NDArray[np.int64]
    tensors: Mapping[str, torch.Tensor]


def require_padding(tokenizer: Any) -> None:
    """Raise `FitnessError` where there is no tokenizer, or it cannot pad."""
    if tokenizer is None:
        raise FitnessError("the pool has no tokenizer", "models with one", "add its files to the first model's folder")
    if tokenizer.pad_token_id is None:
        raise FitnessError(
            "the tokenizer has no padding token, and texts are read in batches",
            "",
            "set pad_token in its tokenizer_config.json, and pad_token_id in config.json",
        )


def token_rows(
    tokenizer: Any, texts: Sequence[Sequence[str]], max_length: int | None, key: str
) -> tuple[Rows, list[bool]]:
    """Texts, or pairs of texts, as tokens with those that the tokenizer adds, and of each whether it was cut.

    Args:
        tokenizer: of transformers, that `require_padding` lets pass.
        texts: one sequence, or two of the same length.
        max_length: tokens of an item, which is cut there; ``None`` for the tokenizer's own.
        key: for messages.

    Raises:
        FitnessError: it fails, or makes nothing of a text.
    """
    most = min(max_length or 2**31, int(min(tokenizer.model_max_length, 2**31)))
    try:
        found = tokenizer(*texts, add_special_tokens=True, verbose=False)
    except Exception as error:  # tokenizers raise what they like
        raise FitnessError(f"{key}: the tokenizer fails ({one_line(error)})") from error
    long = [len(ids) > most for ids in found["input_ids"]]
    if any(long):
        try:
            found = tokenizer(*texts, add_special_tokens=True, truncation=True, max_length=most)
        except Exception as error:
            raise FitnessError(
                f"{key}: texts cannot be cut at {most} tokens ({one_line(error)})", "a larger max_length"
            ) from error
    names = list(found.keys())
    rows: Rows = [{name: list(found[name][i]) for name in names} for i in range(len(texts[0]))]
    empty = next((i for i, row in enumerate(rows) if not row["input_ids"]), None)
    if empty is not None:
        raise FitnessError(f"{key}: item {empty} has no tokens", "texts that the tokenizer reads")
    return rows, long


def positions_of(config: Any) -> int | None:
    """Tokens that a model reads at most; ``None`` where its configuration does not say."""
    found = getattr(config, "max_position_embeddings", None)
    if not isinstance(found, int) or found < 1:
        return None
    offset = any(name in str(getattr(config, "model_type", "")) for name in _OFFSET)
    return found - (int(getattr(config, "pad_token_id", None) or 0) + 1 if offset else 0)


def batched(rows: Rows, places: Sequence[int], tokenizer: Any, batch_tokens: int, device: torch.device) -> list[Batch]:
    """Batches of like length, the longest texts first: what does not fit in memory is known at once.

    Args:
        rows: of all items.
        places: of those that are wanted.
        tokenizer: that pads.
        batch_tokens: of a batch, padding included; a longer text is read alone.
        device: of the tensors.
    """
    ordered = sorted(places, key=lambda place: (-len(rows[place]["input_ids"]), place))
    groups, now = list[list[int]](), list[int]()
    for place in ordered:
        if now and (len(now) + 1) * len(rows[now[0]]["input_ids"]) > batch_tokens:
            groups.append(now)
            now = []
        now.append(place)
    groups += [now] if now else []
    found = []
    for group in groups:
        padded = tokenizer.pad([rows[place] for place in group], padding=True, return_tensors="pt")
        tensors = {name: tensor.to(device) for name, tensor in padded.items()}
        found.append(Batch(np.array(group, dtype=np.int64), tensors))
    return found
