"""Batch-norm statistics of merged models: put in place while they are scored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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
    """Whether the pool's models have batch norms with statistics."""
    return any(place.endswith(_VARIANCE) for place in pool.layout.parameters.values())


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


@contextmanager
def own_batch_norms(fitness: Any, model: LoadedModel) -> Iterator[Mapping[str, torch.Tensor]]:
    """Let a model have the statistics of its own activations within this.

    Args:
        fitness: of the search, prepared; it gives them.
        model: merged.
    """
    found: Mapping[str, torch.Tensor] = fitness.batch_norms(model)
    with with_buffers(model.module, found):
        yield found
