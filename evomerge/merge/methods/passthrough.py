"""One model's tensors, scaled."""

from __future__ import annotations

from evomerge.merge.methods.registry import Values, mix_method
from evomerge.merge.mixes.mix import Mix, Statistics, weighted
from evomerge.recipes.method_spec import ParameterSpec


@mix_method(
    "passthrough",
    ParameterSpec("scale", 1.0, low=0.0, high=2.0, per_input=True, summary="factor on the tensors"),
    summary="one model's slice as it is, or scaled",
    family="choices",
    max_inputs=1,
    unchanged=lambda values: 0 if values["scale"][0] == 1 else None,
)
def passthrough(values: Values, statistics: Statistics) -> Mix:
    """``scale * theta``. For models made of layers of several, and for slices that shall not be merged."""
    return weighted(values["scale"])
