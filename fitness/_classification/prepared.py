"""Texts as tokens in batches of like length, and what models make of them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from evomerge.errors import FitnessError, one_line
from evomerge.models.loaded import LoadedModel
from evomerge.models.unknown_tokens import UnknownTokens
from fitness._classification.tables import Table
from fitness._classification.terms import TaskTerm

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


@dataclass(frozen=True)
class Tokenised:
    """All texts as tokens.

    Attributes:
        rows: by task.
        cut: by task how many texts were cut.
        unknown: lines on texts that the tokenizer does not know the words of.
    """

    rows: Mapping[str, Rows]
    cut: Mapping[str, int]
    unknown: Sequence[str]


def tokenised(
    terms: Sequence[TaskTerm], tables: Mapping[str, Table], tokenizer: Any, max_length: int | None
) -> Tokenised:
    """The texts as tokens, with those that the tokenizer adds.

    Args:
        terms: the tasks.
        tables: their items.
        tokenizer: of transformers.
        max_length: tokens of an item, which is cut there; ``None`` for the tokenizer's own.

    Raises:
        FitnessError: there is no tokenizer, it cannot pad, or it makes nothing of a text.
    """
    if tokenizer is None:
        raise FitnessError("the pool has no tokenizer", "models with one", "add its files to the first model's folder")
    if tokenizer.pad_token_id is None:
        raise FitnessError(
            "the tokenizer has no padding token, and texts are read in batches",
            "",
            "set pad_token in its tokenizer_config.json, and pad_token_id in config.json",
        )
    most = min(max_length or 2**31, int(min(tokenizer.model_max_length, 2**31)))
    rows, cut, unknown = dict[str, Rows](), dict[str, int](), UnknownTokens()
    for term in terms:
        table = tables[term.name]
        texts = (list(table.texts), list(table.pairs)) if table.pairs is not None else (list(table.texts),)
        try:
            found = tokenizer(*texts, add_special_tokens=True, verbose=False)
        except Exception as error:  # tokenizers raise what they like
            raise FitnessError(f"tasks.{term.name}: the tokenizer fails ({one_line(error)})") from error
        long = [len(ids) > most for ids in found["input_ids"]]
        if any(long):
            try:
                found = tokenizer(*texts, add_special_tokens=True, truncation=True, max_length=most)
            except Exception as error:
                raise FitnessError(
                    f"tasks.{term.name}: texts cannot be cut at {most} tokens ({one_line(error)})",
                    "a larger max_length",
                ) from error
        names = list(found.keys())
        rows[term.name] = [{name: list(found[name][i]) for name in names} for i in range(len(table.texts))]
        empty = next((i for i, row in enumerate(rows[term.name]) if not row["input_ids"]), None)
        if empty is not None:
            raise FitnessError(f"tasks.{term.name}: item {empty} has no tokens", "texts that the tokenizer reads")
        cut[term.name] = sum(long)
        for row in rows[term.name]:
            unknown.add(term.file, row["input_ids"], tokenizer)
    return Tokenised(rows, cut, unknown.lines("tasks"))


def positions_of(config: Any) -> int | None:
    """Tokens that a model reads at most; ``None`` where its configuration does not say."""
    found = getattr(config, "max_position_embeddings", None)
    if not isinstance(found, int) or found < 1:
        return None
    offset = any(name in str(getattr(config, "model_type", "")) for name in _OFFSET)
    return found - (int(getattr(config, "pad_token_id", None) or 0) + 1 if offset else 0)


class Prepared:
    """The batches of all tasks, on a model's device.

    Args:
        model: that they are for.
        rows: by task.
        batch_tokens: of a batch, padding included; a longer text is read alone.
    """

    def __init__(self, model: LoadedModel, rows: Mapping[str, Rows], batch_tokens: int) -> None:
        self._rows, self._batch_tokens, self._device = rows, batch_tokens, model.device
        self._tokenizer = model.tokenizer
        self._batches = {name: self._batched(name, range(len(own))) for name, own in rows.items()}

    def outputs(
        self, model: LoadedModel, task: str, places: Sequence[int] | None = None
    ) -> tuple[NDArray[np.float64], float]:
        """What a model makes of a task's items.

        Args:
            model: one with a head.
            task: name of the task.
            places: of the items; all for ``None``. In batches of their own, equal to rounding.

        Returns:
            Outputs, float64 of shape ``(items, outputs)``, in the order of the places, and the seconds in the model.

        Raises:
            FitnessError: an output that is not finite, or a model without a head of outputs for each item.
        """
        batches = self._batches[task] if places is None else self._batched(task, places)
        order = {place: i for i, place in enumerate(range(len(self._rows[task])) if places is None else places)}
        found: NDArray[np.float64] | None = None
        start = time.perf_counter()
        model.module.eval()
        with torch.inference_mode():
            for batch in batches:
                logits = getattr(model.module(**batch.tensors), "logits", None)
                if logits is None or logits.ndim != 2:
                    raise FitnessError(
                        f"{type(model.module).__name__} gives no outputs for each text",
                        "a model for sequence classification",
                    )
                own = logits.double().cpu().numpy()
                found = np.empty((len(order), own.shape[1])) if found is None else found
                found[[order[place] for place in batch.places.tolist()]] = own
        seconds = time.perf_counter() - start
        assert found is not None
        if not np.isfinite(found).all():
            item = int(np.flatnonzero(~np.isfinite(found).all(1))[0])
            raise FitnessError(f"{task}: the model's outputs of item {item} are not finite", "finite weights")
        return found, seconds

    def _batched(self, task: str, places: Sequence[int]) -> list[Batch]:
        """Batches of like length, the longest texts first: what does not fit in memory is known at once."""
        rows = self._rows[task]
        ordered = sorted(places, key=lambda place: (-len(rows[place]["input_ids"]), place))
        batches, now = list[Batch](), list[int]()
        for place in ordered:
            if now and (len(now) + 1) * len(rows[now[0]]["input_ids"]) > self._batch_tokens:
                batches.append(self._padded(rows, now))
                now = []
            now.append(place)
        return [*batches, self._padded(rows, now)] if now else batches

    def _padded(self, rows: Rows, places: Sequence[int]) -> Batch:
        padded = self._tokenizer.pad([rows[place] for place in places], padding=True, return_tensors="pt")
        tensors = {name: tensor.to(self._device) for name, tensor in padded.items()}
        return Batch(np.array(places, dtype=np.int64), tensors)
