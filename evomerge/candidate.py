"""Candidates and their evaluations: what goes to a worker and what comes back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from evomerge.genomes.genome import Genome
from evomerge.recipes.recipe import Recipe

Status = Literal["ok", "infeasible", "failed", "pruned"]
Split = Literal["search", "cheap", "validation", "held_out"]
"""Which items: those of the search, those of a race's cheap rung, those that choose among its finalists, those that
nothing was chosen by."""
Responses = Mapping[str, Sequence[str]]
Items = Mapping[str, NDArray[np.float64]]
Part = Mapping[str, Sequence[int]]
"""Some of a fitness's items: by task their places, from 0, in the order of its documents."""

LIKELIHOOD = "log-likelihood "
"""What a response begins with where a model was asked how likely a text is, which is no answer."""


@dataclass(frozen=True)
class Candidate:
    """One merged model to evaluate.

    Attributes:
        id: unique in a run, counted from 0, baselines first.
        recipe: ``None`` when the genome has no recipe (it is infeasible).
        genome: ``None`` for baselines.
        parents: ids of the candidates it was made from.
        name: for baselines: the model's name, or ``uniform average``.
        part: the items to score it on; ``None`` for all.
    """

    id: int
    recipe: Recipe | None
    genome: Genome | None = None
    parents: tuple[int, ...] = ()
    name: str | None = None
    part: Part | None = None


@dataclass(frozen=True)
class Evaluation:
    """The outcome of one candidate.

    Attributes:
        candidate: the candidate's id.
        status: ``ok``, ``infeasible`` (no such model), ``failed`` (it raised or scored NaN) or ``pruned`` (it lost its
            race, scored on some items).
        objectives: by name, in the user's own direction; empty where it was not scored. Estimates where `race` says so.
        metrics: every reported metric as ``task/metric``, as lm-eval prints it.
        items: per-item values as ``task/metric``, float64 in document order.
        seconds: by stage: ``merge``, ``model`` (forwards and generation), ``other``; and ``note`` where something was
            found out of the sources that the candidates to come need too.
        merge: what merging took: slices by where they came from, bytes, seconds saved (`merge.assemble.MergeCount`).
        error: one line saying why, unless ``ok``.
        traceback: of what it raised, where that is known: for the log, not for the ledger.
        responses: by task what the model answered to its first items, in document order: for people, not for the
            ledger.
        race: of a candidate that was not scored on all items at once: how many ``items`` it was, ``of`` how many; after
            each step ``step/0``, ``step/1``, ... what decided about it; what it scored on the ``cheap`` rung before;
            how many that were told before it a pruner has ``known``; and ``error/NAME``, the standard error of an
            objective that is an estimate.
        tokens: that were `run`, that `stock` lm-eval would have run, and of those run what `hidden` states saved; how
            often its batches were `halved` since memory ran out, where they were: its last digits may differ for it.
        penalised: objectives as the strategy was told of them, where that is less a penalty (`search.penalty`).
        apart: of a winner, how far the way in which the search scored is from the stock tool's (`Fitness.apart`).
    """

    candidate: int
    status: Status
    split: Split = "search"
    objectives: Mapping[str, float] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    items: Items = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    merge: Mapping[str, float] = field(default_factory=dict)
    error: str = ""
    traceback: str = ""
    responses: Responses = field(default_factory=dict)
    tokens: Mapping[str, float] = field(default_factory=dict)
    race: Mapping[str, float] = field(default_factory=dict)
    apart: Mapping[str, float] = field(default_factory=dict)
    penalised: Mapping[str, float] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether there are objectives to learn from."""
        return self.status == "ok"
