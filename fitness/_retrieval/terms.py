"""What a user's tasks of retrieval and similarity say, parsed and checked. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evomerge.errors import ConfigError, nearest
from evomerge.models.sentence_encoder import LATE_SIMILARITIES, POOLING, SIMILARITIES, TOKENS
from fitness._classification.metric_terms import MetricTerm, weighted_metrics
from fitness._classification.terms import listed_tasks, require_apart
from fitness._unlabelled.values import finite, require_keys, whole

RANKED = {"ndcg": 10, "mrr": 10, "recall": 100, "hit": 1}
"""Metrics of a ranking, each of its first so many documents; the number where none is given."""
LOSS = "loss"
PAIR_METRICS = ("spearman", "pearson")
ROLES = ("query", "document", "text")

_COMMON = ("task", "metrics", "weight", "objective", "limit", "prompts")
_SEARCH = ("folder", "corpus", "queries", "qrels", "documents", "ignore_identical_ids")
_PAIRS = ("pairs", "one", "two", "label")
_OF_ALL = (
    *("pooling", "normalize", "similarity", "max_length", "query_length", "document_length", "batch_tokens"),
    *("part", "split", "seed"),
)
_LARGEST_K = 10**6


@dataclass(frozen=True)
class RetrievalTerm:
    """A task: queries that look for documents, or pairs of texts that are alike or not.

    Attributes:
        name: of the task.
        corpus, queries, qrels: files of documents, of queries, and of which documents are right for which; empty for a
            task of pairs.
        pairs: a file of pairs; empty for a task of queries.
        one, two, label: columns of `pairs`.
        prompts: role -> what stands before its texts, in place of the model's.
        documents: how many of the corpus are looked through: those judged for the queries, then others, drawn; ``None``
            for all.
        ignore_identical_ids: whether a query does not find the document that has its own id.
        metrics: that count.
        weight: among the tasks of the objective.
        objective: its name.
        limit: the first so many queries or pairs; ``None`` for all.
    """

    name: str
    corpus: str
    queries: str
    qrels: str
    pairs: str
    one: str
    two: str
    label: str
    prompts: tuple[tuple[str, str], ...]
    documents: int | None
    ignore_identical_ids: bool
    metrics: tuple[MetricTerm, ...]
    weight: float
    objective: str
    limit: int | None

    @property
    def is_numeric(self) -> bool:
        """Whether labels are numbers: of pairs they are."""
        return bool(self.pairs)

    @property
    def files(self) -> dict[str, str]:
        """Its files by their keys."""
        own = {"corpus": self.corpus, "queries": self.queries, "qrels": self.qrels, "pairs": self.pairs}
        return {key: file for key, file in own.items() if file}


def depth_of(metric: str) -> tuple[str, int]:
    """Kind and number of documents of a metric such as ``ndcg@10``."""
    kind, _, depth = metric.partition("@")
    return kind, int(depth)


def parse_tasks(given: Any) -> tuple[RetrievalTerm, ...]:
    """The tasks of a configuration.

    Raises:
        ConfigError: no tasks, an unknown key, a value out of its range or a name twice; names the key.
    """
    return listed_tasks(given, _task, "[{task: answers, folder: data/answers}, {task: likeness, pairs: sts.csv}]")


def _task(given: Any, key: str) -> RetrievalTerm:
    if not isinstance(given, Mapping):
        raise ConfigError(f"{key} is {str(given)[:80]!r}", "a mapping with task and folder, or task and pairs")
    require_keys(given, (*_COMMON, *_SEARCH, *_PAIRS), key, _OF_ALL)
    name = _text(given, "task", key)
    if "/" in name or not name.strip():
        raise ConfigError(f"{key}.task is {name!r}", "a name without /")
    is_pairs = given.get("pairs") is not None
    strangers = [own for own in (_SEARCH if is_pairs else _PAIRS) if given.get(own) is not None]
    if strangers:
        what = "pairs" if is_pairs else "folder, or corpus, queries and qrels"
        raise ConfigError(f"{key} has {what} and {strangers[0]}", "a task of queries or one of pairs", "make it two")
    files = {"corpus": "", "queries": "", "qrels": ""} if is_pairs else _files(given, key)
    identical = given.get("ignore_identical_ids", False)
    if not isinstance(identical, bool):
        raise ConfigError(f"{key}.ignore_identical_ids is {identical!r}", "true or false")
    weight = finite(given.get("weight", 1.0), f"{key}.weight")
    if weight <= 0:
        raise ConfigError(f"{key}.weight is {weight:g}", "a number above 0")
    objective = given.get("objective", "score")
    if not isinstance(objective, str) or not objective.isidentifier():
        raise ConfigError(f"{key}.objective is {objective!r}", "a name of letters, digits and _")
    if is_pairs:
        columns = {"one": "sentence1", "two": "sentence2", "label": "score"}
        require_apart({own: _text(given, own, key, default) for own, default in columns.items()}, key)
    return RetrievalTerm(
        name,
        files["corpus"],
        files["queries"],
        files["qrels"],
        _text(given, "pairs", key) if is_pairs else "",
        _text(given, "one", key, "sentence1"),
        _text(given, "two", key, "sentence2"),
        _text(given, "label", key, "score"),
        tuple(parse_prompts(given.get("prompts"), f"{key}.prompts").items()),
        _count(given, "documents", key),
        identical,
        _metrics(given.get("metrics"), f"{key}.metrics", is_pairs),
        weight,
        objective,
        _count(given, "limit", key),
    )


def _files(given: Mapping[str, Any], key: str) -> dict[str, str]:
    """The three files of a task of queries: those of BEIR's folders, unless others are named."""
    folder = given.get("folder")
    if folder is None:
        for needed in ("corpus", "queries", "qrels"):
            if given.get(needed) is None:
                raise ConfigError(
                    f"{key} has no {needed}", "folder, or corpus, queries and qrels, or pairs", f"set {key}.folder"
                )
    root = Path(_text(given, "folder", key)) if folder is not None else Path()
    defaults = {"corpus": "corpus.jsonl", "queries": "queries.jsonl", "qrels": "qrels/test.tsv"}
    return {name: str(root / _text(given, name, key, default)) for name, default in defaults.items()}


def _metrics(given: Any, key: str, is_pairs: bool) -> tuple[MetricTerm, ...]:
    """The metrics of a task: those of pairs, or those of a ranking, with the number of documents written out."""
    if is_pairs:
        return weighted_metrics("spearman" if given is None else given, key, PAIR_METRICS)
    found = weighted_metrics(
        "ndcg@10" if given is None else given, key, (), example="ndcg@10, mrr@10, recall@100, loss"
    )
    named = tuple(MetricTerm(_ranked(metric.name, key), metric.weight) for metric in found)
    for metric in named:
        if sum(other.name == metric.name for other in named) > 1:
            raise ConfigError(f"{key} has {metric.name} twice", "every metric once")
    return named


def _ranked(name: str, key: str) -> str:
    """The whole name of a metric of a ranking: ``ndcg`` is ``ndcg@10``."""
    kind, at, depth = name.partition("@")
    if name == LOSS:
        return name
    if kind not in RANKED:
        allowed = [f"{own}@{number}" for own, number in RANKED.items()] + [LOSS]
        raise ConfigError(f"{key} has {name!r}", nearest(name, allowed), "of pairs: spearman, pearson")
    if not at:
        return f"{kind}@{RANKED[kind]}"
    if not depth.isdecimal() or not 1 <= int(depth) <= _LARGEST_K:
        raise ConfigError(f"{key} has {name!r}", f"a number of documents, such as {kind}@{RANKED[kind]}")
    return f"{kind}@{int(depth)}"


@dataclass(frozen=True)
class Overrides:
    """What a user says of the encoder in place of what its folder says; ``None`` for as that says.

    Attributes:
        pooling: ways of pooling; none for an embedding of every token.
        normalize: whether embeddings have length 1.
        similarity: of embeddings.
        prompts: by role.
        max_length, query_length, document_length: tokens.
    """

    pooling: tuple[str, ...] | None = None
    normalize: bool | None = None
    similarity: str | None = None
    prompts: tuple[tuple[str, str], ...] = ()
    max_length: int | None = None
    query_length: int | None = None
    document_length: int | None = None


def parse_overrides(
    pooling: Any,
    normalize: Any,
    similarity: Any,
    prompts: Any,
    max_length: Any,
    query_length: Any,
    document_length: Any,
) -> Overrides:
    """What is said of the encoder.

    Raises:
        ConfigError: a way of pooling, a similarity or a role that there is not, or a value out of its range.
    """
    ways = None
    if pooling is not None:
        listed = [pooling] if isinstance(pooling, str) else pooling
        if not isinstance(listed, Sequence) or not listed:
            raise ConfigError(f"pooling is {pooling!r}", f"one or more of {', '.join((*POOLING, TOKENS))}")
        for way in listed:
            if way not in (*POOLING, TOKENS):
                raise ConfigError(f"pooling is {way!r}", nearest(str(way), (*POOLING, TOKENS)))
        if TOKENS in listed and len(listed) > 1:
            raise ConfigError(f"pooling is {', '.join(listed)}", f"{TOKENS} alone, or others without it")
        ways = () if TOKENS in listed else tuple(listed)
    if normalize is not None and not isinstance(normalize, bool):
        raise ConfigError(f"normalize is {normalize!r}", "true, false, or null for what the model's folder says")
    every = (*SIMILARITIES, *LATE_SIMILARITIES)
    if similarity is not None and similarity not in every:
        raise ConfigError(f"similarity is {similarity!r}", nearest(str(similarity), every))
    if similarity is not None and ways is not None and (similarity in LATE_SIMILARITIES) != (not ways):
        allowed = SIMILARITIES if ways else LATE_SIMILARITIES
        raise ConfigError(f"similarity is {similarity} with pooling={pooling}", f"one of {', '.join(allowed)}")
    lengths = {"max_length": max_length, "query_length": query_length, "document_length": document_length}
    counts = [None if own is None else whole(own, key, 1, 2**31) for key, own in lengths.items()]
    return Overrides(ways, normalize, similarity, tuple(parse_prompts(prompts, "prompts").items()), *counts)


def parse_prompts(given: Any, key: str) -> dict[str, str]:
    """Prompts by role."""
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise ConfigError(f"{key} is {str(given)[:80]!r}", "a mapping: {query: 'query: ', document: 'passage: '}")
    require_keys(given, ROLES, key)
    for role, text in given.items():
        if not isinstance(text, str):
            raise ConfigError(f"{key}.{role} is {text!r}", "a text, empty for none")
    return dict(given)


def _text(given: Mapping[str, Any], name: str, key: str, default: str | None = None) -> str:
    value = given.get(name)
    if value is None and default is not None:
        return default
    if value is None:
        raise ConfigError(
            f"{key} has no {name}", "a name, and a folder or files: {task: answers, folder: data/answers}"
        )
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{key}.{name} is {value!r}", "a text")
    return value


def _count(given: Mapping[str, Any], name: str, key: str) -> int | None:
    value = given.get(name)
    return None if value is None else whole(value, f"{key}.{name}", 1, 2**31)
