"""Metrics of rankings, each with a value for every query whose mean it is.

Those of trec_eval, which BEIR and MTEB print: gains are the grades as they are, and the best ranking that there could
be has all right documents first, those too that are not in the corpus.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from fitness._retrieval.sources import Queries
from fitness._retrieval.terms import LOSS, depth_of

_CELLS = 2**24  # comparisons of scores that are held at a time
SCALE = 20.0
"""What cosines are multiplied by in the loss, as in sentence-transformers' MultipleNegativesRankingLoss."""


class Ranks:
    """Where right documents stand, collected while scores are computed some queries at a time.

    Equal scores are ranked in the order of the corpus.

    Args:
        found: the task.
        places: of the queries that are run.
        scale: that scores are multiplied by in the loss.
    """

    def __init__(self, found: Queries, places: Sequence[int], scale: float) -> None:
        self._found, self._places, self._scale = found, list(places), scale
        self._ranks: list[Mapping[int, int]] = []
        self._losses: list[float] = []
        self._first: list[int] = []

    def add(self, scores: torch.Tensor) -> None:
        """Take the scores of the next queries, float32 of shape ``(queries, documents)``; they are written to."""
        start = len(self._ranks)
        places = self._places[start : start + len(scores)]
        for row, place in enumerate(places):
            own = self._found.own[place]
            if own is not None:
                scores[row, own] = -torch.inf
        self._first += scores.argmax(1).tolist()
        pairs = [(row, document) for row, place in enumerate(places) for document in self._found.right[place]]
        ranks: list[dict[int, int]] = [{} for _ in places]
        step = max(1, _CELLS // max(1, scores.shape[1]))
        order = torch.arange(scores.shape[1], device=scores.device)
        for first in range(0, len(pairs), step):
            some = pairs[first : first + step]
            rows, documents = (torch.tensor(own, device=scores.device) for own in zip(*some, strict=True))
            mine = scores[rows, documents].unsqueeze(1)
            above = (scores[rows] > mine) | ((scores[rows] == mine) & (order < documents.unsqueeze(1)))
            for (row, document), count in zip(some, above.sum(1).tolist(), strict=True):
                ranks[row][document] = count + 1
        self._ranks += ranks
        scaled = (scores * self._scale).double()
        total = torch.logsumexp(scaled, 1)
        for row, place in enumerate(places):
            grades = self._found.right[place]
            if not grades:
                self._losses.append(float(total[row] - scaled[row][scaled[row].isfinite()].min()))
                continue
            weights = np.array(list(grades.values()))
            own_scores = scaled[row, list(grades)].cpu().numpy()
            self._losses.append(float(total[row]) - float(weights @ own_scores / weights.sum()))

    def metric(self, name: str) -> NDArray[np.float64]:
        """Values of a metric, such as ``ndcg@10`` or ``loss``, shape ``(queries,)``."""
        if name == LOSS:
            return np.array(self._losses)
        kind, depth = depth_of(name)
        values = []
        for place, ranks in zip(self._places, self._ranks, strict=True):
            grades = self._found.right[place]
            reached = {document: rank for document, rank in ranks.items() if rank <= depth}
            if kind == "ndcg":
                gained = sum(grades[document] / np.log2(1 + rank) for document, rank in reached.items())
                best = sorted([*grades.values(), *self._found.lost[place]], reverse=True)[:depth]
                values.append(gained / sum(grade / np.log2(2 + i) for i, grade in enumerate(best)))
            elif kind == "recall":
                values.append(len(reached) / (len(grades) + len(self._found.lost[place])))
            elif kind == "hit":
                values.append(float(bool(reached)))
            else:
                values.append(1 / min(reached.values()) if reached else 0.0)
        return np.array(values, dtype=np.float64)

    def before(self) -> NDArray[np.float64]:
        """How many documents stand before the first right one, shape ``(queries,)``; all where none is there."""
        count = len(self._found.documents)
        return np.array([min(own.values(), default=count + 1) - 1 for own in self._ranks], dtype=np.float64)

    def first(self) -> list[int]:
        """Of each query the document that comes first."""
        return self._first
