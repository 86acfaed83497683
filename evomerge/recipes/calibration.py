"""What a recipe says of the statistics that its methods read: which they are, and how they are made again."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field

MEASURED = ("fisher", "gram", "curvature", "sensitivity", "hessian", "activation", "routing", "expert_outputs")
"""Statistics of data: squared gradients of every weight; inner products of what weights of linear layers read; Adam's
second moments where a model has them, else squared gradients; the middle one of the items' products of gradient and
weight; an estimate of the Hessian's diagonal; means of what weights of linear layers read; how often a mixture's
experts are chosen; inner products of what these experts give."""
OF_EXPERTS = ("routing", "expert_outputs")
"""Those that only mixtures of experts have."""
USUAL = MEASURED[:2]
"""What is made where nothing says which: the others take more room, or are of a few models."""
LEARNED = ("mask", "columns")
"""What is learnt on data by gradients: a factor for every element of task vectors, or for every column of theirs."""
KINDS = (*MEASURED, *LEARNED)
"""What methods read of data."""


@dataclass(frozen=True)
class CalibrationRef:
    """The statistics of some models on some data.

    Attributes:
        statistics: model, kind and key (``sha256:...`` of the model's content, the data and how they were made), in
            order. These are what enters hashes.
        made_by: overrides of ``evomerge calibrate``, or of ``evomerge learn`` where they are learnt, with which they
            are made again, models of the pool left out.
    """

    statistics: tuple[tuple[str, str, str], ...]
    made_by: tuple[str, ...] = field(default=(), compare=False)

    def key(self, model: str, kind: str) -> str | None:
        """The key of one model's statistics; ``None`` where there are none of this kind."""
        return next((key for name, own, key in self.statistics if (name, own) == (model, kind)), None)

    def command(self, pool: tuple[str, ...] = ()) -> str:
        """What to type for them, given the overrides that name the models."""
        learnt = any(kind in LEARNED for _, kind, _ in self.statistics)
        return shlex.join(["evomerge", "learn" if learnt else "calibrate", *pool, *self.made_by])
