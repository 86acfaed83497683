"""Experts of a mixture that are equal: found, and made one, so that the mixture has fewer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from evomerge.errors import EvomergeError

Groups = tuple[tuple[int, ...], ...]
"""Experts that become one, by their numbers, the most used first."""

Rows = Literal["mean", "dominant"]
"""What sends tokens to a group: the mean of its rows by use, or the row of its most used expert."""


def equal_experts(gate_up: torch.Tensor, down: torch.Tensor, counts: Sequence[float]) -> Groups:
    """Groups of the experts of a layer whose matrices are equal, bit for bit; in the order of their first experts.

    Args:
        gate_up: of shape ``(experts, 2 units, width)``.
        down: of shape ``(experts, width, units)``.
        counts: tokens that each expert was sent.

    Raises:
        EvomergeError: there are not as many counts as experts.
    """
    if len(counts) != len(down):
        raise EvomergeError(f"{len(counts)} counts are of {len(down)} experts", "one for each expert of the layer")
    sums = [(float(one.double().sum()), float(other.double().sum())) for one, other in zip(gate_up, down, strict=True)]
    groups: list[list[int]] = []
    for expert, own in enumerate(sums):
        for group in groups:
            first = group[0]
            if (
                own == sums[first]
                and torch.equal(gate_up[expert], gate_up[first])
                and torch.equal(down[expert], down[first])
            ):
                group.append(expert)
                break
        else:
            groups.append([expert])
    return tuple(tuple(sorted(group, key=lambda expert: (-counts[expert], expert))) for group in groups)


def told_apart(groups: Groups, counts: Sequence[float], number: int) -> Groups:
    """So many groups: of the group that most tokens are sent to, the most used expert is told apart, again and again.

    Layers of a mixture have one number of experts; one with fewer that differ has some of them twice, each with its own
    row of the router.

    Args:
        groups: as `equal_experts` gives them.
        counts: tokens that each expert was sent.
        number: at least as many as there are groups, at most as there are experts.
    """
    found = list(groups)
    while len(found) < number:
        divisible = [place for place, own in enumerate(found) if len(own) > 1]
        place = max(divisible, key=lambda place: sum(counts[expert] for expert in found[place]))
        found[place : place + 1] = [found[place][:1], found[place][1:]]
    return tuple(found)


def router_rows(
    router: torch.Tensor, groups: Sequence[Sequence[int]], counts: Sequence[float] | NDArray[np.float64], how: Rows
) -> torch.Tensor:
    """The router's row of each group, of shape ``(groups, width)``; means in float32.

    Args:
        router: of shape ``(experts, width)``.
        groups: of the experts.
        counts: the weights of the means; equal ones where a group was sent no token.
        how: see `Rows`.
    """
    rows = []
    for group in groups:
        if how == "dominant" or len(group) == 1:
            rows.append(router[group[0]])
            continue
        weights = torch.tensor([float(counts[expert]) for expert in group], dtype=torch.float64)
        weights = weights / weights.sum() if weights.sum() > 0 else torch.full_like(weights, 1 / len(group))
        own = router[list(group)].float()
        rows.append(torch.tensordot(weights.float().to(own.device), own, dims=1).to(router.dtype))
    return torch.stack(rows)


def numbers_left(groups: Sequence[Groups], chosen: int) -> int:
    """How many experts every layer has in the end: those of the layer with most, and what a token takes at least."""
    return max(chosen, *(len(own) for own in groups))
