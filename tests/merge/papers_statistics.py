"""Independent readings of the methods that read statistics of data: NumPy in float64, least squares by stacked rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from merge.made_up_statistics import columns as columns_of
from merge.made_up_statistics import gram, routing, second_derivatives, sensitivities, squares
from merge.made_up_statistics import mask as mask_of
from merge.papers import Array, paper


def average(x: Sequence[Array], weight: Sequence[float]) -> Array:
    return np.asarray(sum(w * v for w, v in zip(weight, x, strict=True)) / sum(weight))


@paper
def fisher(
    x: Sequence[Array],
    base: Array | None,
    *,
    weight: Sequence[float],
    power: float,
    log_floor: float,
    normalize: bool,
) -> Array:
    known = [squares(v) for v in x]
    common = np.mean([mean for (_, mean), w in zip(known, weight, strict=True) if w])
    importance = [(f / (mean if normalize else common)) ** power + 10**log_floor for f, mean in known]
    over = sum(w * c * v for w, c, v in zip(weight, importance, x, strict=True))
    return np.asarray(over / sum(w * c for w, c in zip(weight, importance, strict=True)))


@paper
def hessian(
    x: Sequence[Array],
    base: Array | None,
    *,
    weight: Sequence[float],
    power: float,
    log_floor: float,
    normalize: bool,
) -> Array:
    known = [second_derivatives(v) for v in x]
    common = np.mean([mean for (_, mean), w in zip(known, weight, strict=True) if w])
    units = [mean if normalize else common for _, mean in known]
    sure = [np.where(h > 0, h / unit, 0.0) ** power + 10**log_floor for (h, _), unit in zip(known, units, strict=True)]
    return np.asarray(
        np.average(np.stack(x), axis=0, weights=np.stack([w * c for w, c in zip(weight, sure, strict=True)]))
    )


@paper
def usage(
    x: Sequence[Array],
    base: Array | None,
    *,
    weight: Sequence[float],
    power: float,
    log_floor: float,
    counts: str,
) -> Array:
    each = []
    for v, w in zip(x, weight, strict=True):
        shares, expert = routing(v)
        each.append(w * ((3 * shares[0 if counts == "choices" else 1, expert]) ** power + 10**log_floor))
    return average(x, each)


@paper
def regmean(
    x: Sequence[Array], base: Array | None, *, weight: Sequence[float], alpha: float, log_ridge: float
) -> Array:
    grams = [gram(v) for v in x]
    if any(g is None for g in grams):
        return average(x, weight)
    known = [np.diag(g) if g.ndim == 1 and len(g) < 2000 else g for g in grams if g is not None]
    if known[0].ndim == 1:
        level = sum(w * g.mean() for w, g in zip(weight, known, strict=True)) / sum(weight)
        if level == 0:
            return average(x, weight)
        own = [w * (g + 10**log_ridge * level) for w, g in zip(weight, known, strict=True)]
        return np.asarray(sum(v * g for v, g in zip(x, own, strict=True)) / sum(own))
    level = sum(w * np.trace(g) / len(g) for w, g in zip(weight, known, strict=True)) / sum(weight)
    if level == 0:
        return average(x, weight)
    # The rows of a root of each matrix are inputs that have it: the merge is least squares on all of them.
    rows, wanted = [], []
    for v, g, w in zip(x, known, weight, strict=True):
        shrunk = alpha * g + (1 - alpha) * np.diag(np.diag(g)) + 10**log_ridge * level * np.eye(len(g))
        values, vectors = np.linalg.eigh(w * shrunk)
        root = (vectors * np.sqrt(np.clip(values, 0, None))).T
        rows.append(root)
        wanted.append(root @ (v - average(x, weight)).T)
    return average(x, weight) + np.linalg.lstsq(np.concatenate(rows), np.concatenate(wanted), rcond=None)[0].T


@paper
def ota(
    x: Sequence[Array],
    base: Array,
    *,
    weight: Sequence[float],
    density: Sequence[float],
    power: float,
    log_floor: float,
    lambda_: float,
    rank_one: bool,
    normalize: bool,
    scope: str,
) -> Array:
    used = [i for i, w in enumerate(weight) if w]
    if not used:
        return base
    known = {i: squares(x[i]) for i in used}
    common = np.mean([mean for _, mean in known.values()])
    top, below = np.zeros_like(base), np.zeros_like(base)
    for i, (values, mean) in known.items():
        task, v = x[i] - base, values / mean
        if rank_one and v.ndim > 1 and v.size:
            flat = v.reshape(len(v), -1)
            v = (np.outer(flat.sum(1), flat.sum(0)) / (flat.sum() or 1)).reshape(v.shape)
        score = (task**2 * v).astype(np.float32)
        kept = np.ones_like(score, dtype=bool)
        if density[i] < 1:
            count = max(1, int(density[i] * score.size))
            kept = score >= np.sort(score.ravel())[::-1][: max(1, count)].min(initial=np.inf)
        p = weight[i] * kept * ((v if normalize else v * mean / common) ** power + 10**log_floor)
        top, below = top + p * task, below + p
    return np.asarray(base + lambda_ * np.divide(top, below, out=np.zeros_like(top), where=below > 0))


@paper
def rcp(x: Sequence[Array], base: Array, *, weight: Sequence[float], log_lambda: float) -> Array:
    used = [i for i, w in enumerate(weight) if w]
    if not used:
        return base
    prior, found = used[0], base + weight[used[0]] * (x[used[0]] - base)
    for i in used[1:]:
        votes = sensitivities(x[i]) + 10**log_lambda * squares(x[prior])[0] * (x[prior] - x[i]) ** 2 <= 0
        found = found + np.where(votes, weight[i] * (x[i] - base), 0.0)
    return np.asarray(found)


@paper
def masked(x: Sequence[Array], base: Array | None, *, scale: Sequence[float], lambda_: float) -> Array:
    assert base is not None
    return np.asarray(base + lambda_ * sum(s * mask_of(v) * (v - base) for s, v in zip(scale, x, strict=True)))


@paper
def columns(x: Sequence[Array], base: Array | None, *, scale: Sequence[float], lambda_: float) -> Array:
    assert base is not None
    found = base.copy()
    for s, v in zip(scale, x, strict=True):
        learnt = columns_of(v)
        if learnt is None:
            found = found + lambda_ * s * (v - base) / len(x)
        elif v.ndim == 2:
            found = found + lambda_ * s * (v - base) @ np.diag(learnt[0])
        else:
            found = found + lambda_ * s * (v - base) * (learnt[0] if v.ndim == 1 else learnt[0][0])
    return np.asarray(found)
