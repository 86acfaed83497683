"""Best orders of groups of units, given inner products: linear assignments, and assignments within assignments.

Heads: for every pair of groups of heads the best order of dimensions and queries within, then the best pairing of the
groups. Experts of a mixture: the best order of hidden units within each pair of experts, then the pairing of experts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from evomerge.merge.alignment.orders import ExpertOrder, Experts, HeadOrder, Heads, Indices

Products = NDArray[np.float64]

_ROUNDS = 20
_ALL_PAIRS = 4096
"""Up to so many hidden units in a layer's experts, all pairs of experts have theirs put in order."""


def assignment(products: Products) -> tuple[Indices, float]:
    """For every row the column, each taken once, of the largest sum; and that sum."""
    rows, columns = linear_sum_assignment(products, maximize=True)
    return columns.astype(np.int64), float(products[rows, columns].sum())


def best_heads(heads: Heads, products: Mapping[str, Products], free: frozenset[str]) -> HeadOrder:
    """The best order of an attention layer's units, given the inner products of `_Search._products`.

    Exact where each head has keys and values of its own; with grouped queries, the orders of queries and of dimensions
    within each pair of groups are found in turn until neither gains.
    """
    g, r, d = heads.groups, heads.queries, heads.width
    query, context = (products[kind].reshape(g, r, d, g, r, d) for kind in ("query", "context"))
    key, value = (products[kind].reshape(g, d, g, d) for kind in ("key", "value"))
    values = np.full((g, g), -np.inf)
    inner: dict[tuple[int, int], tuple[Indices, Indices, Indices]] = {}
    for ours, theirs in product(range(g), range(g)):
        if "heads" in free or ours == theirs:
            found, total = _best_pair(
                query[ours, :, :, theirs],
                context[ours, :, :, theirs],
                key[ours, :, theirs],
                value[ours, :, theirs],
                free,
            )
            inner[ours, theirs], values[ours, theirs] = found, total
    groups = assignment(values)[0] if "heads" in free else np.arange(g)
    chosen = [inner[ours, int(theirs)] for ours, theirs in enumerate(groups)]
    queries, query_key, dimensions = (np.stack(rows) for rows in zip(*chosen, strict=True))
    return HeadOrder(groups, queries, query_key, dimensions)


def _best_pair(
    query: Products, context: Products, key: Products, value: Products, free: frozenset[str]
) -> tuple[tuple[Indices, Indices, Indices], float]:
    """The best orders of queries and dimensions within a pair of groups, and the sum of inner products in them.

    Args:
        query, context: shape ``(queries, width, queries, width)``.
        key, value: shape ``(width, width)``.
        free: the kinds that move.
    """
    count, width = query.shape[:2]
    queries, within, dimensions = np.arange(count), np.arange(width), np.arange(width)
    several = count > 1 and "heads" in free
    # Keys and values say which dimension is which before anything is known of the queries.
    ours, theirs = (0.0, 0.0) if several else _by_dimension(query, context, queries)
    rows = np.arange(width)
    total = -np.inf
    for _ in range(_ROUNDS):
        if "query_key" in free:
            within = assignment(key + ours)[0]
        if "value" in free:
            dimensions = assignment(value + theirs)[0]
        if several:
            queries = assignment(query[:, rows, :, within].sum(0) + context[:, rows, :, dimensions].sum(0))[0]
        ours, theirs = _by_dimension(query, context, queries)
        last, total = total, float((key + ours)[rows, within].sum() + (value + theirs)[rows, dimensions].sum())
        if not several or total <= last:
            break
    return (queries, within, dimensions), total


def _by_dimension(query: Products, context: Products, queries: Indices) -> tuple[Products, Products]:
    """Inner products of dimensions, summed over the queries in their order."""
    rows = np.arange(len(queries))
    return query[rows, :, queries].sum(0), context[rows, :, queries].sum(0)


def best_experts(
    experts: Experts, sides: Iterable[tuple[str, torch.Tensor, torch.Tensor]], free: frozenset[str]
) -> ExpertOrder:
    """The best order of a mixture's experts and of the hidden units within each.

    Where a layer has up to 4,096 hidden units in all, every pair of experts has its best order of units found, and the
    pairing is exact. Beyond that experts are paired by the cosines of their rows of the router and of their weights as
    they stand, and units are put in order within the pairs: one assignment for each expert, not for each pair.

    Args:
        experts: their numbers.
        sides: for every axis that they are on: the kind, and the reference's and the model's units on it, of shape
            ``(units, others)``.
        free: the kinds that move.
    """
    count, width = experts.count, experts.width
    rows: list[tuple[torch.Tensor, torch.Tensor]] = []
    units: list[tuple[torch.Tensor, torch.Tensor]] = []
    for kind, ours, theirs in sides:
        if kind == "experts":
            rows.append((ours, theirs))
        else:
            units.append((ours.reshape(count, width, -1), theirs.reshape(count, width, -1)))

    def within(one: int, other: int) -> tuple[Indices, float]:
        products = np.zeros((width, width))
        for ours, theirs in units:
            products += (ours[one] @ theirs[other].T).double().numpy()
        if "expert_units" in free:
            return assignment(products)
        return np.arange(width), float(np.trace(products))

    found: dict[tuple[int, int], tuple[Indices, float]] = {}
    values: Products = np.zeros((count, count))
    if count * width <= _ALL_PAIRS:
        values = sum((_products(*own) for own in rows), values)
        for one, other in product(range(count), range(count)):
            if "experts" in free or one == other:
                found[one, other] = within(one, other)
                values[one, other] += found[one, other][1]
    else:
        values = values + _cosines(rows) + _cosines([(own.flatten(1), other.flatten(1)) for own, other in units])
    order = assignment(values)[0] if "experts" in free else np.arange(count)
    chosen = [found.get((one, int(other))) or within(one, int(other)) for one, other in enumerate(order)]
    return ExpertOrder(order, np.stack([own for own, _ in chosen]))


def _products(ours: torch.Tensor, theirs: torch.Tensor) -> Products:
    found: Products = (ours @ theirs.T).double().numpy()
    return found


def _cosines(sides: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> Products | float:
    """Cosines of all pairs of rows, over all sides; 0 without any."""
    if not sides:
        return 0.0
    products = np.sum([_products(*pair) for pair in sides], axis=0)
    squares = [np.sum([pair[at].square().sum(1).double().numpy() for pair in sides], axis=0) for at in range(2)]
    cosines: Products = products / np.sqrt(np.maximum(np.outer(*squares), 1e-300))
    return cosines
