"""Chooses the variation that fits a kind of genome."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from evomerge.errors import ConfigError, nearest
from evomerge.genomes.arrays import ArraySpec
from evomerge.genomes.genome import GenomeSpec
from evomerge.genomes.lineages import LineageSpec
from evomerge.strategies.variation.base import Settings, Variation
from evomerge.strategies.variation.coordinates import Coordinates
from evomerge.strategies.variation.lineages import LineageVariation
from evomerge.strategies.variation.vectors import VectorVariation

_PATHS, _ANGLES = ("slerp", "linear"), ("segment", "whole")


def variation_of(spec: GenomeSpec, settings: Settings) -> Variation:
    """What makes genomes of this spec.

    Raises:
        ConfigError: settings that cannot be, or do not fit the kind of genome.
    """
    for name, value, known in (("path", settings.path, _PATHS), ("angle", settings.angle, _ANGLES)):
        if value not in known:
            raise ConfigError(f"strategy.{name} is {value!r}", nearest(value, known))
    if settings.spread == "auto":
        gentle = type(spec) is GenomeSpec and Coordinates(spec).gentle
        settings = settings if gentle else replace(settings, spread=None)
    for name, sigma in (("mutation", settings.mutation), ("spread", settings.spread)):
        if sigma is not None and sigma != "auto" and (isinstance(sigma, str) or not 0 <= sigma < np.inf):
            raise ConfigError(f"strategy.{name} is {sigma}", "0 or more, or null" + (", or auto" * (name == "spread")))
    if isinstance(spec, LineageSpec):
        return LineageVariation(spec, settings)
    if isinstance(spec, ArraySpec):
        from evomerge.strategies.variation.weights import WeightVariation  # compiles

        return WeightVariation(spec, settings)
    return VectorVariation(spec, settings)
