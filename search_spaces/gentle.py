"""How far from their start the genes of a path are at first: candidates are near it however deep it is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import NormalDist

from evomerge.genomes.genome import Gene

_CHANGES = 1.5  # places that a first candidate changes
_SCALE = 0.25  # standard deviation of one scale alone, as a share of its range


def gentle_takes(genes: Sequence[Gene]) -> list[Gene]:
    """Genes that say which layers are taken, or how often: all together they change one or two places.

    Numbers of layers, and numbers that are cut at zero, change when they cross to the next value.
    """
    likely = min(0.4, _CHANGES / max(len(genes), 1))
    return [replace(gene, spread=_spread(gene, likely)) for gene in genes]


def gentle_scales(genes: Sequence[Gene]) -> list[Gene]:
    """Scale genes: all together they do what one alone would."""
    return [replace(gene, spread=_SCALE / math.sqrt(len(genes))) for gene in genes]


def _spread(gene: Gene, likely: float) -> float:
    if gene.kind == "boolean":
        return likely
    apart, sides = abs(float(gene.start)), 1
    if gene.kind == "integer":  # the next value begins half a step away
        apart, sides = 0.5, 1 if gene.start in (gene.low, gene.high) else 2
    return min(1.0, apart / (gene.high - gene.low) / NormalDist().inv_cdf(1 - likely / sides))
