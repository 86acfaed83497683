"""A module's tensors slice by slice: where merged tensors are written, and how they become the module's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from evomerge.errors import RecipeError
from evomerge.merge.cache.merged_slice import Merged, Shapes, size_of
from evomerge.merge.resident.quantised_linear import QuantisedLinear
from evomerge.models.architecture.conversion import Join
from evomerge.models.architecture.layout import Layout
from evomerge.recipes.slices import SliceId


@dataclass(frozen=True)
class Form:
    """How the module tensors of a slice hold the checkpoint's.

    Attributes:
        places: names of the module tensors.
        names: of the checkpoint's tensors, in the layout's order.
        direct: for each checkpoint tensor that a place holds as it is: number of the tensor -> number of the place.
        joins: what the other places are made by, each with their numbers by name, and whether the checkpoint's tensors
            are views of them.
    """

    places: tuple[str, ...]
    names: tuple[str, ...]
    direct: Mapping[int, int]
    joins: tuple[tuple[Join, Mapping[str, int], bool], ...]


class ModuleSlice:
    """One slice of a module, whose tensors are replaced all at once: pointers change, nothing is copied.

    Args:
        form: how they hold the checkpoint's tensors.
        tensors: the module's own objects by the form's places: giving them other data changes every module that shares
            them.
        reference: a module of the same class, for converters that look at its configuration.
        linears: by number of a tensor, the layers that may keep it quantised.

    Attributes:
        shapes: of the module's tensors, with their dtypes; of such layers, those of the weight in full precision.
        nbytes: size of the module's tensors in full precision.
        device: where they lie.
        key: what the slice holds, as a plan's key; empty where that is not known.
        held: the tensors that it holds.
    """

    def __init__(
        self,
        form: Form,
        tensors: Sequence[torch.Tensor],
        shapes: Shapes,
        reference: nn.Module,
        linears: Mapping[int, QuantisedLinear],
    ) -> None:
        self._form, self._tensors, self._reference, self._linears = form, tuple(tensors), reference, linears
        self._scales = tuple(linear.scales for linear in linears.values())
        self.shapes = shapes
        self.nbytes = size_of(shapes)
        self.device = self._tensors[0].device if self._tensors else torch.device("cpu")
        self.key = ""
        self.held = Merged((), owned=False)

    @property
    def is_direct(self) -> bool:
        """Whether the module holds the checkpoint's tensors one for one."""
        return not self._form.joins

    @property
    def may_quantise(self) -> bool:
        """Whether the module may keep some of the tensors quantised."""
        return bool(self._linears)

    @property
    def quantised_shapes(self) -> Shapes:
        """Of what holds the slice quantised: the module's tensors, those of linear layers as codes, then the scales."""
        found = {number: linear.quantised_shapes for number, linear in self._linears.items()}
        own = [found[i][0] if i in found else shape for i, shape in enumerate(self.shapes)]
        return (*own, *(scales for _, scales in found.values()))

    def held_nbytes(self, full: bool) -> int:
        """Size of what holds the slice, in full precision or as the module may quantise it."""
        return self.nbytes if full else size_of(self.quantised_shapes)

    @torch.no_grad()
    def quantise(self, memory: Sequence[torch.Tensor], into: Sequence[torch.Tensor]) -> None:
        """Write the module's tensors, given in full precision, into memory of the `quantised_shapes`."""
        scales = dict(zip(self._linears, into[len(memory) :], strict=True))
        for number, (given, codes) in enumerate(zip(memory, into, strict=False)):
            if number in self._linears:
                self._linears[number].write(given, codes, scales[number])
            else:
                codes.copy_(given)

    def own(self) -> tuple[torch.Tensor, ...]:
        """The module's tensors as they are."""
        return tuple(tensor.detach() for tensor in self._tensors)

    def out(self, names: Sequence[str], memory: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Where to write the checkpoint tensors `names`, in order, when the module's are to lie in `memory`.

        Raises:
            RecipeError: the slice has another number of tensors.
        """
        form = self._form
        if len(names) != len(form.names):
            raise RecipeError(
                f"{names[0]!r} and {len(names) - 1} more tensors are given for the {len(form.names)} of its layer",
                "layers of the same kind",
            )
        out = {names[number]: memory[place] for number, place in form.direct.items()}
        given = dict(zip(form.names, names, strict=True))
        for join, made, has_views in form.joins:
            target = memory[made[join.place]]
            found = join.views(target, self._reference) if has_views else None
            if found is None:
                shapes = zip(join.names, join.shapes, strict=True)
                found = {name: target.new_empty(shape) for name, shape in shapes}
            out |= {given[name]: tensor for name, tensor in found.items()}
        return {name: out[name] for name in names}

    @torch.no_grad()
    def settle(self, out: Mapping[str, torch.Tensor], memory: Sequence[torch.Tensor]) -> None:
        """Join what could not be written in place; `out` is what the method `out` returned, filled."""
        if all(has_views for *_, has_views in self._form.joins):
            return
        given = dict(zip(self._form.names, out.values(), strict=True))
        for join, made, has_views in self._form.joins:
            if not has_views:
                for place, tensor in join.join(given, self._reference).items():
                    memory[made[place]].copy_(tensor)

    def take(self, key: str, merged: Merged) -> None:
        """Hold a merged slice from now on; one with scales is quantised."""
        tensors, scales = merged.tensors[: len(self._tensors)], merged.tensors[len(self._tensors) :]
        for own, tensor in zip(self._tensors, tensors, strict=True):
            own.data = tensor
        for own, tensor in zip(self._scales, scales or [own.new_empty(0) for own in self._scales], strict=True):
            own.data = tensor
        self.key, self.held = key, merged

    def empty(self) -> None:
        """Hold nothing: the memory can be given back."""
        for own in (*self._tensors, *self._scales):
            own.data = own.new_empty(0)
        self.key, self.held = "", Merged((), owned=False)


class ModuleSlices:
    """The forms of a module's slices.

    Args:
        module: as `from_pretrained` loaded it.
        layout: of the pool.
        reference: a module of the same class that is not changed; its weights are not read.

    Attributes:
        forms: how each slice holds the checkpoint's tensors.
        shapes: of each slice's module tensors, with their dtypes.
    """

    def __init__(self, module: nn.Module, layout: Layout, reference: nn.Module) -> None:
        self._reference = reference
        self._layout = layout
        self._state: dict[str, torch.Tensor] = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        parts = dict(module.named_modules())
        self._linears = {f"{n}.weight": part for n, part in parts.items() if isinstance(part, QuantisedLinear)}
        joins = {name: join for join in layout.joins for name in join.names}
        proven: dict[tuple[object, ...], bool] = {}
        self.forms: dict[SliceId, Form] = {}
        self.shapes: dict[SliceId, Shapes] = {}
        for slice_ in layout.slices:
            places: dict[str, int] = {}
            direct: dict[int, int] = {}
            found: dict[str, tuple[Join, Mapping[str, int], bool]] = {}
            for number, name in enumerate(layout.tensors[slice_]):
                join = joins.get(name)
                if join is None:
                    direct[number] = places.setdefault(layout.parameters[name], len(places))
                elif join.place not in found:
                    made = {place: places.setdefault(place, len(places)) for place in join.places}
                    found[join.place] = join, made, self._has_views(join, made, proven)
            self.forms[slice_] = Form(tuple(places), layout.tensors[slice_], direct, tuple(found.values()))
            self.shapes[slice_] = tuple(self._shape(place) for place in places)

    def _shape(self, place: str) -> tuple[tuple[int, ...], torch.dtype]:
        """Shape and dtype of a module tensor in full precision."""
        tensor = self._linears.get(place, self._state[place])
        return tuple(tensor.shape), tensor.dtype

    def _has_views(self, join: Join, made: Mapping[str, int], proven: dict[tuple[object, ...], bool]) -> bool:
        """Whether a join's checkpoint tensors are views of the module's: tried out, once for all that are alike."""
        if len(made) > 1:
            return False
        shape, dtype = self._shape(join.place)
        target = self._state[join.place].detach()
        if join.place in self._linears:  # which has no weight yet
            target = target.new_zeros(shape, dtype=dtype)
        kind = (join.patterns, join.shapes)
        if kind not in proven:
            views = join.views(target, self._reference)
            again = join.join(views, self._reference) if views is not None else {}
            proven[kind] = again.keys() == {join.place} and torch.equal(again[join.place], target)
        return proven[kind]

    def of(self, slice_: SliceId) -> ModuleSlice:
        """A slice of the module itself, holding what was loaded."""
        form = self.forms[slice_]
        tensors = [self._state[place] for place in form.places]
        linears = {i: self._linears[place] for i, place in enumerate(form.places) if place in self._linears}
        made = ModuleSlice(form, tensors, self.shapes[slice_], self._reference, linears)
        if not linears:
            made.held = Merged(made.own())
        return made

    def within(self, slice_: SliceId, tensors: Mapping[str, torch.Tensor], parts: Mapping[str, Any]) -> ModuleSlice:
        """A slice of a copy of one of the module's layers, holding nothing yet.

        Args:
            slice_: the slice that it is a copy of.
            tensors: the copy's own objects by the names of those that they are copies of.
            parts: the copy's modules, likewise.
        """
        form = self.forms[slice_]
        own = [tensors[place] for place in form.places]
        linears = {i: parts[p.removesuffix(".weight")] for i, p in enumerate(form.places) if p in self._linears}
        return ModuleSlice(form, own, self.shapes[slice_], self._reference, linears)
