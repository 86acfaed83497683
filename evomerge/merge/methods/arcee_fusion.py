"""Arcee Fusion: take from a model what matters most of its difference from the base."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from evomerge.errors import PoolError
from evomerge.merge.methods.blocks import Number
from evomerge.merge.methods.registry import Context, merge_method
from evomerge.merge.methods.rows import blocks, inner, vectors


def _divergence(model: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
    """``KL(softmax(model) || softmax(base))`` of each row, float64."""
    p, q = (torch.log_softmax(x.double(), dim=-1) for x in (model, base))
    return inner(p.exp(), p - q).clamp_(min=0.0)


def _quartiles(values: torch.Tensor) -> list[Number]:
    """The elements of ranks ``floor(q (n - 1))`` for q of 1/4, 1/2 and 3/4, of flat values none of which is NaN.

    As float64; on an accelerator they stay there.
    """
    ranks = [int(q * (values.numel() - 1)) for q in (0.25, 0.5, 0.75)]
    if values.device.type == "cpu":
        ordered = np.partition(values.numpy(), ranks)
        return [float(ordered[rank]) for rank in ranks]
    ordered_there = torch.sort(values).values
    return [ordered_there[rank].double() for rank in ranks]


@merge_method(
    "arcee_fusion",
    summary="the base, with the model's values where they differ most and matter most",
    family="choices",
    base="required",
    idempotent=True,
    max_inputs=1,
)
def arcee_fusion(inputs: Sequence[torch.Tensor], base: torch.Tensor | None, *, context: Context) -> torch.Tensor:
    """The model's elements of importance at least median + 1.5 interquartile ranges, else the base's.

    The importance of an element is ``|theta - theta_0| KL(softmax(theta) || softmax(theta_0))``, the divergence that
    of its row. Quartiles are those of the whole tensor; mergekit estimates them from random samples of large ones.
    Arcee AI's method, without a paper. For taking what stands out in one model, without a number to choose.

    Raises:
        PoolError: values are NaN or infinite.
    """
    assert base is not None
    if not base.numel():
        return base.clone()
    model = inputs[0]
    importance = torch.empty_like(base, memory_format=torch.contiguous_format)
    a, b, out = vectors(model.contiguous()), vectors(base.contiguous()), vectors(importance)
    for part in blocks(out):
        divergence = _divergence(a[part], b[part])
        out[part] = (a[part] - b[part]).abs_().double().mul_(divergence.unsqueeze(1)).float()
    finite = torch.isfinite(importance).all()
    if finite.device.type == "cpu" and not finite:
        raise PoolError(
            "the model or the base: values that are NaN or infinite",
            "importances need finite values",
            "repair the model or leave it out",
        )
    first, median, third = _quartiles(importance.view(-1))
    threshold = median + 1.5 * (third - first)
    if isinstance(threshold, torch.Tensor):
        # What only an accelerator knows not to be finite is found in the result.
        return torch.where(importance >= threshold.float(), model, base).masked_fill_(~finite, torch.nan)
    return torch.where(importance >= float(np.float32(threshold)), model, base)
