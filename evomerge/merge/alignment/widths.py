"""EXPERIMENTAL. Units of a model of other widths than a reference's, in the reference's places.

Every unit of the reference gets the unit of the model that is most like it, each taken once (a linear assignment of
inner products of weights, which is rectangular here). Where the model is narrower, places are left that no unit takes:
zeros. Where it is wider, the units that match least are left out. Of a model that is narrower throughout, with norms of
the root mean square, the result computes what the model does: zeros add nothing, and the norms' weights take back
that they divide by the mean over more places.
"""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt

import numpy as np
import torch

from evomerge.errors import PoolError
from evomerge.merge.alignment.assigning import assignment
from evomerge.merge.alignment.orders import Axis, Experts, Heads, Indices, Part, Symmetries, Units

_OF_HEADS = ("query", "key", "value", "context")
_ABSENT = -1
Taken = dict[Part, Indices]
"""For every group, and every unit or group of heads of the reference, the model's that comes there; -1 for none."""


def check_widths(reference: Symmetries, model: Symmetries) -> None:
    """`PoolError` for mixtures of experts, and where heads have other dimensions, or other numbers of queries for each
    head of keys and values."""
    for part, own in model.groups.items():
        if isinstance(own, Experts):
            raise PoolError("the models are mixtures of experts", "dense models")
        wanted = reference.groups.get(part)
        if isinstance(own, Heads) and isinstance(wanted, Heads):
            ours, theirs = ((h.width, h.queries) for h in (own, wanted))
            if ours != theirs:
                raise PoolError(
                    f"the model's heads have {ours[0]} dimensions and {ours[1]} queries for each of keys and "
                    f"values, the reference's {theirs[0]} and {theirs[1]}",
                    "heads of one kind, in any number: others cannot stand in their places",
                )


def take_units(
    reference: Symmetries,
    model: Symmetries,
    read_reference: Callable[[str], torch.Tensor],
    read_model: Callable[[str], torch.Tensor],
) -> Taken:
    """Which unit of the model comes to each place of the reference.

    First those of the residual stream, by what tokens and labels say of them; then, in its new order, those of every
    layer.

    Args:
        reference, model: what may change places in each; equally deep.
        read_reference, read_model: a tensor by its name in the module.
    """
    taken: Taken = {}
    for inside in (False, True):
        for part, group in reference.groups.items():
            if (part.layer is not None) == inside:
                taken[part] = _matched(part, group, reference, model, read_reference, read_model, taken)
    return taken


def _matched(
    part: Part,
    group: Units | Heads | Experts,
    reference: Symmetries,
    model: Symmetries,
    read_reference: Callable[[str], torch.Tensor],
    read_model: Callable[[str], torch.Tensor],
    taken: Taken,
) -> Indices:
    other = model.groups[part]
    assert not isinstance(group, Experts)
    assert not isinstance(other, Experts)
    sizes = [own.size if isinstance(own, Units) else own.groups for own in (group, other)]
    if part.kind not in model.free:  # in their places; those beyond are left out or missing
        places = np.arange(sizes[0])
        return np.where(places < sizes[1], places, _ABSENT)
    total = np.zeros((sizes[0], sizes[1]))
    for name, axes in reference.axes.items():
        theirs = model.axes.get(name)
        if theirs is None or not _tells(part, axes, taken):
            continue
        ours, own = read_reference(name).double(), read_model(name).double()
        for number, (axis, its) in enumerate(zip(axes, theirs, strict=True)):
            for (which, places), (_, from_places) in zip(axis.stretches, its.stretches, strict=True):
                if which.group != part:
                    continue
                moved = own
                for at, (wanted, had) in enumerate(zip(axes, theirs, strict=True)):
                    if at != number:
                        moved = _moved(moved, at, sources(wanted, had, taken))
                one = ours.movedim(number, 0)[torch.from_numpy(places)].reshape(sizes[0], -1)
                two = moved.movedim(number, 0)[torch.from_numpy(from_places)].reshape(sizes[1], -1)
                if one.shape[1] == two.shape[1]:  # rows of other tokens tell nothing
                    total += (one @ two.T).numpy()
    found = np.full(sizes[0], _ABSENT)
    if sizes[0] <= sizes[1]:
        found[:] = assignment(total)[0]
    else:
        found[assignment(total.T)[0]] = np.arange(sizes[1])
    return found


def _tells(part: Part, axes: tuple[Axis, ...], taken: Taken) -> bool:
    """Whether a tensor says of units what they are like: one that has them once, and else what has been matched."""
    groups = [which.group for axis in axes for which, _ in axis.stretches]
    once = [axis for axis in axes if any(which.group == part for which, _ in axis.stretches)]
    return len(once) == 1 and all(group == part or group in taken for group in groups)


def sources(reference: Axis, model: Axis, taken: Taken) -> Indices:
    """Where each place of an axis of the reference comes from on the model's; -1 for nowhere.

    What runs over no units (tokens, labels) stays the model's.
    """
    if not reference.stretches:
        return np.arange(model.size)
    found = np.full(reference.size, _ABSENT)
    for (part, places), (_, had) in zip(reference.stretches, model.stretches, strict=True):
        order = taken[part.group]
        width = len(places) // len(order)  # of a head: its dimensions, those of all its queries
        spread = (order[:, None] * width + np.arange(width)).ravel()
        absent = np.repeat(order < 0, width)
        found[places] = np.where(absent, _ABSENT, had[np.where(absent, 0, spread)])
    return found


def _moved(tensor: torch.Tensor, number: int, source: Indices) -> torch.Tensor:
    chosen = tensor.index_select(number, torch.from_numpy(np.maximum(source, 0)))
    shape = [1] * tensor.dim()
    shape[number] = -1
    return torch.where(torch.from_numpy(source >= 0).view(shape), chosen, torch.zeros((), dtype=tensor.dtype))


def fitted(tensor: torch.Tensor, reference: tuple[Axis, ...], model: tuple[Axis, ...], taken: Taken) -> torch.Tensor:
    """A tensor of the model in the reference's widths, zeros where nothing comes from; in its dtype."""
    for number, (wanted, had) in enumerate(zip(reference, model, strict=True)):
        if wanted.stretches:
            tensor = _moved(tensor, number, sources(wanted, had, taken))
    return tensor


def norm_factor(
    reference: Symmetries, model: Symmetries, taken: Taken, read_model: Callable[[str], torch.Tensor]
) -> float:
    """What weights of norms over the stream are multiplied by, so that they divide by what they did.

    They divide by the root of the mean square over as many places as there are now. Of what is left out, the share of
    the squares is taken to be that of the embeddings.
    """
    stream = next((part for part in reference.groups if part.kind == "stream"), None)
    name = next((name for name, axes in model.axes.items() if len(axes) == 2 and _is_embedding(axes)), None)
    if stream is None or name is None:
        return 1.0
    before, after = model.groups[stream], reference.groups[stream]
    assert isinstance(before, Units)
    assert isinstance(after, Units)
    squares = read_model(name).double().square().sum(0)
    kept = taken[stream][taken[stream] >= 0]
    share = float(squares[torch.from_numpy(kept)].sum() / squares.sum())
    return sqrt(share * before.size / after.size)


def _is_embedding(axes: tuple[Axis, ...]) -> bool:
    return not axes[0].stretches and [part.kind for part, _ in axes[1].stretches] == ["stream"]
