"""Which row of which model becomes which row of a common vocabulary."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from evomerge.errors import PoolError
from evomerge.recipes.tokenizer_spec import TokenizerSpec, TokenSource

Vocabularies = Mapping[str, Mapping[str, int]]
"""Token -> id by model; of tokens that the model's embeddings have a row for."""


@dataclass(frozen=True)
class Donor:
    """Rows of one model that stand in for others' missing ones.

    Attributes:
        model: whose.
        rows: which of its rows, integers of shape ``(n,)``.
        places: the rows of the common vocabulary that they go to, of shape ``(n,)``.
    """

    model: str
    rows: np.ndarray
    places: np.ndarray


@dataclass(frozen=True)
class RowMap:
    """How every model's rows make those of the common vocabulary.

    Attributes:
        rows: by model, integers of shape ``(count,)``: the model's own row, or -1 where it has none.
        count: rows of the common vocabulary.
        donors: what a row of -1 is the mean of; zero where no donor has the place.
        averaged: places that are the mean of the rows of all tokens, whatever `rows` says.
        tokens: places of tokens.
    """

    rows: Mapping[str, np.ndarray]
    count: int
    donors: tuple[Donor, ...]
    averaged: np.ndarray
    tokens: np.ndarray

    def is_trivial(self, rows: Mapping[str, int]) -> bool:
        """Whether every model, of so many `rows`, stays as it is."""
        order = np.arange(self.count)
        return not len(self.averaged) and all(
            rows[model] == self.count and np.array_equal(own, order) for model, own in self.rows.items()
        )

    def trims(self, model: str) -> bool:
        """Whether a model's rows are those that it has, without the last ones perhaps."""
        return not len(self.averaged) and np.array_equal(self.rows[model], np.arange(self.count))

    def lacking(self, model: str) -> int:
        """How many rows a model takes from others."""
        return int((self.rows[model] < 0).sum())

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of all of it, models by their order."""
        found = hashlib.sha256(f"rows 1 {self.count}".encode())
        order = {model: number for number, model in enumerate(self.rows)}
        for own in self.rows.values():
            found.update(own.astype("<i8").tobytes())
        for donor in self.donors:
            found.update(f" {order[donor.model]} {len(donor.rows)} ".encode())
            found.update(donor.rows.astype("<i8").tobytes() + donor.places.astype("<i8").tobytes())
        found.update(b"averaged" + self.averaged.astype("<i8").tobytes() + self.tokens.astype("<i8").tobytes())
        return found.hexdigest()


def by_tokens(
    spec: TokenizerSpec, result: Mapping[str, int], vocabularies: Vocabularies, lengths: Mapping[str, int]
) -> RowMap:
    """Rows by their tokens, with mergekit's rules for those that a model lacks.

    A token that one model alone has is that model's. One that several have is the base's where it has it, else the mean
    of theirs. One that none has is zero.

    Args:
        spec: with a source for some tokens, perhaps.
        result: token -> id in the common vocabulary.
        vocabularies: of all models.
        lengths: rows of every model.

    Raises:
        PoolError: a token is to come from a model that lacks it; names both.
    """
    tokens = np.fromiter(result.values(), np.int64, len(result))
    size = int(tokens.max(initial=-1)) + 1
    count = size if spec.multiple_of is None else -(-size // spec.multiple_of) * spec.multiple_of
    rows = {model: np.full(count, -1, np.int64) for model in vocabularies}
    for model, own in vocabularies.items():
        rows[model][tokens] = np.fromiter((own.get(token, -1) for token in result), np.int64, len(result))
    chosen: dict[int, list[tuple[str, int]]] = {}
    given = dict(spec.tokens)
    for token, source in given.items():
        place = result[token]
        if source.force or any(rows[model][place] < 0 for model in rows):
            chosen[place] = _rows_of(token, source, rows, place, vocabularies, lengths)
        if source.force:
            for taken in rows.values():
                taken[place] = -1
    kept = np.zeros(count, bool)
    kept[tokens] = True
    kept[[result[token] for token in given]] = False
    donors = [*_usual(rows, kept, spec.base), *_single(chosen, rows)]
    averaged = np.setdiff1d(np.arange(count), tokens)
    return RowMap(rows, count, tuple(donors), averaged, np.sort(tokens))


def by_ids(count: int, rows: Mapping[str, int], vocabularies: Vocabularies, reference: str) -> RowMap:
    """Rows in their places, of models whose vocabularies agree: no two tokens have one id, no token has two.

    A model's own rows are those of its tokens, and those of no model's token. Others are the reference's where it has
    them, else those of the only model that has the token, or the mean of several; of padding, the first model's that
    is long enough.

    Args:
        count: of rows.
        rows: of every model.
        vocabularies: of the models that have a tokenizer; a model without one keeps the rows that it has.
        reference: gives the rows that others lack.
    """
    used = np.zeros(count, bool)
    known: dict[str, np.ndarray] = {}
    for model, own in vocabularies.items():
        known[model] = np.zeros(count, bool)
        known[model][[i for i in own.values() if i < count]] = True
        used |= known[model]
    order = np.arange(count)
    found = {}
    for model, length in rows.items():
        has = order < length
        if model in known:
            has &= known[model] | ~used
        found[model] = np.where(has, order, -1)
    padding = ~used
    donors = _usual(found, used, reference)
    for model in dict.fromkeys([reference, *rows]):
        give = padding & (found[model] >= 0)
        if give.any():
            donors.append(Donor(model, order[give], order[give]))
            padding = padding & ~give
    return RowMap(found, count, tuple(donors), order[:0], np.flatnonzero(used))


def _usual(rows: Mapping[str, np.ndarray], kept: np.ndarray, base: str | None) -> list[Donor]:
    """The donors of places `kept`, by the rules."""
    having = {model: (own >= 0) & kept for model, own in rows.items()}
    every = np.logical_and.reduce(list(having.values()))
    lacking = {model: has & ~every for model, has in having.items()}
    if base is not None:
        for model in lacking:
            if model != base:
                lacking[model] = lacking[model] & ~having[base]
    return [Donor(model, rows[model][has], np.flatnonzero(has)) for model, has in lacking.items() if has.any()]


def _single(chosen: Mapping[int, Sequence[tuple[str, int]]], rows: Iterable[str]) -> list[Donor]:
    """The donors of places whose rows are given one by one."""
    found = []
    for model in rows:
        pairs = [(row, place) for place, own in chosen.items() for name, row in own if name == model]
        if pairs:
            both = np.array(pairs, np.int64)
            found.append(Donor(model, both[:, 0], both[:, 1]))
    return found


def _rows_of(
    token: str,
    source: TokenSource,
    rows: Mapping[str, np.ndarray],
    place: int,
    vocabularies: Vocabularies,
    lengths: Mapping[str, int],
) -> list[tuple[str, int]]:
    """The rows that a token's are the mean of."""
    if source.kind == "zero":
        return []
    if source.kind == "mean" or source.model is None:
        return [(model, int(own[place])) for model, own in rows.items() if own[place] >= 0]
    own = vocabularies[source.model]
    wanted = token if source.token is None else source.token
    if source.id is None and wanted not in own:
        raise PoolError(
            f"pool.tokenizer.tokens has {token!r} from model {source.model!r}, which has no row for {wanted!r}",
            "a token of that model's",
            "name another model or token, or the kind zero or mean",
        )
    row = own[wanted] if source.id is None else source.id
    if row >= lengths[source.model]:
        raise PoolError(
            f"pool.tokenizer.tokens has {token!r} from id {row} of model {source.model!r}",
            f"it has rows 0 to {lengths[source.model] - 1}",
        )
    return [(source.model, row)]
