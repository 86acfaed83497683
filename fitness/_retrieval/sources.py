"""Corpora, queries and what is right for them, and pairs of texts: read from files in BEIR's form, or from tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from evomerge.errors import FitnessError, nearest
from fitness._classification.tables import cell_of, in_part, number_of, read_rows, require_several, text_cell
from fitness._classification.terms import SplitTerm
from fitness._documents import Document, asked_hash, content_hash
from fitness._retrieval.terms import RetrievalTerm

_MOST_NAMED = 5


@dataclass(frozen=True)
class Queries:
    """A task of queries.

    Attributes:
        queries: their texts.
        documents: the texts of the corpus: title and text.
        right: of each query the places of judged documents with their grades, all above 0.
        lost: of each query the grades of right documents that the corpus does not have: nothing finds them.
        own: of each query the place of the document that it is not to find; ``None`` where there is none.
        identities: of each query what identifies it, with the right documents.
        skipped: judged queries that nothing is right for.
    """

    queries: tuple[str, ...]
    documents: tuple[str, ...]
    right: tuple[Mapping[int, float], ...]
    lost: tuple[tuple[float, ...], ...]
    own: tuple[int | None, ...]
    identities: tuple[Document, ...]
    skipped: int

    def __len__(self) -> int:
        return len(self.queries)


@dataclass(frozen=True)
class Pairs:
    """A task of pairs.

    Attributes:
        one, two: the texts.
        labels: how like they are.
        identities: of each pair what identifies it.
    """

    one: tuple[str, ...]
    two: tuple[str, ...]
    labels: tuple[float, ...]
    identities: tuple[Document, ...]

    def __len__(self) -> int:
        return len(self.labels)


def read_source(term: RetrievalTerm, key: str, split: SplitTerm, seed: int) -> Queries | Pairs:
    """A task's items that are in its part.

    Args:
        term: the task.
        key: ``tasks[NUMBER]``, for messages.
        split: which part counts: a query, or a pair, lies in one by its text.
        seed: of the documents that are drawn where not all are looked through.

    Raises:
        FitnessError: a file is not there or cannot be read, lacks a column, has an id twice, or no item is left.
    """
    return _read_pairs(term, key, split) if term.pairs else _read_queries(term, key, split, seed)


def _read_pairs(term: RetrievalTerm, key: str, split: SplitTerm) -> Pairs:
    one, two, labels, identities = list[str](), list[str](), list[float](), list[Document]()
    for where, row in read_rows(term.pairs, f"{key}.pairs"):
        first = text_cell(row, term.one, where, f"{key}.one")
        second = text_cell(row, term.two, where, f"{key}.two")
        if not in_part(f"{first}\n{second}", split):
            continue
        label = number_of(cell_of(row, term.label, where, f"{key}.label"), where, term.label)
        one.append(first)
        two.append(second)
        labels.append(label)
        content = content_hash({str(name): value for name, value in row.items()})
        identities.append(Document(asked_hash(f"{first}\n{second}", (), str(label)), content))
        if len(labels) == term.limit:
            break
    if len(labels) < 2:
        what = f" in part {split.part}" if split.part else ""
        raise FitnessError(f"{key}.pairs: {term.pairs} has {len(labels)} pairs{what}", "two or more")
    require_several(labels, f"{key}.pairs: {term.pairs}")
    return Pairs(tuple(one), tuple(two), tuple(labels), tuple(identities))


def _read_queries(term: RetrievalTerm, key: str, split: SplitTerm, seed: int) -> Queries:
    judged = _read_qrels(term.qrels, f"{key}.qrels")
    texts, skipped = dict[str, str](), 0
    for where, row in read_rows(term.queries, f"{key}.queries"):
        name, text = _id(row, where), text_cell(row, "text", where, f"{key}.queries")
        if name in texts:
            raise FitnessError(f"{where}: the _id {name!r} is there twice", "every query once")
        if not any(grade > 0 for grade in judged.get(name, {}).values()):
            skipped += name in judged  # others are of another split
        elif in_part(text, split) and (term.limit is None or len(texts) < term.limit):
            texts[name] = text
    if not texts:
        what = f"in part {split.part} that {term.qrels} has" if split.part else f"that {term.qrels} has"
        raise FitnessError(
            f"{key}.queries: {term.queries} has no query {what} a right document for",
            "ids of queries in the first column of qrels",
        )
    wanted = {name for query in texts for name in judged[query]}
    corpus, titles = _read_corpus(term, key, wanted, seed)
    place = {name: number for number, name in enumerate(corpus)}
    right, lost, own, identities = list[dict[int, float]](), list[tuple[float, ...]](), list[int | None](), []
    for name, text in texts.items():
        same = place.get(name) if term.ignore_identical_ids else None
        grades = {doc: grade for doc, grade in judged[name].items() if grade > 0 and place.get(doc, -1) != same}
        right.append({place[doc]: grade for doc, grade in grades.items() if doc in place})
        lost.append(tuple(grade for doc, grade in grades.items() if doc not in place))
        own.append(same)
        answers = sorted(titles[doc] for doc in grades if doc in place)
        identities.append(Document(asked_hash(text, (), "\n".join(answers)), content_hash([text, answers])))
    empty = [name for name, found, gone in zip(texts, right, lost, strict=True) if not found and not gone]
    if empty:
        raise FitnessError(
            f"{key}: of query {empty[0]!r} only the document with its own id is right, which is ignored",
            "another right document",
            f"set {key}.ignore_identical_ids=false",
        )
    if not any(right):
        given = next(iter(wanted))
        raise FitnessError(
            f"{key}.qrels: {term.qrels} has {given!r}, no document of {term.corpus}", nearest(given, place)
        )
    return Queries(
        tuple(texts.values()),
        tuple(titles[name] for name in corpus),
        tuple(right),
        tuple(lost),
        tuple(own),
        tuple(identities),
        skipped,
    )


def _read_corpus(term: RetrievalTerm, key: str, wanted: set[str], seed: int) -> tuple[Sequence[str], Mapping[str, str]]:
    """Ids of the documents that are looked through, in the file's order, and their texts."""
    titles = dict[str, str]()
    for where, row in read_rows(term.corpus, f"{key}.corpus"):
        name = _id(row, where)
        if name in titles:
            raise FitnessError(f"{where}: the _id {name!r} is there twice", "every document once")
        parts = [cell_of(row, "text", where, f"{key}.corpus"), row.get("title") or ""]
        if not all(isinstance(part, str) for part in parts):
            raise FitnessError(f"{where}: its title or text is {str(parts)[:60]}", "texts")
        titles[name] = f"{parts[1]} {parts[0]}".strip()  # as BEIR has it
    others = [name for name in titles if name not in wanted]
    room = len(others) if term.documents is None else term.documents - (len(titles) - len(others))
    if room < 0:
        raise FitnessError(
            f"{key}.documents is {term.documents}",
            f"{len(titles) - len(others)} or more: so many are judged for the queries",
            f"set {key}.limit for fewer queries",
        )
    drawn = np.random.default_rng(seed).choice(len(others), min(room, len(others)), replace=False)
    kept = wanted | {others[int(number)] for number in drawn}
    return [name for name in titles if name in kept], titles


def _read_qrels(file: str, key: str) -> dict[str, dict[str, float]]:
    """By query the judged documents with their grades."""
    found = dict[str, dict[str, float]]()
    for where, row in read_rows(file, key):
        query, document = (str(cell_of(row, name, where, key)) for name in ("query-id", "corpus-id"))
        found.setdefault(query, {})[document] = number_of(cell_of(row, "score", where, key), where, "score")
    return found


def _id(row: Mapping[str, object], where: str) -> str:
    if "_id" not in row and "id" not in row:
        raise FitnessError(f"{where} has no '_id'", nearest("_id", [str(own) for own in row]))
    name = row.get("_id", row.get("id"))
    if isinstance(name, bool) or not isinstance(name, int | str) or name == "":
        raise FitnessError(f"{where}: its _id is {str(name)[:60]!r}", "an id: a text or a whole number")
    return str(name)


def lines_of(term: RetrievalTerm, found: Queries | Pairs) -> list[str]:
    """What of a task makes a search hard to trust, a line each."""
    if isinstance(found, Pairs):
        return []
    lines = []
    gone = sum(len(own) for own in found.lost)
    if gone:
        lines.append(f"tasks.{term.name}: {gone} right documents are not in the corpus, and count as never found")
    if found.skipped:
        lines.append(f"tasks.{term.name}: {found.skipped} judged queries have no right document, and are left out")
    if len(found.documents) <= 2 * _MOST_NAMED:
        lines.append(f"tasks.{term.name}: of {len(found.documents)} documents any query finds the right one soon")
    return lines
