"""What the slices of a plan come from."""

from __future__ import annotations

from evomerge.merge.slice_plan import SlicePlan


def held_as(entry: SlicePlan) -> SlicePlan:
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
