"""The per-item scores of an evaluation as one vector, larger always better."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evomerge.candidate import Evaluation
from evomerge.errors import FitnessError, nearest
from evomerge.objectives import Objective
from evomerge.strategies.bases.generations import gain_of

LOWER_IS_BETTER = ("*perplexity*", "*bits_per_byte*", "*brier_score*", "*loss*", "*error*", "*ter", "*length*")
"""Metrics (the part of a name after ``/``) whose smaller values are better, unless told otherwise."""


class ItemScores:
    """Which per-item scores count, and their directions: decided by the first evaluation, the same for all after it.

    Args:
        objectives: used as items where the fitness has no scores by item.
        patterns: of the names ``task/metric`` that count. By default those of metrics whose larger values are better;
            where there are none, the others.
        lower_is_better: patterns of metrics, or of names, whose smaller values are better.
    """

    def __init__(
        self,
        objectives: Sequence[Objective],
        patterns: Sequence[str] | None = None,
        lower_is_better: Sequence[str] | None = None,
    ) -> None:
        self._objectives = tuple(objectives)
        self._patterns = patterns
        self._lower = LOWER_IS_BETTER if lower_is_better is None else tuple(lower_is_better)
        self._layout: list[tuple[str, int]] | None = None
        self._known: dict[str, bool] = {}

    def vector(self, evaluation: Evaluation) -> NDArray[np.float64] | None:
        """The scores of all items, one task after the other; ``None`` where there is nothing to learn from.

        NaN stays: an item that was not run.

        Raises:
            FitnessError: the evaluation is ok and lacks an objective, no name fits the patterns, or the items are not
                those of the first evaluation.
        """
        gains = [gain_of(evaluation, objective) for objective in self._objectives]
        if any(math.isnan(gain) for gain in gains):
            return None
        if self._layout is None:
            self._layout = [(name, len(evaluation.items[name])) for name in self._names(evaluation)]
        if not self._layout:
            return np.array(gains, dtype=np.float64)
        parts = []
        for name, count in self._layout:
            scores = evaluation.items.get(name)
            if scores is None or len(scores) != count:
                found = "none" if scores is None else len(scores)
                raise FitnessError(
                    f"the evaluation of candidate {evaluation.candidate} has {found} items of {name!r}",
                    f"{count}, as the first one had",
                )
            parts.append(-scores if self._is_lower(name) else scores)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def state_dict(self) -> dict[str, Any]:
        """What the first evaluation decided."""
        return {"layout": None if self._layout is None else [list(entry) for entry in self._layout]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with that."""
        layout = state["layout"]
        self._layout = None if layout is None else [(str(name), int(count)) for name, count in layout]

    def _names(self, evaluation: Evaluation) -> list[str]:
        names = sorted(name for name, scores in evaluation.items.items() if len(scores))
        if self._patterns is not None:
            for pattern in self._patterns:
                if not any(fnmatchcase(name, pattern) for name in names):
                    raise FitnessError(
                        f"strategy.items has {pattern!r}", f"no scores are so called: {nearest(pattern, names)}"
                    )
            return [name for name in names if any(fnmatchcase(name, pattern) for pattern in self._patterns)]
        return [name for name in names if not self._is_lower(name)] or names

    def _is_lower(self, name: str) -> bool:
        if name not in self._known:
            metric = name.rpartition("/")[2]
            self._known[name] = any(fnmatchcase(metric, p) or fnmatchcase(name, p) for p in self._lower)
        return self._known[name]
