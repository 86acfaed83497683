"""What other models said of the same texts, kept for all candidates within a budget of memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from evomerge.errors import FitnessError
from evomerge.utils.sizes import size_text

Form = Literal["float32", "float16", "top"]
LEAST = 16
"""Tokens that are kept of each distribution, at least."""


@dataclass(frozen=True)
class Distribution:
    """A model's predictions at some positions.

    Attributes:
        log_q: logarithms of probabilities, float32, each row summing to 1: of shape ``(positions, vocabulary)``, or
            ``(positions, kept + 1)`` with the probability of all other tokens last.
        tokens: those kept, int32 of shape ``(positions, kept)``; ``None`` for all of the vocabulary.
    """

    log_q: Tensor
    tokens: Tensor | None = None


@dataclass(frozen=True)
class Precision:
    """In what form distributions are kept.

    Attributes:
        form: all of the vocabulary in ``float32`` or ``float16``, or the ``top`` tokens in float32.
        kept: tokens of each distribution, for ``top``.
    """

    form: Form
    kept: int = 0

    def nbytes(self, positions: int, vocabulary: int) -> int:
        """Bytes of so many distributions."""
        each = {"float32": 4 * vocabulary, "float16": 2 * vocabulary, "top": 8 * self.kept + 4}
        return positions * each[self.form]


def choose_precision(budget: int, positions: int, vocabulary: int, other: int, key: str) -> Precision:
    """The most exact form that fits: decided by numbers of the configuration and texts, not by the machine.

    Args:
        budget: bytes for all that is kept.
        positions: distributions to keep.
        vocabulary: tokens of each.
        other: bytes of hidden states and single numbers, which are kept as they are.
        key: of the budget, for messages.

    Raises:
        FitnessError: not even the `LEAST` likeliest tokens fit.
    """
    left = budget - other
    whole: tuple[Form, Form] = ("float32", "float16")
    for form in whole:
        found = Precision(form)
        if found.nbytes(positions, vocabulary) <= max(left, 0):
            return found
    kept = min((left // positions - 4) // 8, vocabulary)
    least = Precision("top", min(LEAST, vocabulary))
    if kept < least.kept:
        needed = other + least.nbytes(positions, vocabulary)
        raise FitnessError(
            f"{key} is {size_text(budget)}, and what other models say of the texts takes {size_text(needed)} at least",
            "fewer or shorter texts (limit, max_length), or a larger budget",
        )
    return Precision("top", kept)


@dataclass
class Store:
    """What a model said of a domain's texts; a row for every position, in the order of the texts.

    Attributes:
        positions: how many there are.
        log_q, tokens: of distributions.
        likeliest: the likeliest token, int64.
        surprise: minus the log-likelihood of the next token, float32; NaN where none comes.
        states: hidden states by layer, in the model's dtype.
    """

    positions: int
    precision: Precision
    log_q: Tensor | None = None
    tokens: Tensor | None = None
    likeliest: Tensor | None = None
    surprise: Tensor | None = None
    states: dict[int, Tensor] = field(default_factory=dict)

    def put_distribution(self, rows: Tensor, log_p: Tensor) -> None:
        """Keep predictions, float32 of shape ``(rows, vocabulary)``, in the store's form."""
        form, kept = self.precision.form, self.precision.kept
        if form == "top":
            top = log_p.topk(kept, dim=1)
            rest = log_p.scatter(1, top.indices, -torch.inf).logsumexp(dim=1, keepdim=True)
            log_p, indices = torch.cat([top.values, rest], dim=1), top.indices.int()
            self.tokens = self._room(self.tokens, indices)
            self.tokens[rows] = indices
        elif form == "float16":
            log_p = log_p.half()
        self.log_q = self._room(self.log_q, log_p)
        self.log_q[rows] = log_p

    def distribution(self, rows: Tensor) -> Distribution:
        """What was kept of some rows; of float16 scaled to sum to 1 again."""
        assert self.log_q is not None
        log_q = self.log_q[rows].float()
        if self.precision.form == "float16":
            log_q = log_q - log_q.logsumexp(dim=1, keepdim=True)
        return Distribution(log_q, None if self.tokens is None else self.tokens[rows])

    def put(self, rows: Tensor, values: Mapping[str, Tensor], states: Mapping[int, Tensor]) -> None:
        """Keep ``likeliest`` and ``surprise`` where they are given, and hidden states by layer."""
        for name, given in values.items():
            room = self._room(getattr(self, name), given)
            room[rows] = given
            setattr(self, name, room)
        for layer, given in states.items():
            self.states[layer] = self._room(self.states.get(layer), given)
            self.states[layer][rows.to(given.device)] = given

    def _room(self, room: Tensor | None, like: Tensor) -> Tensor:
        return like.new_empty((self.positions, *like.shape[1:])) if room is None else room
