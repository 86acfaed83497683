"""What a plan consists of: for every output slice its sources, methods, factors and content key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from evomerge.models.architecture.residual import Rule
from evomerge.recipes.slices import Dtype, SliceId


@dataclass(frozen=True)
class Source:
    """A slice of a source model, or of an intermediate.

    Attributes:
        model: name of the model or intermediate.
        layer: its layer, or ``None`` outside the layers.
        tensors: names in the pool's layout, in the order of the output's tensors.
        identity: what pins the content: of the model, or the key of the intermediate's slice.
        made: the plan of an intermediate's slice; ``None`` for a model's.
    """

    model: str
    layer: int | None
    tensors: tuple[str, ...]
    identity: str
    made: SlicePlan | None = field(default=None, repr=False, compare=False)  # its key is `identity`; it may be deep


@dataclass(frozen=True)
class Part:
    """Tensors of a slice that are merged with the same parameters.

    Attributes:
        tensors: their numbers within the slice.
        method: name of the merge method; ``None`` where they are those of the only source, unchanged.
        sources: the inputs that contribute, in order.
        base: the base, for methods that work on differences.
        values: the method's arguments (`methods.call_values`), as pairs.
        seed: keys random masks.
        statistics: keys of the statistics of data that the method reads of its sources, kind by kind; empty for none.
    """

    tensors: tuple[int, ...]
    method: str | None
    sources: tuple[Source, ...]
    base: Source | None
    values: tuple[tuple[str, Any], ...]
    seed: int
    statistics: tuple[str, ...] = ()


@dataclass(frozen=True)
class Factor:
    """A tensor w of a slice becomes ``value * (w + offset) - offset``.

    Attributes:
        tensor: its number within the slice.
        value: the factor.
        offset: 1 where the module multiplies by ``1 + w``.
    """

    tensor: int
    value: float
    offset: float

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        """Apply it in place, to a float32 tensor."""
        return Rule("norm", self.offset).apply_(tensor, self.value)


@dataclass(frozen=True)
class SlicePlan:
    """How one output slice is computed.

    Attributes:
        slice: the output slice.
        key: hash of all that its content depends on: equal keys, equal bits.
        tensors: names of the output tensors.
        like: for each, the pool's tensor of its shape and dtype: itself, or its first layer's for a layer beyond.
        parts: how; one part where no parameter differs between tensors. Together they are all tensors.
        dtype: dtype of the result.
        factors: what tensors are multiplied by before they are rounded: what the slice adds to the residual stream, and
            the norms of a negative stream.
        scale: what the component adds to the residual stream, times this; 1 for all but `attn` and `mlp`. Those who
            scale the outputs themselves merge `unscaled` and multiply what its `residual.Residual.writers` give.
    """

    slice: SliceId
    key: str
    tensors: tuple[str, ...]
    like: tuple[str, ...]
    parts: tuple[Part, ...]
    dtype: Dtype
    factors: tuple[Factor, ...] = ()
    scale: float = 1.0
    _unscaled: SlicePlan | None = field(default=None, repr=False)

    @property
    def unscaled(self) -> SlicePlan:
        """The same slice with residual outputs that are not scaled; norms are turned around all the same."""
        return self._unscaled or self

    @cached_property
    def factor_of(self) -> Mapping[int, Factor]:
        """The factors by the numbers of their tensors."""
        return {factor.tensor: factor for factor in self.factors}

    @property
    def unchanged(self) -> Source | None:
        """The only source, where the slice is that and nothing else."""
        copied = len(self.parts) == 1 and self.parts[0].method is None and not self.factors
        return self.parts[0].sources[0] if copied else None

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the source models that are read, intermediates resolved."""
        found: dict[str, None] = {}
        seen = {self.key}
        todo = self._sources[::-1]
        while todo:  # each once: a lineage is deep, and as a tree exponentially large
            source = todo.pop()
            if source.made is None:
                found[source.model] = None
            elif source.made.key not in seen:
                seen.add(source.made.key)
                todo += source.made._sources[::-1]
        return tuple(found)

    @property
    def _sources(self) -> list[Source]:
        """What it takes itself, in order."""
        return [source for part in self.parts for source in (*part.sources, *([part.base] if part.base else []))]


@dataclass(frozen=True)
class Plan:
    """All output slices of one merged model, in order.

    Attributes:
        slices: how each is computed.
        dtype: of the result.
        head: the model whose head of its own is on it; ``None`` where there are none.
    """

    slices: tuple[SlicePlan, ...]
    dtype: Dtype
    head: str | None = None

    @cached_property
    def by_slice(self) -> Mapping[SliceId, SlicePlan]:
        """The slices by what they are."""
        return {entry.slice: entry for entry in self.slices}


def canonical_slice(entry: SlicePlan) -> SlicePlan:
    """What a place holds of a slice.

    Residual outputs are scaled on their way, so that the tensors are those of any other scale; a slice of an
    intermediate that is not changed is held as the intermediate's own.
    """
    entry = entry.unscaled
    source = entry.unchanged
    while source is not None and source.made is not None and source.made.dtype == entry.dtype:
        entry = source.made
        source = entry.unchanged
    return entry


def origin_of(entry: SlicePlan) -> tuple[str, int]:
    """The model and the layer that a slice of a layer starts from, through intermediates."""
    source = entry.parts[0].sources[0]
    while source.made is not None:
        source = source.made.parts[0].sources[0]
    assert source.layer is not None, "slices of layers come from layers"
    return source.model, source.layer
