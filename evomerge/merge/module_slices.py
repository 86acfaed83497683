"""A module's tensors slice by slice: where merged tensors are written, and how they become the module's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from evomerge.merge.merged import Shapes
from evomerge.models.conversion import Join
from evomerge.models.layout import Layout
from evomerge.recipe import SliceId


@dataclass(frozen=True)
class _Slice:
    """The module tensors of a slice.

    Attributes:
        places: their names in the module.
        direct: checkpoint name -> number of the place that holds just that tensor.
        joins: what the other places are made by, each with their numbers by name, and whether the checkpoint's tensors
            are views of them.
    """

    places: tuple[str, ...]
    direct: Mapping[str, int]
    joins: tuple[tuple[Join, Mapping[str, int], bool], ...]


class ModuleSlices:
    """The tensors of a module, replaced a slice at a time: a pointer changes, nothing is copied.

    Args:
        module: as `from_pretrained` loaded it.
        layout: of the pool.
    """

    def __init__(self, module: nn.Module, layout: Layout) -> None:
        self._module, self._layout = module, layout
        # The module's own objects: giving them other data changes every module that shares them.
        self._state: dict[str, torch.Tensor] = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        joins = {name: join for join in layout.joins for name in join.names}
        proven: dict[tuple[object, ...], bool] = {}
        self._slices: dict[SliceId, _Slice] = {}
        for slice_ in layout.slices:
            places: dict[str, int] = {}
            direct: dict[str, int] = {}
            found: dict[str, tuple[Join, Mapping[str, int], bool]] = {}
            for name in layout.tensors[slice_]:
                join = joins.get(name)
                if join is None:
                    direct[name] = places.setdefault(layout.parameters[name], len(places))
                elif join.place not in found:
                    made = {place: places.setdefault(place, len(places)) for place in join.places}
                    found[join.place] = join, made, self._has_views(join, made, proven)
            self._slices[slice_] = _Slice(tuple(places), direct, tuple(found.values()))

    def _has_views(self, join: Join, made: Mapping[str, int], proven: dict[tuple[object, ...], bool]) -> bool:
        """Whether a join's checkpoint tensors are views of the module's: tried out, once for all that are alike."""
        if len(made) > 1:
            return False
        target = self._state[join.place].detach()
        kind = (join.patterns, join.shapes)
        if kind not in proven:
            views = join.views(target, self._module)
            again = join.join(views, self._module) if views is not None else {}
            proven[kind] = again.keys() == {join.place} and torch.equal(again[join.place], target)
        return proven[kind]

    def shapes(self, slice_: SliceId) -> Shapes:
        """Shapes and dtypes of a slice's module tensors."""
        tensors = [self._state[place] for place in self._slices[slice_].places]
        return tuple((tuple(tensor.shape), tensor.dtype) for tensor in tensors)

    def nbytes(self, slice_: SliceId) -> int:
        """Size of a slice's module tensors."""
        return sum(self._state[place].nbytes for place in self._slices[slice_].places)

    def held(self, slice_: SliceId) -> tuple[torch.Tensor, ...]:
        """The module tensors of a slice as they are."""
        return tuple(self._state[place].detach() for place in self._slices[slice_].places)

    def is_direct(self, slice_: SliceId) -> bool:
        """Whether the module holds the checkpoint's tensors one for one."""
        return not self._slices[slice_].joins

    def out(self, slice_: SliceId, memory: tuple[torch.Tensor, ...]) -> dict[str, torch.Tensor]:
        """Where to write the checkpoint tensors of a slice whose module tensors are to lie in `memory`."""
        own = self._slices[slice_]
        out = {name: memory[number] for name, number in own.direct.items()}
        for join, made, has_views in own.joins:
            target = memory[made[join.place]]
            views = join.views(target, self._module) if has_views else None
            out |= views or {name: target.new_empty(self._layout.shapes[name]) for name in join.names}
        return {name: out[name] for name in self._layout.tensors[slice_]}

    @torch.no_grad()
    def settle(self, slice_: SliceId, out: Mapping[str, torch.Tensor], memory: tuple[torch.Tensor, ...]) -> None:
        """Join what could not be written in place."""
        for join, made, has_views in self._slices[slice_].joins:
            if not has_views:
                for place, tensor in join.join(out, self._module).items():
                    memory[made[place]].copy_(tensor)

    def swap(self, slice_: SliceId, memory: tuple[torch.Tensor, ...]) -> None:
        """Make `memory` the module's."""
        for place, tensor in zip(self._slices[slice_].places, memory, strict=True):
            self._state[place].data = tensor
