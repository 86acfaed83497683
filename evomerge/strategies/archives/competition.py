"""The sums of resource competition, compiled: the same bits on every machine, and cheap beside any evaluation."""

from __future__ import annotations

from typing import Any

from evomerge.utils.compiling import compiled

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
        summed: whether `total` is given, and not to be computed.
        shift: 0 for none, 1 by the lowest scores below zero, 2 by the lowest.
        alpha, epsilon: of the competition.
        largest: whether an item's capacity is its largest score, not one.
        room: working memory, of shape ``(ROOM, items)``.
        share: receives what a point of each item is worth: ``c / (z^alpha + epsilon)``.
        needs: receives what a point is worth to a mate: ``c / (z + epsilon)``; may be `share` itself.
        fitness: receives what the first members earn; as many as it has elements.
    """
    rows = rows[: len(fitness)]
    floor, capacity, points, part = room[0], room[1], room[2], room[3]
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
    common = _dot(floor, share, part) if shift else 0.0
    for i in range(len(fitness)):
        fitness[i] = max(_dot(rows[i], share, part) - common, 0.0)


@compiled
def remove_worst(rows: Any, born: Any, total: Any, summed: bool, fitness: Any, equal: float) -> int:
    """Remove the member that earns least, of equals the oldest; the last one takes its row.

    Args:
        rows, total, summed: as for `compete`; totals that are `summed` are kept so.
        born: when each member came, int64.
        fitness: what the members earn.
        equal: fitness differs by less than this share of the largest where only sums are rounded.

    Returns:
        The row; the last one where that is removed itself.
    """
    last, limit = len(fitness) - 1, fitness.min() + equal * fitness.max()
    worst = -1
    for i in range(len(fitness)):
        if fitness[i] <= limit and (worst < 0 or born[i] < born[worst]):
            worst = i
    own, other = rows[worst], rows[last]
    if summed:
        for j in range(len(total)):
            total[j] -= own[j]
    if worst != last:
        born[worst] = born[last]
        for j in range(len(own)):
            own[j] = other[j]
    return worst


@compiled
def attract(rows: Any, first: int, needs: Any, room: Any, pull: Any) -> None:
    """How much each of the first members attracts one: what it does better, as far as that is needed.

    Args:
        rows, needs: as `compete` was given them.
        first: the row of the one.
        room: working memory, of shape ``(ROOM, items)``.
        pull: receives the attraction; as many members as it has elements.
    """
    for i in range(len(pull)):
        pull[i] = _gain(rows[i], rows[first], needs, room[0])


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
def _dot(a: Any, b: Any, room: Any) -> float:
    """The inner product, in an order that is the same whatever vectors the processor has."""
    part = len(a) // 8
    a0, a1, a2, a3 = a[:part], a[part : 2 * part], a[2 * part : 3 * part], a[3 * part : 4 * part]
    a4, a5, a6, a7 = a[4 * part : 5 * part], a[5 * part : 6 * part], a[6 * part : 7 * part], a[7 * part : 8 * part]
    b0, b1, b2, b3 = b[:part], b[part : 2 * part], b[2 * part : 3 * part], b[3 * part : 4 * part]
    b4, b5, b6, b7 = b[4 * part : 5 * part], b[5 * part : 6 * part], b[6 * part : 7 * part], b[7 * part : 8 * part]
    sums = room[:part]
    for j in range(part):
        low = (a0[j] * b0[j] + a1[j] * b1[j]) + (a2[j] * b2[j] + a3[j] * b3[j])
        sums[j] = low + ((a4[j] * b4[j] + a5[j] * b5[j]) + (a6[j] * b6[j] + a7[j] * b7[j]))
    total = _sum(sums)
    for j in range(8 * part, len(a)):
        total += a[j] * b[j]
    return total


@compiled
def _gain(scores: Any, own: Any, needs: Any, room: Any) -> float:
    """``sum_j max(scores_j - own_j, 0) needs_j``, in the same way."""
    part = len(scores) // 4
    sums = room[:part]
    sums[:] = 0.0
    for quarter in range(4):
        begin = quarter * part
        gains, less, worth = scores[begin : begin + part], own[begin : begin + part], needs[begin : begin + part]
        for j in range(part):
            sums[j] += max(gains[j] - less[j], 0.0) * worth[j]
    total = _sum(sums)
    for j in range(4 * part, len(scores)):
        total += max(scores[j] - own[j], 0.0) * needs[j]
    return total


@compiled
def _sum(values: Any) -> float:
    """Of all, by halves; overwrites them."""
    count = len(values)
    while count > 1:
        half = (count + 1) // 2
        left, right = values[: count - half], values[half:count]
        for j in range(len(left)):
            left[j] += right[j]
        count = half
    return values[0] if count else 0.0
