"""Batch-norm statistics of merged models: put in place while they are scored."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from evomerge.merge.planning.plan import make_plan
from evomerge.merge.planning.slice_plan import Plan
from evomerge.models.buffers import with_buffers
from evomerge.models.loaded import LoadedModel
from evomerge.models.pool import Pool

if TYPE_CHECKING:
    import torch

_VARIANCE = ".running_var"


def has_batch_norms(pool: Pool) -> bool:
    """Whether the pool's models have batch norms with statistics, in what is merged or in heads of their own."""
    return heads_have_batch_norms(pool) or any(place.endswith(_VARIANCE) for place in pool.layout.parameters.values())


def heads_have_batch_norms(pool: Pool) -> bool:
    """Whether heads of their own have batch norms, so that statistics differ from head to head."""
    return pool.heads is not None and any(place.endswith(_VARIANCE) for place in pool.heads.heads.tensors)


def computes_batch_norms(pool: Pool, fitness: Any) -> bool:
    """Whether a search by this fitness computes the statistics of every merged model."""
    return fitness is not None and hasattr(fitness, "batch_norms") and has_batch_norms(pool)


def is_source(plan: Plan, pool: Pool) -> bool:
    """Whether a plan makes one of the pool's models as it is, whose statistics are its own."""
    models = {name for entry in plan.slices for name in entry.models}
    if len(models) != 1:
        return False
    own = make_plan(pool.info.linear({models.pop(): 1.0}), pool)
    return [entry.key for entry in own.slices] == [entry.key for entry in plan.slices]


class BatchNorms:
    """Lets a worker's model have the statistics of its own activations while it is scored.

    Args:
        pool: the source models.
        fitness: of the search, which gives them; ``None`` for none.

    Attributes:
        computed: whether statistics are computed at all.
    """

    def __init__(self, pool: Pool, fitness: Any) -> None:
        self._pool, self._fitness, self._stack = pool, fitness, ExitStack()
        self.computed = computes_batch_norms(pool, fitness)
        self._known: tuple[list[str], Mapping[str, torch.Tensor]] = [], {}

    def put(self, plan: Plan, model: LoadedModel) -> None:
        """Put the statistics of a merged model in place until `leave`; a source keeps its own.

        Args:
            plan: that the model was made by.
            model: it; the fitness is prepared.
        """
        if not self.computed or is_source(plan, self._pool):
            return
        keys = [entry.key for entry in plan.slices]
        if plan.head is not None and heads_have_batch_norms(self._pool):
            keys.append(plan.head)  # else they are equal for all heads on one encoder
        if self._known[0] != keys:
            self._known = keys, self._fitness.batch_norms(model)
        self._stack.enter_context(with_buffers(model.module, self._known[1]))

    def leave(self) -> None:
        """Let the model have its own again: before it is merged anew, and when it has been scored."""
        self._stack.close()
