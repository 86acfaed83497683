"""Weighted sums of adapters without leaving the low rank: their factors, as the recipe weighs them."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from evomerge.merge.adapters.places import AdapterBase
from evomerge.merge.execution.engine import SliceMerge
from evomerge.merge.methods import METHODS
from evomerge.merge.methods.low_rank import Factors, summed
from evomerge.merge.mixes.mix import Mix
from evomerge.merge.planning.slice_plan import Part, SlicePlan, Source
from evomerge.models.checkpoints.folding import FoldedCheckpoint
from evomerge.models.pool import Pool, unadapted

_ONE = 1e-6  # weights that are divided by their float32 sum add up to one up to this


def combination(mix: Mix | None, sources: tuple[Source, ...], base: Source | None) -> list[tuple[float, Source]] | None:
    """The sources with factors ``c_i`` such that a merge is ``sum_i c_i theta_i``, the factors adding up to one.

    ``None`` where it is no such sum: elements are dropped or elected, or factors add up to another number, so that part
    of it is a multiple of the base. Also what spherical interpolation comes to on a tensor may be one.
    """
    if mix is None or mix.elect:
        return None
    found = []
    for term, source in zip(mix.terms, sources, strict=True):
        if not term.is_used:
            continue
        if isinstance(term.weight, torch.Tensor) or (term.cut, term.density, term.pruning) != (None, None, None):
            return None
        found.append((term.weight * mix.scale / mix.divisor, source))
    rest = 1.0 - sum(factor for factor, _ in found)
    if mix.differences:
        return [*found, (rest, base)] if base is not None else None
    return found if abs(rest) < _ONE else None


def added(
    mix: Mix | None,
    entry: SlicePlan,
    sources: tuple[Source, ...],
    below: Source | None,
    index: int,
    base: AdapterBase,
    pool: Pool,
) -> list[tuple[float, FoldedCheckpoint, str]] | None:
    """The adapters whose changes a merged tensor adds to the adapter's base, with their factors.

    Args:
        mix: what the method is on this tensor.
        entry: the output slice.
        sources, below: of the part that the tensor belongs to, and its base.
        index: of the tensor within the slice.
        base: what the adapter is for.
        pool: the sources.

    Returns:
        For every source that changes the tensor its factor, its files and the tensor's name in them; empty where the
        result is the base's own tensor. ``None`` where it is no such sum.
    """
    terms = combination(mix, sources, below)
    if terms is None or index in entry.factor_of:
        return None
    parts = []
    for factor, source in terms:
        if factor == 0:
            continue
        checkpoint = pool.checkpoints.get(source.model)
        stays = source.made is None and source.layer == entry.slice.layer
        if checkpoint is None or not stays or unadapted(checkpoint).folder != base.checkpoint.folder:
            return None
        stored = pool.stored[source.model][source.tensors[index]]
        if stored != base.stored[entry.tensors[index]]:
            return None
        if isinstance(checkpoint, FoldedCheckpoint) and stored in checkpoint.changed:
            parts.append((factor, checkpoint, stored))
    return parts


def factors_of_terms(terms: Iterable[tuple[float, FoldedCheckpoint, str]]) -> Factors | None:
    """``sum_i c_i scale_i B_i A_i`` of what `added` gives, of one term or more; ``None`` where one has no factors."""
    parts = []
    for factor, checkpoint, stored in terms:
        own = checkpoint.factors(stored)
        if own is None:
            return None
        parts.append((factor, Factors(*own)))
    return summed(parts)


def exact_factors(
    mix: Mix | None,
    entry: SlicePlan,
    sources: tuple[Source, ...],
    below: Source | None,
    index: int,
    base: AdapterBase,
    pool: Pool,
) -> Factors | None:
    """The difference of a merged matrix from the adapter's base, as the sum of the sources' own factors.

    ``sum_i c_i scale_i B_i A_i`` for sources that are `base` with adapters; `base` itself adds nothing.

    Args:
        mix, entry, sources, below, index, base, pool: as for `added`.

    Returns:
        Factors in float32, of rank 0 where nothing is added; ``None`` where it is no such sum.
    """
    terms = added(mix, entry, sources, below, index, base, pool)
    if terms is None:
        return None
    if not terms:
        shape = base.checkpoint.tensors[base.stored[entry.tensors[index]]].shape
        return Factors(torch.zeros(shape[0], 0), torch.zeros(0, shape[1]))
    return factors_of_terms(terms)


def made_factors(merge: SliceMerge, part: Part, index: int, base: AdapterBase) -> Factors | None:
    """The difference of a merged matrix from the adapter's base, of a method that makes factors (as `lora_lego`).

    ``None`` where the method makes none, or its base is not the adapter's.
    """
    entry, below, pool = merge.plan, part.base, merge.pool
    if part.method is None or below is None or below.made is not None or index in entry.factor_of:
        return None
    checkpoint = pool.checkpoints[below.model]
    alike = pool.stored[below.model][below.tensors[index]] == base.stored[entry.tensors[index]]
    if isinstance(checkpoint, FoldedCheckpoint) or checkpoint.folder != base.checkpoint.folder or not alike:
        return None
    found = merge.statistics(part, index).factors_of(METHODS[part.method], dict(part.values))
    return Factors(*found) if found is not None else None


def replaced(sources: Iterable[Source], index: int, pool: Pool) -> bool:
    """Whether a source's adapter holds this tensor whole, as PEFT's ``modules_to_save`` do."""
    for source in sources:
        checkpoint = pool.checkpoints.get(source.model) if source.made is None else None
        if not isinstance(checkpoint, FoldedCheckpoint):
            continue
        if checkpoint.replaces(pool.stored[source.model][source.tensors[index]]):
            return True
    return False
