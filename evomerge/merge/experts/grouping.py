"""Which experts of a mixture are merged into one.

M-SMoE (Li et al. 2024, arXiv 2310.01334): the experts that most tokens are sent to are dominant, every other joins the
dominant one whose router's logits are most like its own. Sub-MoE (Li et al. 2025, arXiv 2506.23266): k-means on the
similarity of the experts' outputs.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from evomerge.errors import EvomergeError
from evomerge.models.architecture.equal_experts import Groups

Counts = NDArray[np.float64]
"""How many tokens each expert of a layer was sent, of shape ``(experts,)``."""


def dominant(counts: Counts, number: int) -> tuple[int, ...]:
    """The experts that most tokens were sent to, the most used first; of equals the first."""
    return tuple(int(own) for own in np.argsort(-counts, kind="stable")[:number])


def numbers_by_threshold(counts: Mapping[int, Counts], mean: float) -> dict[int, int]:
    """How many experts of each layer are dominant where one threshold on frequencies holds for all layers.

    The most used of each layer always is (M-SMoE's code gives it frequency 1); of all others the most used, whatever
    their layer, so that there are `mean` in a layer on average.

    Args:
        counts: by layer.
        mean: dominant experts of a layer, on average; at least 1.
    """
    frequencies = {layer: own / max(own.sum(), 1.0) for layer, own in counts.items()}
    for own in frequencies.values():
        own[int(np.argmax(own))] = 1.0
    ranked = sorted(
        ((-value, layer, expert) for layer, own in frequencies.items() for expert, value in enumerate(own)),
    )
    numbers = dict.fromkeys(counts, 0)
    for _, layer, _ in ranked[: max(len(counts), round(mean * len(counts)))]:
        numbers[layer] += 1
    return numbers


def by_dominant(similarity: NDArray[np.float64], counts: Counts, number: int) -> Groups:
    """Groups around the most used experts: every other joins the one that it is most like.

    Args:
        similarity: of experts, of shape ``(experts, experts)``, larger for more alike.
        counts: tokens of each.
        number: of groups.
    """
    chosen = dominant(counts, number)
    groups: dict[int, list[int]] = {own: [own] for own in chosen}
    for expert in dominant(counts, len(counts))[number:]:
        groups[chosen[int(np.argmax(similarity[expert, list(chosen)]))]].append(expert)
    return tuple(tuple(own) for own in groups.values())


def by_clusters(similarity: NDArray[np.float64], counts: Counts, number: int, seed: int) -> Groups:
    """Groups by k-means on the rows of ``1 - similarity``, the most used expert of each first.

    Args:
        similarity: of experts, of shape ``(experts, experts)``; 1 for equal ones.
        counts: tokens of each.
        number: of groups; where fewer are told apart, the least used of the largest stand alone.
        seed: of k-means++, which begins ten times.
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # of experts that are equal
        labels = KMeans(number, n_init=10, random_state=seed).fit_predict(1 - similarity)
    order = dominant(counts, len(counts))
    groups = [[own for own in order if labels[own] == label] for label in dict.fromkeys(labels[list(order)].tolist())]
    while len(groups) < number:
        largest = max(groups, key=len)
        groups.append([largest.pop()])
    return tuple(tuple(own) for own in groups)


def check_groups(groups: Sequence[Sequence[int]], count: int, whole: bool) -> None:
    """`EvomergeError` unless groups are of a layer's experts, each in one at most; in one where they must be."""
    members = sorted(own for group in groups for own in group)
    if not all(groups) or len(set(members)) < len(members) or not set(members) <= set(range(count)):
        raise EvomergeError(f"the groups are {list(groups)}", f"experts from 0 to {count - 1}, each in one group")
    if whole and len(members) < count:
        raise EvomergeError("a router that is kept sends tokens to every expert", "groups of all of them")
