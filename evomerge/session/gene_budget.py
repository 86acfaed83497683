"""How many genes a search can learn with its evaluations, and search spaces that are chosen by that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from evomerge.config.construct import TARGET, locate, to_builtin
from evomerge.errors import ConfigError
from evomerge.genomes.genome import GenomeSpec
from evomerge.recipes.pool_info import PoolInfo
from evomerge.session.builders import PhaseNode

PER_GENE = 10
"""Evaluations for each gene, at least.

On the sphere, than which nothing is easier, a (1+1) evolution strategy comes nearer by a factor of 1 - 0.2/n with an
evaluation, at best (Rechenberg 1973; Beyer, "The Theory of Evolution Strategies", 2001): ten times nearer takes
ln(10) / 0.2 = 11.5 evaluations for each of n genes. Covariances, n^2 / 2 of them, take more: Hansen (arXiv 1604.00772)
learns them at a rate of 2 / n^2. The initial design of model-based searches is 10 n by rule of thumb (Jones, Schonlau
and Welch 1998; Loeppky, Sacks and Welch 2009), and so is a population of differential evolution (Storn and Price 1997).
"""


def free_genes(spec: GenomeSpec) -> int:
    """How many genes have more than one value."""
    low, high = spec.bounds
    return int(np.count_nonzero(low < high))


def fit_spaces(nodes: Sequence[PhaseNode], info: PoolInfo) -> tuple[str, ...]:
    """Replace ``auto`` in the phases' search spaces by the finest that leaves `PER_GENE` evaluations a gene.

    The configuration itself is changed, so that the run keeps what was chosen, whatever becomes of its budget.

    Args:
        nodes: the phases, whose nodes are those of the configuration.
        info: of the pool.

    Returns:
        What was chosen: ``search_space.layer_group=8``.
    """
    chosen: list[str] = []
    budgets: dict[int, int] = {}
    for phase in nodes:  # several phases may have one search space, which fits the shortest
        own = phase.evaluations_each
        budgets[id(phase.node)] = min(own, budgets.get(id(phase.node), own))
    for phase in nodes:
        values = _settings_of(phase, info, budgets[id(phase.node)])
        for key, value in values.items():
            phase.node[key] = value
            chosen.append(f"{phase.key}.{key}={value}")
    return tuple(chosen)


def _settings_of(phase: PhaseNode, info: PoolInfo, budget: int) -> Mapping[str, Any]:
    """The values to set, by key; empty where nothing is left open."""
    settings = to_builtin(phase.node)
    if not isinstance(settings, Mapping) or TARGET not in settings:
        return {}
    finest_first = getattr(locate(str(settings[TARGET]), f"{phase.key}.{TARGET}"), "finest_first", None)
    found: dict[str, Any] = {}
    for values in finest_first(settings, info) if finest_first is not None else ():
        if not values:
            return {}
        try:
            genes = free_genes(phase.space_of({**settings, **values}).spec)
        except ConfigError:  # it is said when the space itself is built
            continue
        found = values
        if genes * PER_GENE <= budget:
            break
    return found
