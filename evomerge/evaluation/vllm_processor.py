"""What vLLM (0.32) lacks on processors, put right where it is started."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch


def mend_scan() -> None:
    """Let vLLM look through objects of llvmlite, which merges are compiled with: their ``__dict__`` is no mapping."""
    from vllm.triton_utils import dispatcher

    def plain_vars(value: Any) -> Mapping[str, Any]:
        found = vars(value)
        return found if isinstance(found, Mapping) else {}

    dispatcher.vars = plain_vars  # found before the builtin


def mend_adapters() -> None:
    """Multiply each adapter with all of its tokens at once.

    vLLM's own functions, written for comparison with those of GPUs, copy an adapter's matrix for every token, and take
    the last adapter's for tokens that have none. To be used where nothing is compiled.
    """
    from vllm.lora.ops.torch_ops import lora_ops
    from vllm.lora.punica_wrapper import punica_cpu

    def shrink(x: Any, weights: Any, output: Any, indices: Any, scaling: float = 1.0) -> None:
        found = grouped_products(x, weights, indices, output.dtype)
        output[:, : found.shape[1]] = scaling * found

    def expand(x: Any, weights: Any, output: Any, indices: Any, add_inputs: bool = True) -> None:
        found = grouped_products(x, weights, indices, output.dtype)
        columns = min(found.shape[1], output.shape[1])  # which may be filled up differently
        _put(output[: found.shape[0], :columns], found[: output.shape[0], :columns], add_inputs)

    def expand_slice(
        x: Any, weights: Any, output: Any, indices: Any, offset: int, size: int, add_inputs: bool = True
    ) -> None:
        _put(output[:, offset : offset + size], grouped_products(x, weights, indices, output.dtype), add_inputs)

    for name, function in (("bgmv_shrink", shrink), ("bgmv_expand", expand), ("bgmv_expand_slice", expand_slice)):
        for module in (lora_ops, punica_cpu):  # the former's other functions call these
            setattr(module, name, function)


def _put(output: torch.Tensor, values: torch.Tensor, add: bool) -> None:
    output[:] = output + values if add else values


def grouped_products(x: torch.Tensor, weights: torch.Tensor, indices: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Each row of `x` times the transposed matrix of its adapter; zeros for rows that have none.

    Args:
        x: [tokens, columns].
        weights: [adapters, rows, columns], or [adapters, 1, rows, columns].
        indices: [tokens], the adapter of each; below 0 for none.
        dtype: that is computed in.

    Returns:
        [tokens, rows].
    """
    weights = weights.squeeze(1) if weights.dim() == 4 else weights
    found = torch.zeros(x.shape[0], weights.shape[1], dtype=dtype)
    for index in indices.unique().tolist():
        if index >= 0:
            rows = (indices == index).nonzero().squeeze(1)
            found[rows] = x[rows].to(dtype) @ weights[index].to(dtype).T
    return found
