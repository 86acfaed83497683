"""Differences of weights as products of two thin matrices: exact where they are sums of such, else truncated."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

_BLOCK = 1 << 22  # elements of a block that is widened to float64: 32 MB


class Factors(NamedTuple):
    """A matrix ``b @ a``.

    Attributes:
        b: of shape ``(rows, rank)``.
        a: of shape ``(rank, columns)``.
    """

    b: torch.Tensor
    a: torch.Tensor

    @property
    def rank(self) -> int:
        """How many columns `b` has."""
        return self.a.shape[0]


class Bound(NamedTuple):
    """How far a difference is truncated.

    Attributes:
        rank: the most columns; ``None`` for as many as it takes.
        error: without a rank, the largest relative error: ``|D - b a| / |D|``, Frobenius.
    """

    rank: int | None = None
    error: float = 0.0


def summed(parts: Sequence[tuple[float, Factors]]) -> Factors:
    """``sum_i c_i b_i a_i`` as one product, exactly: factors side by side (CAT of LoRA Soups, arXiv 2410.13025).

    The rank is the sum of the ranks. Adding the factors themselves, ``(sum b_i)(sum a_i)``, would also multiply the `b`
    of one adapter with the `a` of another.
    """
    return Factors(
        torch.cat([own.b * factor for factor, own in parts], dim=1), torch.cat([own.a for _, own in parts], dim=0)
    )


def truncated(difference: torch.Tensor, bound: Bound) -> Factors:
    """The best approximation of a matrix of a rank or within an error (Eckart and Young 1936).

    Singular vectors are the eigenvectors of the smaller of ``D D^T`` and ``D^T D``, in float64: what is less than about
    1e-8 of the largest singular value is lost, far below what float32 holds. Each factor takes the root of the singular
    values.

    Args:
        difference: of shape ``(rows, columns)``, float32.
        bound: rank or error.

    Returns:
        Factors in float32, at least of rank 1.
    """
    if difference.shape[0] > difference.shape[1]:
        turned = truncated(difference.T, bound)
        return Factors(turned.a.T.contiguous(), turned.b.T.contiguous())
    rows, columns = difference.shape
    step = max(_BLOCK // rows, 1)
    gram = torch.zeros(rows, rows, dtype=torch.float64, device=difference.device)
    for start in range(0, columns, step):
        block = difference[:, start : start + step].double()
        gram.addmm_(block, block.T)
    squares, vectors = torch.linalg.eigh(gram)
    squares, vectors = squares.flip(0).clamp(min=0), vectors.flip(1)
    rank = _rank(squares, bound)
    roots = squares[:rank].sqrt().sqrt()
    left = vectors[:, :rank]
    inverse = torch.where(roots > 0, 1 / roots, torch.zeros_like(roots))
    right = torch.empty(rank, columns, device=difference.device)
    for start in range(0, columns, step):
        block = difference[:, start : start + step].double()
        right[:, start : start + step] = ((left.T @ block) * inverse[:, None]).float()
    return Factors((left * roots).float(), right)


def compressed(factors: Factors, bound: Bound) -> Factors:
    """As `truncated`, of a matrix that is given as a product, which is never formed: by QR of both factors."""
    left, inner = torch.linalg.qr(factors.b.double())
    right, outer = torch.linalg.qr(factors.a.double().T)
    u, values, v = torch.linalg.svd(inner @ outer.T)
    rank = _rank(values.square(), bound)
    roots = values[:rank].sqrt()
    return Factors(((left @ u[:, :rank]) * roots).float(), (roots[:, None] * (v[:rank] @ right.T)).float())


def lost(difference: torch.Tensor | Factors, kept: Factors) -> tuple[float, float]:
    """What factors lose of a matrix, by the values that are stored, whatever their dtype.

    Returns:
        ``|D - b a|^2`` and ``|D|^2``, Frobenius, summed in float64.
    """
    rows = difference.b.shape[0] if isinstance(difference, Factors) else difference.shape[0]
    step = max(_BLOCK // kept.a.shape[1], 1)
    error = norm = 0.0
    right = kept.a.float()
    for start in range(0, rows, step):
        at = slice(start, start + step)
        own = difference.b[at] @ difference.a if isinstance(difference, Factors) else difference[at]
        norm += float(own.double().square().sum())
        error += float((own - kept.b[at].float() @ right).double().square().sum())
    return error, norm


def _rank(squares: torch.Tensor, bound: Bound) -> int:
    """How many singular values, given by their squares in falling order, stay."""
    if bound.rank is not None:
        return min(bound.rank, len(squares))
    tail = squares.flip(0).cumsum(0).flip(0)  # what is lost when this one goes and all that follow
    allowed = math.pow(bound.error, 2) * float(tail[0])
    return max(int((tail > allowed).sum()), 1)
