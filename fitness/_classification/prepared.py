"""Texts as tokens in batches of like length, and what models make of them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from evomerge.errors import FitnessError
from evomerge.models.loaded import LoadedModel
from evomerge.models.unknown_tokens import UnknownTokens
from fitness._classification.tables import Table
from fitness._classification.terms import TaskTerm
from fitness._token_rows import Batch, Rows, batched, require_padding, token_rows


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
    require_padding(tokenizer)
    rows, cut, unknown = dict[str, Rows](), dict[str, int](), UnknownTokens()
    for term in terms:
        table = tables[term.name]
        texts = (table.texts,) if table.pairs is None else (table.texts, table.pairs)
        listed = [list(own) for own in texts]
        rows[term.name], long = token_rows(tokenizer, listed, max_length, f"tasks.{term.name}")
        cut[term.name] = sum(long)
        for row in rows[term.name]:
            unknown.add(term.file, row["input_ids"], tokenizer)
    return Tokenised(rows, cut, unknown.lines("tasks"))


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
        return batched(self._rows[task], places, self._tokenizer, self._batch_tokens, self._device)
