"""RegMean: linear layers whose outputs are nearest to those of all models, each on its own data (arXiv 2212.09849)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from evomerge.merge.methods.fisher import POSITIVE, alone, check_weights, plain_mean
from evomerge.merge.methods.registry import Context, merge_method
from evomerge.merge.methods.spectral import on_one_thread
from evomerge.merge.methods.sphere import check_finite
from evomerge.models.statistics import Statistic
from evomerge.recipes.method_spec import ParameterSpec

ALPHA = ParameterSpec(
    "alpha",
    0.9,
    low=0.9,
    high=1.0,
    minimum=0.0,
    maximum=1.0,
    searched=True,
    summary="factor on what inputs have to do with each other: 1 is least squares, 0 looks at each input alone",
)
RIDGE = ParameterSpec(
    "log_ridge",
    -6.0,
    low=-8.0,
    high=0.0,
    minimum=-30.0,
    maximum=30.0,
    summary="logarithm to the base 10 of what is added to the diagonal, in units of its mean: pulls towards the mean",
)


@merge_method(
    "regmean",
    POSITIVE,
    ALPHA,
    RIDGE,
    summary="least squares to the outputs of every model's linear layers (RegMean, arXiv 2212.09849)",
    family="statistics",
    idempotent=True,
    check=check_weights,
    unchanged=alone,
    statistics="gram",
)
def regmean(
    inputs: Sequence[torch.Tensor],
    base: torch.Tensor | None,
    *,
    weight: Sequence[float],
    alpha: float,
    log_ridge: float,
    context: Context,
) -> torch.Tensor:
    """``W = (sum w_i W_i G_i)(sum w_i G_i)^-1`` for weights of linear layers ``y = W x``; else the mean.

    Dataless Knowledge Fusion by Merging Weights of Language Models, eq. 2, whose layers are ``y = W^T x``. ``G_i`` is
    the mean of ``x x^T`` over the tokens of model ``i``, its elements off the diagonal times ``alpha``, and on the
    diagonal ``10^log_ridge`` of the mean of the diagonals more: where inputs never occur, the mean of the models is
    left. With ``alpha`` 1 and no ridge, ``W`` minimises ``sum w_i E ||W x_i - W_i x_i||^2``. For GPT-2's layers, which
    are ``y = x W``, sides are exchanged. Embeddings, norms, biases, tensors that other modules share, and experts
    stored as one tensor have no Gram matrix. For models of different domains with some texts of each: linear layers are
    most of a model, and no gradient is needed.

    Computed in float64 on one thread, anew for every candidate: a solution with as many unknowns as the layer has
    inputs. Memory: two squares of these, and three copies of the tensor, in float64.
    """
    known = [context.statistic(i) for i in range(len(inputs))]
    if inputs[0].dim() != 2 or not inputs[0].numel() or any(own is None for own in known):
        return plain_mean(inputs, weight)
    sums = {i: float(x.double().sum()) for i, x in enumerate(inputs)}
    check_finite(sums, len(inputs))
    with on_one_thread():
        return _nearest(inputs, [own for own in known if own is not None], weight, alpha, 10.0**log_ridge)


def _nearest(
    inputs: Sequence[torch.Tensor], grams: Sequence[Statistic], weight: Sequence[float], alpha: float, ridge: float
) -> torch.Tensor:
    """The solution for a matrix; see `regmean`."""
    turned = grams[0].axis == 0
    total = sum(weight)
    mean = inputs[0].double()
    for x, w in zip(inputs[1:], weight[1:], strict=True):
        mean = mean + (x.double() - inputs[0].double()) * (w / total)
    diagonals = [own.values if own.values.dim() == 1 else own.values.diagonal() for own in grams]
    level = sum(float(own.double().mean()) * w for own, w in zip(diagonals, weight, strict=True)) / total
    if not level > 0:
        return mean.float()
    full = alpha != 0 and all(own.values.dim() == 2 for own in grams)
    size = len(diagonals[0])
    square = mean.new_zeros((size, size) if full else (size,))
    rest = torch.zeros_like(mean.T if turned else mean)
    for x, own, diagonal, w in zip(inputs, grams, diagonals, weight, strict=True):
        if full:
            gram = own.values.double() * (alpha * w)
            gram.diagonal().copy_((diagonal.double() + ridge * level) * w)
        else:
            gram = (diagonal.double() + ridge * level) * w
        square += gram
        away = x.double() - mean
        away = away.T if turned else away
        rest += away @ gram if full else away * gram
    moved = _solved(square, rest) if full else rest / torch.where(square > 0, square, 1.0)
    return (mean + (moved.T if turned else moved)).float()


def _solved(square: torch.Tensor, rest: torch.Tensor) -> torch.Tensor:
    """``rest @ square^-1`` of a symmetric matrix; its pseudoinverse where it is singular."""
    factor, info = torch.linalg.cholesky_ex(square)
    if not int(info):
        found = torch.cholesky_solve(rest.T, factor).T
        if torch.isfinite(found).all():
            return found
    values, vectors = torch.linalg.eigh(square)
    kept = values > 1e-12 * values[-1].abs()
    vectors = vectors[:, kept]
    least: torch.Tensor = (rest @ vectors / values[kept]) @ vectors.T
    return least
