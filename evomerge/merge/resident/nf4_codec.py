"""NF4 as bitsandbytes computes it, on processors and GPUs. Only this module imports bitsandbytes."""

from __future__ import annotations

import logging

import torch

from evomerge.errors import ConfigError, reason_of
from evomerge.merge.cache.merged_slice import Shapes
from evomerge.merge.resident.codec_shapes import BLOCK, part_of, quantised_shapes

# It warns of a faster product that could be downloaded and is not used here.
_LOG = logging.getLogger("bitsandbytes.backends.cpu.ops")
_LOG.setLevel(logging.ERROR)
try:
    from bitsandbytes import functional
except Exception as error:  # a library of another platform raises what it likes
    raise ConfigError(
        f"evaluator.quantise is nf4, and bitsandbytes cannot be imported ({reason_of(error, 160)})",
        "an environment with bitsandbytes",
        "pip install 'evomerge[quantise]', or set evaluator.quantise=int8, which needs no library",
    ) from error


class Nf4:
    """The 16 quantiles of a normal distribution, two to a byte, scaled by blocks of 64 weights (QLoRA, Dettmers et al.,
    2023, arXiv:2305.14314, section 3 and appendix E), without double quantisation.

    The weights are those of a model that transformers loads with ``load_in_4bit`` and ``bnb_4bit_quant_type=nf4``.
    """

    def shapes(self, shape: torch.Size) -> Shapes:
        """Half a byte for each weight, a float32 for each block, the last of which may be filled up."""
        return quantised_shapes("nf4", shape)

    def write(self, weight: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor) -> None:
        """Quantise a matrix block by block."""
        weights, flat, step = weight.view(-1), codes.view(-1), part_of(weight.device)
        flat[weights.numel() // 2 :] = 0  # of a last block that is not full
        for first in range(0, weights.numel(), step):
            given = weights[first : first + step]
            made, state = functional.quantize_4bit(given, blocksize=BLOCK, quant_type="nf4")
            flat[first // 2 : first // 2 + made.numel()].copy_(made.view(-1))
            scales[first // BLOCK : first // BLOCK + len(state.absmax)].copy_(state.absmax)

    def read(self, codes: torch.Tensor, scales: torch.Tensor, shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
        """The matrix."""
        # As rows of one block each: on processors bitsandbytes 0.50.2 gives wrong numbers where rows end within blocks.
        rows = torch.Size((len(scales), BLOCK))
        state = functional.QuantState(scales, shape=rows, dtype=dtype, blocksize=BLOCK, quant_type="nf4")
        found: torch.Tensor = functional.dequantize_4bit(codes.view(-1, 1), state)
        return found.view(-1)[: shape.numel()].view(shape)
