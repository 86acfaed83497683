"""Models as genes that are scaled together, and merges of two of them: what nested MAP goes through."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evomerge.errors import ConfigError, nearest
from evomerge.genomes.genome import GenomeSpec

Array = NDArray[np.float64]

MOST_MODELS = 60
FARTHEST = 2.0
"""How much a merge may be scaled at most: bounds alone would let one whose scalings are nearly 0 go anywhere."""


@dataclass
class Node:
    """A model, or a merge of some.

    Attributes:
        values: of the genes at a scaling of 1, ``(genes,)``; 0 where it has no part.
        tasks: numbers of its objectives.
        scores: of all objectives at a scaling of 1, in the user's own direction; NaN where it failed.
        merged: whether it is a merge.
    """

    values: Array
    tasks: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    merged: bool = False

    @staticmethod
    def alone(spec: GenomeSpec, genes: Sequence[int]) -> Node:
        """A model as it is: 1 for its genes, or as near as their bounds allow."""
        low, high = spec.bounds
        values = np.zeros(len(spec))
        for i in genes:
            values[i] = min(1.0, high[i]) if high[i] > 0 else max(-1.0, low[i])
        return Node(values)

    def state(self) -> dict[str, Any]:
        """As JSON values and arrays."""
        scores = np.array(self.scores, dtype=np.float64)
        return {"values": self.values.copy(), "tasks": list(self.tasks), "scores": scores, "merged": self.merged}

    @staticmethod
    def of(state: Mapping[str, Any]) -> Node:
        """What `state` gave."""
        scores = np.asarray(state["scores"], dtype=np.float64).tolist()
        tasks = [int(k) for k in state["tasks"]]
        return Node(np.array(state["values"], dtype=np.float64), tasks, scores, bool(state["merged"]))


def range_of(spec: GenomeSpec, node: Node) -> tuple[float, float]:
    """Between which scalings all genes of a model are within their bounds, a merge's at most `FARTHEST` from 0."""
    low, high = spec.bounds
    some = node.values != 0
    if not some.any():
        return 0.0, 1.0
    ends = np.sort([low[some] / node.values[some], high[some] / node.values[some]], axis=0)
    most = FARTHEST if node.merged else math.inf
    return max(float(ends[0].max()), -most), min(float(ends[1].min()), most)


def models_of(spec: GenomeSpec, patterns: Mapping[str, Sequence[str]] | None) -> dict[str, list[int]]:
    """By model the places of its free genes.

    Args:
        spec: all genes.
        patterns: of their names, by model; ``None`` for those of ``.../MODEL/weight``.

    Raises:
        ConfigError: a gene that is nobody's or two models', a pattern that no free gene has, bounds without 0, or
            too many models.
    """
    low, high = spec.bounds
    names = {i: gene.name for i, gene in enumerate(spec) if low[i] < high[i]}
    models: dict[str, list[int]] = {}
    if patterns is None:
        for i, name in names.items():
            models.setdefault(_model_in(name), []).append(i)
    elif not isinstance(patterns, Mapping) or not patterns:
        raise ConfigError(f"strategy.models is {patterns!r}", "patterns of genes by model: {maths: ['*/maths/*']}")
    else:
        for model, own in patterns.items():
            models[model] = _matching(names, own, f"strategy.models.{model}")
    owners = [i for genes in models.values() for i in genes]
    for i, name in names.items():
        if owners.count(i) != 1:
            whose = "two models'" if i in owners else "no model's"
            raise ConfigError(
                f"gene {name!r} is {whose}",
                "nested MAP scales every gene with one model",
                "name it in strategy.models, or fix it by search_space.bounds",
            )
        if not low[i] <= 0 <= high[i]:
            raise ConfigError(
                f"gene {name!r} has bounds [{low[i]:g}, {high[i]:g}]",
                "0 must be within: nested MAP scores models alone, the others at 0",
                "search_space.parameters gives other bounds",
            )
    if len(models) > MOST_MODELS:
        raise ConfigError(f"strategy nested MAP was given {len(models)} models", f"at most {MOST_MODELS}")
    return models


def _model_in(name: str) -> str:
    parts = name.split("/")
    if len(parts) < 2 or parts[-1] != "weight":
        raise ConfigError(
            f"gene {name!r} is no model's",
            "nested MAP scales models: genes that are called .../MODEL/weight",
            "say whose it is by strategy.models, or fix it by search_space.bounds",
        )
    return parts[-2]


def _matching(names: Mapping[int, str], patterns: Sequence[str], key: str) -> list[int]:
    if isinstance(patterns, str) or not isinstance(patterns, Sequence) or not patterns:
        raise ConfigError(f"{key} is {patterns!r}", "a list of patterns of gene names")
    for pattern in patterns:
        if not any(fnmatchcase(name, str(pattern)) for name in names.values()):
            raise ConfigError(f"{key} has {pattern!r}, which no gene is called", nearest(str(pattern), names.values()))
    return [i for i, name in names.items() if any(fnmatchcase(name, str(pattern)) for pattern in patterns)]


def tasks_of(
    given: Mapping[str, Sequence[str]] | None, models: Sequence[str], objectives: Sequence[str]
) -> dict[str, list[int]]:
    """By model the numbers of its objectives, as a configuration says; empty for ``None``.

    Raises:
        ConfigError: a model or an objective that there is not, or an objective that is nobody's or two models'.
    """
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise ConfigError(f"strategy.tasks is {given!r}", "objectives by model: {maths: [gsm8k]}")
    found: dict[str, list[int]] = {}
    for model, own in given.items():
        if model not in models:
            raise ConfigError(f"strategy.tasks has {model!r}", nearest(str(model), models), "name models of the pool")
        if isinstance(own, str) or not isinstance(own, Sequence):
            raise ConfigError(f"strategy.tasks.{model} is {own!r}", "a list of objectives")
        for name in own:
            if name not in objectives:
                raise ConfigError(f"strategy.tasks.{model} has {name!r}", nearest(str(name), objectives))
        found[model] = [objectives.index(name) for name in own]
    named = [k for own in found.values() for k in own]
    for k, name in enumerate(objectives):
        if named.count(k) != 1:
            owners = "two models'" if k in named else "no model's"
            raise ConfigError(f"strategy.tasks has objective {name!r} as {owners}", "each objective once")
    return found
