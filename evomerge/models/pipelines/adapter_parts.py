"""What an adapter adds to one tensor, from its parts: LoRA's product, LoHa's of two, LoKr's of blocks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from evomerge.errors import PoolError

_DOWN = ("lora_A.weight", "lora_down.weight", "lora.down.weight", "lora_A.default.weight")
_UP = ("lora_B.weight", "lora_up.weight", "lora.up.weight", "lora_B.default.weight")


@dataclass(frozen=True)
class Delta:
    """What is added to a tensor.

    Attributes:
        parts: as stored: ``down`` and ``up`` of LoRA (Hu et al. 2021, arXiv 2106.09685), ``hada_*`` of LoHa (Hyeon-Woo
            et al. 2021, arXiv 2108.06098, prop. 1), or ``lokr_*`` of LoKr (Yeh et al. 2023, arXiv 2309.14859, sec. 3).
        scale: alpha over the rank.
    """

    parts: Mapping[str, torch.Tensor]
    scale: float

    @property
    def is_product(self) -> bool:
        """Whether it is one of two matrices."""
        return "up" in self.parts

    def compute(self, shape: tuple[int, ...]) -> torch.Tensor:
        """The difference in float32, of the tensor's shape."""
        parts = {name: own.to(torch.float32) for name, own in self.parts.items()}
        if "up" in parts:
            found = parts["up"].flatten(1) @ parts["down"].flatten(1)
        elif "hada_w1_a" in parts:
            found = _hada(parts, "1") * _hada(parts, "2")
        else:
            one, two = _kron(parts, "1"), _kron(parts, "2")
            found = torch.kron(one.reshape(*one.shape, *(1,) * (two.dim() - one.dim())), two)
        return (found * self.scale).reshape(shape)


def _hada(parts: Mapping[str, torch.Tensor], side: str) -> torch.Tensor:
    """One of LoHa's two products; with a core tensor of a convolution, in Tucker's form."""
    a, b, core = parts[f"hada_w{side}_a"], parts[f"hada_w{side}_b"], parts.get(f"hada_t{side}")
    return a @ b if core is None else torch.einsum("i j k l, j r, i p -> p r k l", core, b, a)


def _kron(parts: Mapping[str, torch.Tensor], side: str) -> torch.Tensor:
    """One of LoKr's two factors: whole, a product, or in Tucker's form."""
    whole = parts.get(f"lokr_w{side}")
    if whole is not None:
        return whole
    a, b, core = parts[f"lokr_w{side}_a"], parts[f"lokr_w{side}_b"], parts.get("lokr_t2" if side == "2" else "")
    return a @ b if core is None else torch.einsum("i j k l, i p, j r -> p r k l", core, a, b)


def delta_of(
    file: Path, module: str, given: Mapping[str, torch.Tensor], scale: float | None, shape: tuple[int, ...]
) -> Delta:
    """What the parts of a module are.

    Args:
        file, module: for messages.
        given: by name in the file.
        scale: by the adapter's settings; ``None`` where ``alpha`` among the parts says it, or nothing does: 1.
        shape: of the tensor that is changed.

    Raises:
        PoolError: parts that are none of these kinds, or do not fit together or to the tensor.
    """
    parts = {("down" if name in _DOWN else "up" if name in _UP else name): own for name, own in given.items()}
    alpha = parts.pop("alpha", None)
    kind = "up" if "up" in parts else "hada_w1_a" if "hada_w1_a" in parts else "lokr_w"
    known = {"up": ("up", "down"), "hada_w1_a": ("hada_",), "lokr_w": ("lokr_",)}[kind]
    odd = next((name for name in parts if not name.startswith(known)), None)
    if odd is not None or not parts:
        raise PoolError(
            f"{file}: module {module!r} has {odd or 'alpha alone'}", "parts of LoRA, LoHa or LoKr", "fuse it first"
        )
    if alpha is not None:
        scale = float(alpha) / _rank(parts)
    if kind == "lokr_w" and not any(name.endswith("_b") for name in parts):
        scale = (
            scale if alpha is None and scale is not None else 1.0
        )  # LyCORIS takes alpha for the rank of whole factors
    delta = Delta(parts, 1.0 if scale is None else scale)
    try:
        with torch.device("meta"):
            Delta({name: torch.empty(own.shape) for name, own in parts.items()}, 1.0).compute(shape)
    except (RuntimeError, KeyError, IndexError, ValueError) as error:
        raise PoolError(
            f"{file}: parts of module {module!r} do not make a tensor of shape {list(shape)} ({str(error)[:100]})"
        ) from error
    if not math.isfinite(delta.scale):
        raise PoolError(f"{file}: module {module!r} has scale {delta.scale}", "a finite number")
    return delta


def _rank(parts: Mapping[str, torch.Tensor]) -> int:
    """The rank that alpha is divided by."""
    for name in ("down", "hada_w1_b", "lokr_w1_b", "lokr_w2_b"):
        if name in parts:
            return int(parts[name].shape[0])
    return 1
