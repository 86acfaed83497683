"""Calibration items as what a model reads: tokens, or tensors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from numpy.typing import NDArray

from evomerge.errors import FitnessError
from evomerge.protocols import CalibrationItem, CalibrationTensors


class Encoded(NamedTuple):
    """An item's tokens.

    Attributes:
        ids: of the text and its answer.
        start: place of the first token whose likelihood counts, 1 at least.
    """

    ids: tuple[int, ...]
    start: int


class EncodedTensors(NamedTuple):
    """An item that is no text.

    Attributes:
        tensors: arrays by the arguments that the model is called with, in order of their names.
        label: the right class, where it is known.
    """

    tensors: tuple[tuple[str, NDArray[Any]], ...]
    label: int | None = None


Item = Encoded | EncodedTensors


def encode_tensors(items: Sequence[CalibrationTensors]) -> list[EncodedTensors]:
    """Items that are no texts."""
    return [EncodedTensors(tuple(sorted(item.tensors.items())), item.label) for item in items]


def size_of(item: Item) -> int:
    """Tokens of an item; of one that is no text 1."""
    return len(item.ids) if isinstance(item, Encoded) else 1


def encode(
    items: Sequence[CalibrationItem],
    tokenizer: Any,
    max_length: int,
    unknown: Callable[[CalibrationItem, Sequence[int]], None] = lambda item, ids: None,
) -> list[Encoded]:
    """The tokens of items, those that leave nothing to predict left out.

    A text with an answer is cut on the left, so that the answer stays; one without on the right.

    Args:
        items: they.
        tokenizer: of the model that reads them.
        max_length: tokens of an item.
        unknown: told of each item and all of its tokens.

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
        unknown(item, whole)
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


def fingerprint(items: Sequence[Item]) -> str:
    """Hash of all tokens or tensors, in order."""
    if items and isinstance(items[0], EncodedTensors):
        digest = hashlib.sha256()
        for item in items:
            assert isinstance(item, EncodedTensors), "items are of one kind"
            for name, array in item.tensors:
                digest.update(json.dumps([name, str(array.dtype), array.shape]).encode() + array.tobytes())
            digest.update(json.dumps(item.label).encode())
        return digest.hexdigest()
    return hashlib.sha256(json.dumps(items, separators=(",", ":")).encode()).hexdigest()
