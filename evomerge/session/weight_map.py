"""Which genes weight which task vectors, all at once: what is learnt by gradients in the place of a search."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evomerge.errors import ConfigError
from evomerge.genomes.genome import GenomeSpec
from evomerge.protocols import SearchSpace
from evomerge.recipes.pool_info import PoolInfo
from evomerge.session.prior import weighting_of

if TYPE_CHECKING:
    from evomerge.calibration.learning.factors import WeightMap

_WANTED = "weights of task vectors, summed as they are: method task_arithmetic, normalize false"
_DO = "choose search_space=task_arithmetic, or by_layer, or parameter with this method, and fix other parameters"


def weight_map(space: SearchSpace, info: PoolInfo, init: float) -> WeightMap:
    """How the weights of task vectors depend on the genes of a search space.

    Args:
        space: of the search.
        info: of its pool, with a base.
        init: what genes begin with, within their bounds.

    Raises:
        ConfigError: genes that are something else, or recipes that do something else.
    """
    import torch

    from evomerge.calibration.learning.factors import WeightMap

    if type(space.spec) is not GenomeSpec:
        raise ConfigError("the search space's genomes are no weights", _WANTED, _DO)
    genes, models = space.spec.genes, {name: at for at, name in enumerate(info.sources)}
    recipe = space.decode(space.spec.initial)
    slices = {entry.slice: number for number, entry in enumerate(recipe.slices)}
    offset = torch.zeros((len(slices), len(models)), dtype=torch.float64)
    slopes = torch.zeros((*offset.shape, len(genes)), dtype=torch.float64)
    factors = []
    for number, entry in enumerate(recipe.slices):
        shared = dict(entry.parameters)
        moved = any(own.layer is not None or own.model not in models for own in entry.inputs)
        if entry.slice in info.constant:  # task vectors of zero
            factors.append(0.0)
            continue
        summed = entry.method == "task_arithmetic" and shared.get("normalize", False) is False
        if not summed or moved or entry.scale is not None or recipe.intermediates:
            raise ConfigError(f"the search space merges slice {entry.slice} by {entry.method}", _WANTED, _DO)
        factors.append(float(shared.get("lambda", 1.0)))  # type: ignore[arg-type]  # a number, by the declaration
        for own in entry.inputs:
            weight = dict(own.parameters).get("weight", 1.0)
            offset[number, models[own.model]] = factors[-1] * float(weight)  # type: ignore[arg-type]
    for gene in range(len(genes)):
        found = weighting_of(space, gene)
        if found is None:
            raise ConfigError(f"gene {genes[gene].name} weights no task vector", _WANTED, _DO)
        for slice_, slope in found.slopes:
            number = slices[slice_]
            slopes[number, models[found.model], gene] = slope * factors[number]
    initial = torch.tensor([float(value) for value in space.spec.initial.values], dtype=torch.float64)
    low = torch.tensor([float(gene.low) for gene in genes], dtype=torch.float64)
    high = torch.tensor([float(gene.high) for gene in genes], dtype=torch.float64)
    start = torch.full_like(low, init).clamp(low, high)
    return WeightMap(tuple(slices), offset - slopes @ initial, slopes, low, high, start)
