"""The sums of resource competition, compiled: the same bits on every machine, and cheap beside any evaluation."""

from __future__ import annotations

from typing import Any

from evomerge.compiling import compiled

ROOM = 4
"""Rows of working memory that `compete` needs."""


@compiled
def enter(own: Any, total: Any) -> bool:
    """Add a member's scores to the items' totals if all of them are 0 or 1; returns whether they are."""
    other = 0
    for j in range(len(own)):
        other |= (own[j] != 0.0) & (own[j] != 1.0)
    if other == 0:
        for j in range(len(own)):
            total[j] += own[j]
    return other == 0


@compiled
def compete(
    rows: Any,
    total: Any,
    summed: bool,
    shift: int,
    alpha: float,
    epsilon: float,
    largest: bool,
    room: Any,
    share: Any,
    needs: Any,
    fitness: Any,
) -> None:
    """What every item pays, and who earns how much; formulas in `population.Population`.

    Args:
        rows: scores, float64 of shape ``(members or more, items)``.
        total: of every item, over the members; filled unless it is `summed`.
        summed: see there.
        shift: 0 for none, 1 by the lowest scores below zero, 2 by the lowest.
        alpha, epsilon: of the competition.
        largest: whether an item's capacity is its largest score, not one.
        room: working memory, of shape ``(ROOM, items)``.
        share: receives what a point of each item is worth: ``c / (z^alpha + epsilon)``.
        needs: receives the same for attraction: ``c / (z + epsilon)``; may be `share` where alpha is 1 or counts there.
        fitness: receives what the first members earn; as many as it has elements.
    """
    rows = rows[: len(fitness)]
    floor, capacity, points, products = room[0], room[1], room[2], room[3]
    if not summed:
        total[:] = 0.0
        for row in rows:
            for j in range(len(total)):
                total[j] += row[j]
    floor[:] = 0.0
    if shift:
        if shift == 2:
            floor[:] = rows[0]
        for row in rows:
            for j in range(len(floor)):
                floor[j] = min(floor[j], row[j])
    capacity[:] = 1.0
    if largest:
        capacity[:] = rows[0]
        for row in rows[1:]:
            for j in range(len(capacity)):
                capacity[j] = max(capacity[j], row[j])
        for j in range(len(capacity)):
            capacity[j] -= floor[j]
    for j in range(len(points)):
        points[j] = max(total[j] - len(fitness) * floor[j], 0.0)
    if alpha != 1.0:
        _divide(capacity, points, epsilon, needs)
        for j in range(len(points)):
            points[j] = points[j] ** alpha
    _divide(capacity, points, epsilon, share)
    for i in range(len(fitness)):
        row = rows[i]
        for j in range(len(products)):
            products[j] = (row[j] - floor[j]) * share[j]
        fitness[i] = max(_sum(products), 0.0)


@compiled
def attract(rows: Any, first: int, needs: Any, products: Any, pull: Any) -> None:
    """How much each of the first members attracts one: what it does better, as far as that is needed.

    Args:
        rows, needs: as `compete` was given them.
        first: the row of the one.
        products: working memory, of shape ``(items,)``.
        pull: receives the attraction; as many members as it has elements.
    """
    own = rows[first]
    for i in range(len(pull)):
        row = rows[i]
        for j in range(len(products)):
            products[j] = max(row[j] - own[j], 0.0) * needs[j]
        pull[i] = _sum(products)


@compiled
def pick(weights: Any, without: int, at: float) -> int:
    """The index at this share of all weights, from 0 to below 1, without one; -1 where there is no weight."""
    whole = 0.0
    for i in range(len(weights)):
        whole += weights[i] if i != without else 0.0
    below, last = 0.0, -1
    for i in range(len(weights)):
        if i != without and weights[i] > 0.0:
            last = i
            below += weights[i]
            if below > at * whole:
                break
    return last


@compiled
def _divide(capacity: Any, points: Any, epsilon: float, out: Any) -> None:
    """``capacity / (points + epsilon)``; without epsilon, points of zero count as one."""
    if epsilon > 0.0:
        for j in range(len(out)):
            out[j] = capacity[j] / (points[j] + epsilon)
    else:
        for j in range(len(out)):
            out[j] = capacity[j] / (1.0 if points[j] == 0.0 else points[j])


@compiled
def _sum(values: Any) -> float:
    """Of all, by halves, which uses vectors and rounds little; overwrites them."""
    count = len(values)
    while count > 1:
        half = (count + 1) // 2
        low, high = values[: count - half], values[half:count]
        for j in range(len(low)):
            low[j] += high[j]
        count = half
    return values[0]
