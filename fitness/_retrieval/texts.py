"""The texts of all tasks as tokens, each once, with what of each is pooled or compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any

from evomerge.errors import FitnessError
from evomerge.models.sentence_encoder import NORMALIZE, POOL, SIMILARITIES, SentenceEncoder
from evomerge.models.unknown_tokens import UnknownTokens
from fitness._retrieval.sources import Pairs, Queries
from fitness._retrieval.terms import Overrides, RetrievalTerm
from fitness._token_rows import Rows, require_padding, token_rows

Numbers = tuple[int, ...]


@dataclass
class Texts:
    """All texts, each of them once for the same role and prompt.

    Attributes:
        rows: their tokens.
        counted: for each token 1 where it is pooled, or compared one by one, else 0.
        one, two: by task the numbers of its queries and its documents, or of the texts of its pairs.
        cut: by task how many of its texts were cut.
        unknown: lines on texts that the tokenizer does not know the words of.
        names: of each text, for messages.
    """

    rows: Rows = field(default_factory=list)
    counted: list[list[int]] = field(default_factory=list)
    one: dict[str, Numbers] = field(default_factory=dict)
    two: dict[str, Numbers] = field(default_factory=dict)
    cut: dict[str, int] = field(default_factory=dict)
    unknown: Sequence[str] = ()
    names: list[str] = field(default_factory=list)


def overridden(encoder: SentenceEncoder | None, given: Overrides) -> SentenceEncoder:
    """The encoder of a model's folder, or sentence-transformers' default without one, with what a user says.

    Raises:
        FitnessError: a similarity of single embeddings for one of every token, or the other way round.
    """
    own = encoder or SentenceEncoder()
    if given.pooling is not None:
        rest = tuple(step for step in own.steps if step != POOL)
        steps = (POOL, *rest) if given.pooling and POOL not in own.steps else own.steps if given.pooling else rest
        own = replace(own, steps=steps, pooling=given.pooling)
        if own.is_late and NORMALIZE not in own.steps and encoder is None:
            own = replace(own, steps=(*own.steps, NORMALIZE))
        if own.is_late == (own.similarity in SIMILARITIES):
            own = replace(own, similarity="maxsim" if own.is_late else "cosine")
    if given.normalize is not None:
        rest = tuple(step for step in own.steps if step != NORMALIZE)
        own = replace(own, steps=(*rest, NORMALIZE) if given.normalize else rest)
    if given.similarity is not None:
        if own.is_late == (given.similarity in SIMILARITIES):
            what = "an embedding of every token" if own.is_late else "one embedding of a text"
            raise FitnessError(
                f"similarity is {given.similarity}, and the models give {what}",
                "cosine, dot, euclidean or manhattan of one; maxsim or meanmaxsim of every token's",
                "leave similarity out, or set pooling",
            )
        own = replace(own, similarity=given.similarity)
    lengths = {key: getattr(given, key) for key in ("max_length", "query_length", "document_length")}
    return replace(own, **{key: value for key, value in lengths.items() if value is not None})


def tokenised(
    terms: Sequence[RetrievalTerm],
    sources: Mapping[str, Queries | Pairs],
    encoder: SentenceEncoder,
    prompts: Mapping[str, str],
    tokenizer: Any,
    positions: int | None,
) -> Texts:
    """All texts as tokens.

    Args:
        terms: the tasks.
        sources: their items.
        encoder: how texts are read.
        prompts: by role, in place of the encoder's; those of a task come before both.
        tokenizer: of transformers.
        positions: tokens that the model reads at most; ``None`` where that is not known.

    Raises:
        FitnessError: there is no tokenizer, it cannot pad, or it makes nothing of a text.
    """
    require_padding(tokenizer)
    found, unknown = Texts(), UnknownTokens()
    reader = _Reader(encoder, tokenizer, positions, found)
    for term in terms:
        source, own = sources[term.name], {**prompts, **dict(term.prompts)}
        pairs = isinstance(source, Pairs)
        one = source.one if isinstance(source, Pairs) else source.queries
        two = source.two if isinstance(source, Pairs) else source.documents
        roles = ("text", "text") if pairs and not encoder.is_late else ("query", "document")
        cut = 0
        for texts, role, into in ((one, roles[0], found.one), (two, roles[1], found.two)):
            start = len(found.rows)
            into[term.name], more = reader.read(texts, role, own.get(role, encoder.prompt(role)), f"tasks.{term.name}")
            cut += more
            for row in found.rows[start:]:
                unknown.add(term.pairs or term.queries, row["input_ids"], tokenizer)
        found.cut[term.name] = cut
    found.unknown = unknown.lines("tasks")
    return found


class _Reader:
    """Makes tokens of texts that it has not seen yet."""

    def __init__(self, encoder: SentenceEncoder, tokenizer: Any, positions: int | None, texts: Texts) -> None:
        self._encoder, self._positions, self._texts = encoder, positions, texts
        self._tokenizer = _with_markers(tokenizer, encoder.markers)
        self._known: dict[tuple[str, str, str], int] = {}
        self._long: set[int] = set()
        ids = [self._tokenizer.convert_tokens_to_ids(word) for word in encoder.skipped]
        self._skipped = {own for own in ids if own is not None and own != self._tokenizer.unk_token_id}

    def read(self, texts: Sequence[str], role: str, prompt: str, key: str) -> tuple[Numbers, int]:
        """Numbers of texts, and how many of them are cut."""
        missing = list(dict.fromkeys(text for text in texts if (role, prompt, text) not in self._known))
        limit = self._limit(role)
        if missing:
            written = [prompt + text for text in missing]
            written = [text.lower() for text in written] if self._encoder.lower else written
            rows, cut = token_rows(self._tokenizer, [written], limit, key)
            dropped = 0 if self._encoder.include_prompt or not prompt else self._prompt_length(prompt, key)
            for text, row, long in zip(missing, rows, cut, strict=True):
                self._known[role, prompt, text] = number = len(self._texts.rows)
                self._add(row, role, dropped)
                self._texts.names.append(f"{key}: {text[:60]!r}")
                if long:
                    self._long.add(number)
        numbers = tuple(self._known[role, prompt, text] for text in texts)
        return numbers, sum(number in self._long for number in set(numbers))

    def _limit(self, role: str) -> int | None:
        """Tokens of a text at most."""
        encoder = self._encoder
        own = {"query": encoder.query_length, "document": encoder.document_length}.get(role)
        expansion = encoder.expansion if role == "query" else None
        if expansion is not None:
            own = expansion.length if expansion.fixed else None if own is None else max(own, expansion.length)
        limits = [limit for limit in (own if own is not None else encoder.max_length, self._positions) if limit]
        return min(limits, default=None)

    def _add(self, row: dict[str, list[int]], role: str, dropped: int) -> None:
        ids = row["input_ids"]
        counted = [int(place >= dropped) for place in range(len(ids))]
        if self._encoder.is_late and role == "document":
            counted = [int(token not in self._skipped) for token in ids]
        expansion = self._encoder.expansion if role == "query" else None
        missing = 0 if expansion is None else max(0, expansion.length - len(ids))
        if expansion is not None and missing:
            filler = self._filler(expansion.token)
            more = {"input_ids": filler, "attention_mask": int(expansion.attend)}
            left = self._tokenizer.padding_side == "left"
            for name, own in row.items():
                tail = [more.get(name, 0)] * missing
                row[name] = tail + own if left else own + tail
            counted = [1] * len(row["input_ids"])
        self._texts.rows.append(row)
        self._texts.counted.append(counted)

    def _filler(self, token: str) -> int:
        """What queries are filled up with."""
        own = self._tokenizer
        found = own.convert_tokens_to_ids(token) if token else own.mask_token_id
        found = own.eos_token_id if found is None else found
        if found is None:
            raise FitnessError("queries are filled up, and the tokenizer has no mask token", "one that has")
        return int(found)

    def _prompt_length(self, prompt: str, key: str) -> int:
        """Tokens of a prompt, without what the tokenizer puts behind a text."""
        (row,), _ = token_rows(self._tokenizer, [[prompt.lower() if self._encoder.lower else prompt]], None, key)
        ids = row["input_ids"]
        return len(ids) - (ids[-1] in self._tokenizer.all_special_ids)


def _with_markers(tokenizer: Any, markers: Sequence[str]) -> Any:
    """The tokenizer, or a copy in which prompts that the vocabulary has as one token are read as such.

    PyLate and ColBERT put these tokens in; as text they would fall into pieces.
    """
    known, single = tokenizer.get_vocab() if markers else {}, []
    for marker in markers:
        words = marker.split(None, 1)
        found = next((own for own in (marker, *words[:1]) if own in known), None)
        if found is not None and tokenizer.tokenize(found) != [found]:
            single.append(found)
    if not single:
        return tokenizer
    from transformers import AddedToken

    made = deepcopy(tokenizer)
    made.add_special_tokens(
        {"additional_special_tokens": [AddedToken(s, normalized=False, special=True) for s in single]}
    )
    return made
