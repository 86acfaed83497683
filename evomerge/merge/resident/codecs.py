"""How the weights of a quantised model are kept: integers, eight-bit floats or NF4, each with its scales.

A codec writes a merged matrix into memory that is there already, and reads it back in the dtype of the model. What it
writes follows from the matrix alone, so that equal merges have equal bits whatever the model was before.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import torch

from evomerge.errors import ConfigError, nearest, reason_of
from evomerge.merge.cache.merged_slice import Shapes
from evomerge.merge.resident.codec_shapes import part_of, quantised_shapes

_LEAST = 2.0**-116
"""Of a row's largest weight: one over it is finite."""

_WORST = 0.15
"""Of a matrix: the norm of the error as a share of its own beyond which something is broken; NF4's is about 0.1."""


class Codec(Protocol):
    """Writes matrices of shape (out, in) in float32, bfloat16 or float16 as codes and scales, and reads them."""

    def shapes(self, shape: torch.Size) -> Shapes:
        """Shape and dtype of the codes and of the scales of a matrix."""

    def write(self, weight: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor) -> None:
        """Quantise a contiguous matrix into memory of these shapes."""

    def read(self, codes: torch.Tensor, scales: torch.Tensor, shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
        """The matrix that codes and scales stand for, in a dtype."""


class Int8:
    """Integers of 8 bits, each row with its largest absolute value: w = code * scale, scale = absmax / 127.

    The rows of LLM.int8() (Dettmers et al., 2022, arXiv:2208.07339, section 2.1), of the weights alone: activations
    stay as they are, so that an item's score does not depend on what else is in its batch. An error is absmax / 254 at
    most, before it is rounded to the model's dtype. NaN and infinities become codes without meaning: merges that have
    them are refused before.
    """

    def shapes(self, shape: torch.Size) -> Shapes:
        """A byte for each weight, a float32 for each row."""
        return quantised_shapes("int8", shape)

    def write(self, weight: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor) -> None:
        """Quantise a matrix row by row."""
        for own in _rows(weight):
            wide = weight[own].float()
            largest = wide.abs().amax(1, keepdim=True)
            torch.div(largest, 127, out=scales[own])
            codes[own] = (wide * (127 / largest.clamp_(min=_LEAST))).round_()

    def read(self, codes: torch.Tensor, scales: torch.Tensor, shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
        """The products, rounded once."""
        return _products(codes, scales, dtype)


class Fp8:
    """Floating-point numbers of 8 bits (E4M3; Micikevicius et al., 2022, arXiv:2209.05433), scaled row by row.

    w = code * scale, scale = absmax / 448, which is the largest such number. An error is a sixteenth of a weight, or
    2^-10 of its row's scale where that is more.
    """

    def shapes(self, shape: torch.Size) -> Shapes:
        """A byte for each weight, a float32 for each row."""
        return quantised_shapes("fp8", shape)

    def write(self, weight: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor) -> None:
        """Quantise a matrix row by row."""
        for own in _rows(weight):
            wide = weight[own].float()
            largest = wide.abs().amax(1, keepdim=True)
            torch.div(largest, 448, out=scales[own])
            scaled = (wide * (448 / largest.clamp_(min=_LEAST))).clamp_(-448, 448)
            codes[own] = scaled.to(torch.float8_e4m3fn).view(torch.uint8)

    def read(self, codes: torch.Tensor, scales: torch.Tensor, shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
        """The products, rounded once."""
        return _products(codes.view(torch.float8_e4m3fn), scales, dtype)


def codec_of(name: str, device: torch.device) -> Codec:
    """The codec of a name, once it has quantised a small matrix there.

    Args:
        name: ``int8``, ``nf4`` or ``fp8``.
        device: where weights are kept.

    Raises:
        ConfigError: there is no such codec; its library is not installed, or the device cannot do it.
    """
    makers: dict[str, Any] = {"int8": Int8, "nf4": _nf4, "fp8": Fp8}
    if name not in makers:
        raise ConfigError(f"evaluator.quantise is {name!r}", nearest(name, makers))
    codec: Codec = makers[name]()
    try:
        # Rows that end within a block of NF4, and blocks of several sizes.
        weight = (
            torch.arange(5 * 96.0, device=device).sin().view(5, 96) * torch.arange(1.0, 6.0, device=device)[:, None]
        )
        codes, scales = (torch.empty(each, dtype=dtype, device=device) for each, dtype in codec.shapes(weight.shape))
        codec.write(weight, codes, scales)
        off = float((codec.read(codes, scales, weight.shape, weight.dtype) - weight).norm() / weight.norm())
    except Exception as error:  # each backend raises what it likes
        raise _unable(name, device, reason_of(error, 160)) from error
    if not off < _WORST:
        raise _unable(name, device, f"a matrix comes back with an error of {off:.0%}")
    return codec


def _unable(name: str, device: torch.device, reason: str) -> ConfigError:
    others = "evaluator.quantise=int8 works on every device" if name != "int8" else "set evaluator.quantise=null"
    return ConfigError(f"evaluator.quantise is {name}, which does not work on {device} ({reason})", "", others)


def _nf4() -> Codec:
    from evomerge.merge.resident.nf4_codec import Nf4

    return Nf4()


def _rows(weight: torch.Tensor) -> Iterator[slice]:
    """Some rows at a time."""
    step = max(1, part_of(weight.device) // max(1, weight.shape[1]))
    for first in range(0, len(weight), step):
        yield slice(first, first + step)


def _products(codes: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    if dtype == torch.float32:
        return codes.to(dtype).mul_(scales)
    made = torch.empty(codes.shape, dtype=dtype, device=codes.device)
    for own in _rows(codes):
        made[own] = codes[own].float().mul_(scales[own])
    return made
