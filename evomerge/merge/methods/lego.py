"""LoRA-LEGO: the ranks of adapters as units, clustered to as many as the result shall have (arXiv 2409.16167)."""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from evomerge.merge.methods.derived import Pair
from evomerge.merge.methods.parameters import WEIGHT, active
from evomerge.merge.methods.registry import BASE, Values, derived_method
from evomerge.merge.methods.spectral import SCALE, mean, on_one_thread, scale_of, triplets
from evomerge.recipes.method_spec import ParameterSpec

Floats = NDArray[np.float64]
_STARTS = 10
"""Of k-means; the best counts."""

UNITS = ParameterSpec(
    "rank",
    1.0,
    low=0.25,
    high=2.0,
    minimum=0.0,
    summary="units of the result, as a share of the largest adapter's rank; one at least; found anew for every value",
)
NORMS = ParameterSpec(
    "norms",
    True,
    kind="boolean",
    summary="give centroids the mean norm of their units, which averaging has made smaller",
)
OUTPUT = ParameterSpec(
    "output", True, kind="boolean", summary="times sqrt(r / k): the output of k units is as large as that of r"
)


def _given(values: Values) -> Mapping[str, Hashable]:
    return {
        "weight": tuple(float(weight) for weight in values["weight"]),
        "rank": float(values["rank"]),
        "norms": bool(values["norms"]),
        "output": bool(values["output"]),
    }


def _unchanged(values: Values) -> int | None:
    """One adapter whose units all stay is itself: as many clusters as units, and then ``sqrt(r / k)`` is one."""
    used = active(values["weight"])
    if not used or values["lambda_"] == 0:
        return BASE
    whole = values["rank"] == 1 or (values["rank"] > 1 and not values["output"])
    return used[0] if len(used) == 1 and whole and values["lambda_"] * values["weight"][used[0]] == 1 else None


def joined(
    parts: Sequence[torch.Tensor | Pair], weight: Sequence[float], rank: float, norms: bool, output: bool
) -> Pair:
    """The factors of the merged difference of a matrix, of shapes ``(rows, k)`` and ``(k, columns)``, float64.

    Args:
        parts: of every model its adapter's factors, or its task vector: that has the units of its singular triplets.
        weight, rank, norms, output: as of `lora_lego`.
    """
    used = active(weight)
    device = (parts[0] if isinstance(parts[0], torch.Tensor) else parts[0][0]).device
    with on_one_thread():
        each = [_units(parts[i], weight[i]) for i in used]
        units = np.concatenate([b for b, _ in each], axis=0), np.concatenate([a for _, a in each], axis=0)
        largest = max((len(b) for b, _ in each), default=0)
        b, a = _clustered(*units, max(1, int(rank * largest)), largest, norms=norms, output=output)
    return torch.from_numpy(b.T.copy()).to(device), torch.from_numpy(a).to(device)


@derived_method(
    "lora_lego",
    replace(WEIGHT, searched=False),
    UNITS,
    NORMS,
    OUTPUT,
    SCALE,
    summary="ranks of adapters clustered to as many as the result has (LoRA-LEGO, arXiv 2409.16167)",
    family="svd",
    factors=scale_of,
    given=_given,
    unchanged=_unchanged,
    join=joined,
)
def lora_lego(
    parts: Sequence[torch.Tensor | Pair], weight: Sequence[float], rank: float, norms: bool, output: bool
) -> torch.Tensor:
    """``theta_0 + lambda sqrt(r / k) sum_c s_c^2 b_c a_c`` over the centroids of ``k`` clusters of units.

    Merging LoRAs like Playing LEGO: Pushing the Modularity of LoRA to Extremes Through Rank-Wise Clustering. Column
    ``b_j`` and row ``a_j`` of an adapter's factors are a unit, whose order means nothing; those of all adapters are
    clustered by k-means, and ``k = int(rank r)`` centroids are the result, with ``r`` the largest adapter's rank.
    ``s_c`` gives a centroid the mean norm of its units (``norms``); ``sqrt(r / k)`` is ``output``. The paper's abstract
    has the two without their constants, which are this reading's. For adapters that are to stay one small adapter;
    unlike a sum it depends on how products are split into factors, so that it takes them as they are stored, the scale
    and the weight in ``b``.

    A model that is no adapter on the base has the units of its singular triplets, with the root of the value on either
    side and the largest element of ``a_j`` positive. Tensors that are no matrices are averaged by weight. K-means is
    scikit-learn's, the best of ten starts that depend on the units alone, in an order that is theirs: nothing is
    random.

    Found once per pool for each set of weights and ``rank``.
    """
    used = active(weight)
    if not used:
        first = parts[0]
        return torch.zeros_like(first) if isinstance(first, torch.Tensor) else torch.zeros_like(first[0] @ first[1])
    shape = parts[0].shape if isinstance(parts[0], torch.Tensor) else None
    if shape is not None and (len(shape) != 2 or not shape.numel()):
        return mean([part * weight[i] for i in used if isinstance(part := parts[i], torch.Tensor)])
    b, a = joined(parts, weight, rank, norms, output)
    with on_one_thread():
        return b @ a


def _units(part: torch.Tensor | Pair, weight: float) -> tuple[Floats, Floats]:
    """The units of a model as rows, those of no effect left out: of shapes ``(rank, rows)`` and ``(rank, columns)``."""
    if isinstance(part, torch.Tensor):
        found = triplets(part.double())
        roots = found.s.sqrt()
        signs = found.vh.gather(1, found.vh.abs().argmax(1, keepdim=True)).sign()
        left, right = (found.u * roots).T * signs, found.vh * roots[:, None] * signs
    else:
        left, right = part[0].T.double(), part[1].double()
    b, a = (left * weight).cpu().numpy(), right.cpu().numpy()
    acting = (np.abs(b).max(1, initial=0) > 0) & (np.abs(a).max(1, initial=0) > 0)
    return b[acting], a[acting]


def _clustered(b: Floats, a: Floats, count: int, largest: int, *, norms: bool, output: bool) -> tuple[Floats, Floats]:
    """The centroids of units, as rows."""
    if len(b) <= count:
        return (b * np.sqrt(largest / len(b)) if output and len(b) else b), a
    sizes = np.linalg.norm(b, axis=1) * np.linalg.norm(a, axis=1)
    order = np.lexsort((b[:, 0], a[:, 0], -sizes))  # the same for any order of models
    units = np.concatenate([b, a], axis=1)[order]
    labels = _labels(units, count)
    centroids = []
    for label in np.unique(labels):
        own = units[labels == label]
        centroid = own.mean(0)
        norm = np.linalg.norm(centroid)
        if norms and norm > 0:
            centroid = centroid * (np.linalg.norm(own, axis=1).mean() / norm)
        centroids.append(centroid)
    found = np.stack(centroids)
    left, right = found[:, : b.shape[1]], found[:, b.shape[1] :]
    return (left * np.sqrt(largest / len(found)) if output else left), right


def _labels(units: Floats, count: int) -> NDArray[np.int32]:
    """The cluster of every unit; fewer clusters where fewer units differ."""
    from sklearn.cluster import KMeans  # a second to import, for this method only
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore", ConvergenceWarning)
        labels: NDArray[np.int32] = KMeans(count, n_init=_STARTS, random_state=0).fit(units).labels_
    return labels
