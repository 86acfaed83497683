"""Calibration items as tokens."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from evomerge.errors import FitnessError
from evomerge.protocols import CalibrationItem


class Encoded(NamedTuple):
    """An item's tokens.

    Attributes:
        ids: of the text and its answer.
        start: place of the first token whose likelihood counts, 1 at least.
    """

    ids: tuple[int, ...]
    start: int


def encode(items: Sequence[CalibrationItem], tokenizer: Any, max_length: int) -> list[Encoded]:
    """The tokens of items, those that leave nothing to predict left out.

    A text with an answer is cut on the left, so that the answer stays; one without on the right.

    Raises:
        FitnessError: no item is left, or the tokenizer refuses a text.
    """
    found = []
    for number, item in enumerate(items):
        try:
            whole = tokenizer(item.text + item.answer)["input_ids"]
            context = len(tokenizer(item.text)["input_ids"]) if item.answer else 1
        except Exception as error:  # tokenizers raise what they like
            raise FitnessError(f"calibration item {number} cannot be tokenised ({error})") from error
        cut = max(0, len(whole) - max_length) if item.answer else 0
        ids = tuple(int(token) for token in whole[cut : cut + max_length])
        start = max(1, context - cut)
        if start < len(ids):
            found.append(Encoded(ids, start))
    if not found:
        raise FitnessError(
            f"{len(items)} calibration items leave no token to predict", "texts of two tokens or more", "choose others"
        )
    return found


def fingerprint(items: Sequence[Encoded]) -> str:
    """Hash of all tokens, in order."""
    return hashlib.sha256(json.dumps(items, separators=(",", ":")).encode()).hexdigest()
