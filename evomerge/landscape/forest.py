"""Forests of regression trees as arrays: what scikit-learn fitted, evaluated with numpy alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evomerge.errors import ConfigError
from evomerge.landscape.features import Rows

Array = NDArray[np.float64]
Numbers = NDArray[np.int32]

LEAF = -1


@dataclass(frozen=True)
class Forest:
    """The mean of regression trees (Breiman, "Random Forests", Machine Learning 45, 2001), all in the same arrays.

    A row goes left at a node where its feature is at most the threshold, compared as scikit-learn does: a float32 with
    a float64.

    Attributes:
        roots: the first node of every tree, int32 of shape ``(trees,)``.
        feature: which one is compared, int32 of shape ``(nodes,)``; -1 at leaves.
        threshold: float64 of shape ``(nodes,)``.
        left, right: the nodes that come next, int32 of shape ``(nodes,)``: always later ones; -1 at leaves.
        value: of leaves, what they predict: float64 of shape ``(nodes, targets)``.
    """

    roots: Numbers
    feature: Numbers
    threshold: Array
    left: Numbers
    right: Numbers
    value: Array

    @staticmethod
    def of(trees: Sequence[Any], mean: Array, scale: Array) -> Forest:
        """The forest of fitted trees of scikit-learn, whose targets were ``(target - mean) / scale``."""
        parts = [tree.tree_ for tree in trees]
        roots = np.cumsum([0, *(part.node_count for part in parts[:-1])])
        inner = np.concatenate([part.children_left >= 0 for part in parts])

        def moved(children: list[NDArray[np.int64]]) -> Numbers:
            later = np.concatenate([own + root for own, root in zip(children, roots, strict=True)])
            return np.where(inner, later, LEAF).astype(np.int32)

        value = np.concatenate([part.value[:, :, 0] for part in parts])
        return Forest(
            roots.astype(np.int32),
            np.where(inner, np.concatenate([part.feature for part in parts]), LEAF).astype(np.int32),
            np.where(inner, np.concatenate([part.threshold for part in parts]), 0.0),
            moved([part.children_left for part in parts]),
            moved([part.children_right for part in parts]),
            np.where(inner[:, None], 0.0, value * scale + mean),
        )

    def check(self, features: int, targets: int) -> None:
        """`ConfigError` unless every way through the trees ends, within arrays of these sizes."""
        nodes = self.feature.size
        inner = self.feature >= 0
        problem = ""
        if any(getattr(self, field.name).ndim != (2 if field.name == "value" else 1) for field in fields(self)):
            problem = "arrays of other shapes"
        elif len({self.threshold.size, self.left.size, self.right.size, len(self.value), nodes}) > 1 or not nodes:
            problem = "arrays of different lengths"
        elif self.value.shape[1] != targets or not np.isfinite(self.value).all():
            problem = f"values that are no {targets} numbers"
        elif self.feature.max() >= features or self.feature.min() < LEAF or np.isnan(self.threshold).any():
            problem = "features that there are not"
        elif not self.roots.size or self.roots.min() < 0 or self.roots.max() >= nodes:
            problem = "no trees"
        else:
            own = np.arange(nodes)[inner]
            for child in (self.left[inner], self.right[inner]):
                if (child <= own).any() or (child >= nodes).any():
                    problem = "ways that do not end"
        if problem:
            raise ConfigError(f"the trees of a landscape have {problem}", "those that `evomerge export` wrote")

    def predict(self, rows: Rows) -> Array:
        """The mean of the trees' values for rows of float32, shape ``(rows, targets)``."""
        node = np.tile(self.roots, (len(rows), 1))
        every = np.arange(len(rows))[:, None]
        while True:
            feature = self.feature[node]
            inner = feature >= 0
            if not inner.any():
                break
            smaller = rows[every, np.maximum(feature, 0)] <= self.threshold[node]
            node = np.where(inner, np.where(smaller, self.left[node], self.right[node]), node)
        found: Array = self.value[node].mean(axis=1)
        return found
