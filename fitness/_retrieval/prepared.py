"""Everything about texts that is made once, and how a model's embeddings of them are scored."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from evomerge.errors import FitnessError, PoolError
from evomerge.models.architecture.dense_layers import attached, read_layers
from evomerge.models.loaded import LoadedModel
from evomerge.models.sentence_encoder import SentenceEncoder
from fitness._classification.scored import ERROR, score_numbers
from fitness._retrieval.embedding import Embedder, Embeddings, paired, similarities
from fitness._retrieval.ranking import SCALE, Ranks
from fitness._retrieval.sources import Pairs, Queries
from fitness._retrieval.terms import RetrievalTerm
from fitness._retrieval.texts import Texts

_CELLS = 2**23  # similarities of texts that are held at a time


@dataclass(frozen=True)
class TaskScores:
    """What a model gives on some items of a task.

    Attributes:
        metrics: by name.
        items: by metric, and `ERROR`, values of the items, shape ``(items,)``.
        said: what the model says of each: the document that comes first, or the similarity.
    """

    metrics: Mapping[str, float]
    items: Mapping[str, NDArray[np.float64]]
    said: Sequence[str]


class Prepared:
    """Batches of all texts for models like one.

    Args:
        model: that they are for.
        terms: the tasks.
        sources: their items.
        encoder: how texts become embeddings.
        texts: as tokens.
        batch_tokens: of a batch, padding included.

    Raises:
        FitnessError: dense layers that cannot be read.
    """

    def __init__(
        self,
        model: LoadedModel,
        terms: Sequence[RetrievalTerm],
        sources: Mapping[str, Queries | Pairs],
        encoder: SentenceEncoder,
        texts: Texts,
        batch_tokens: int,
    ) -> None:
        self._terms, self._sources, self._encoder, self._texts = terms, sources, encoder, texts
        self._kind, self._how = encoder.similarity, {"batch_tokens": batch_tokens, "dtype": str(model.dtype)}
        layers = []
        if encoder.dense and not attached(model.module):
            try:
                layers = read_layers(encoder.dense, Path(model.encoder_folder or model.name_or_path), model.device)
            except PoolError as error:
                raise FitnessError(error.given, error.allowed, error.do) from error
        self._how["dense"] = hashlib.sha256(
            b"".join(tensor.cpu().numpy().tobytes() for layer in layers for tensor in layer.state_dict().values())
        ).hexdigest()
        self._embedder = Embedder(
            encoder, layers, texts.rows, texts.counted, texts.names, model.tokenizer, batch_tokens, model.device
        )
        for group in self._groups(dict.fromkeys(sources)):
            self._embedder.keep(group)

    def embed(self, model: LoadedModel, places: Mapping[str, Sequence[int] | None]) -> tuple[Embeddings, float]:
        """Embeddings of all documents, and of the items at some places of each task, with the seconds they took."""
        return self._embedder.embed(model, [group for group in self._groups(places) if group])

    def _groups(self, places: Mapping[str, Sequence[int] | None]) -> tuple[list[int], list[int]]:
        """Numbers of the documents, the same for any places, and of the other texts."""
        documents, others = dict[int, None](), dict[int, None]()
        for name, chosen in places.items():
            one, two = self._texts.one[name], self._texts.two[name]
            own = range(len(one)) if chosen is None else chosen
            others |= dict.fromkeys(one[place] for place in own)
            if isinstance(self._sources[name], Queries):
                documents |= dict.fromkeys(two)
            else:
                others |= dict.fromkeys(two[place] for place in own)
        return list(documents), [number for number in others if number not in documents]

    @torch.no_grad()
    def score(self, term: RetrievalTerm, found: Embeddings, places: Sequence[int] | None) -> TaskScores:
        """Score a task's items at some places, or all, by embeddings of theirs and of all documents."""
        source = self._sources[term.name]
        own = list(range(len(source))) if places is None else list(places)
        one, two = self._texts.one[term.name], self._texts.two[term.name]
        if isinstance(source, Pairs):
            like = paired(found.of([one[p] for p in own]), found.of([two[p] for p in own]), self._kind)
            predicted = like.double().cpu().numpy()
            metrics, items = score_numbers(np.array(source.labels)[own], predicted)
            kept = {name: metrics[name] for name in ("spearman", "pearson")}
            return TaskScores(kept, items, [f"{value:.4f}" for value in predicted.tolist()])
        ranks = Ranks(source, own, SCALE if self._kind == "cosine" else 1.0)
        documents = found.of(two)
        step = max(1, _CELLS // len(two))
        for start in range(0, len(own), step):
            queries = found.of([one[place] for place in own[start : start + step]])
            ranks.add(similarities(queries, documents, self._kind))
        wanted = dict.fromkeys((*(metric.name for metric in term.metrics), *ALWAYS))
        columns = {name: ranks.metric(name) for name in wanted}
        metrics = {name: float(column.mean()) for name, column in columns.items()}
        said = [source.documents[place] for place in ranks.first()]
        return TaskScores(metrics, {**columns, ERROR: ranks.before()}, said)

    def text(self) -> str:
        """What a fingerprint is of: tokens, what is right, the encoder, metrics, dtype, batches and versions."""
        packages = ("transformers", "torch", "tokenizers", "scipy")
        tokens = hashlib.sha256(json.dumps([self._texts.rows, self._texts.counted]).encode()).hexdigest()
        how: dict[str, Any] = {
            "versions": {name: importlib.metadata.version(name) for name in packages},
            "how": self._how,
            "encoder": asdict(self._encoder),
            "tokens": tokens,
            "tasks": [
                [t.name, [[m.name, m.weight] for m in t.metrics], t.weight, t.objective, *self._items_of(t.name)]
                for t in self._terms
            ],
        }
        return json.dumps(how, sort_keys=True)

    def _items_of(self, name: str) -> list[Any]:
        source = self._sources[name]
        numbers = [list(self._texts.one[name]), list(self._texts.two[name])]
        if isinstance(source, Pairs):
            return [*numbers, list(source.labels)]
        right = [sorted(grades.items()) for grades in source.right]
        return [*numbers, right, [list(own) for own in source.lost], list(source.own)]


ALWAYS = ("ndcg@10", "mrr@10", "recall@100")
"""Metrics of queries that are always reported."""
