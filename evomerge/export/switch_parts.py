"""A task's own part of a model in a file: masks packed as bits, factors, thin matrices.

The file is safetensors. Of a tensor ``NAME`` of the model it has, by the method of the switch:

- ``NAME|mask``: uint8, the bits of its elements in order, the first of a byte its highest, the last byte filled up
  with zeros;
- ``NAME|factor``: float64, one number;
- ``NAME|b`` and ``NAME|a``: float32, a product to add;
- ``NAME|whole``: the task's own tensor, in the model's dtype.

A tensor with none of these is the shared model's. The header says ``evomerge_switch`` (the version), ``task`` and
``method``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from evomerge.export.shards import Declared
from evomerge.merge.methods.low_rank import Factors
from evomerge.merge.methods.switches import TensorSwitch, twin_rank

FOLDER = "switches"
VERSION = "1"


def part_files(tasks: Sequence[str]) -> dict[str, str]:
    """Names of the files by task: the task's own, unless that is no name of a file or but for case another's."""
    found: dict[str, str] = {}
    taken: set[str] = set()
    for number, task in enumerate(tasks):
        name = task if re.fullmatch(r"\w[\w.-]{0,99}", task, re.ASCII) and task.lower() not in taken else f"-{number}"
        taken.add(name.lower())
        found[task] = f"{name}.safetensors"
    return found


def declared_part(
    name: str, method: str, values: Mapping[str, Any], shape: tuple[int, ...], dtype: torch.dtype
) -> list[Declared]:
    """What `packed` will give for a tensor.

    Args:
        name, shape: of the tensor.
        method: of the switch.
        values: its arguments (`registry.call_values`), of the shared model and the task.
        dtype: of the model.
    """
    if method in ("emr_switch", "tall_switch"):
        mask = Declared(f"{name}|mask", torch.uint8, (-(-math.prod(shape) // 8),))
        scaled = method == "emr_switch" and values["rescale"][1]
        return [mask, *([Declared(f"{name}|factor", torch.float64, (1,))] if scaled else [])]
    if values["rank"][1] == 0:
        return []
    keep = twin_rank(shape, values["rank"][1])
    if keep is None:
        return [Declared(f"{name}|whole", dtype, shape)]
    rows, columns = shape
    return [Declared(f"{name}|b", torch.float32, (rows, keep)), Declared(f"{name}|a", torch.float32, (keep, columns))]


def packed(name: str, switch: TensorSwitch, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """A tensor's switch as tensors of the file."""
    found: dict[str, torch.Tensor] = {}
    if switch.mask is not None:
        found["mask"] = torch.from_numpy(np.packbits(switch.mask.cpu().reshape(-1).numpy()))
        if switch.factor is not None:
            found["factor"] = torch.tensor([float(switch.factor)], dtype=torch.float64)
    elif switch.low_rank is not None:
        found |= {"b": switch.low_rank.b.contiguous(), "a": switch.low_rank.a.contiguous()}
    elif switch.whole is not None:
        found["whole"] = switch.whole.to(dtype)
    return {f"{name}|{kind}": tensor for kind, tensor in found.items()}


def unpacked(name: str, tensors: Mapping[str, torch.Tensor], shape: tuple[int, ...]) -> TensorSwitch:
    """A tensor's switch from those of its tensors of the file that are there."""
    own = {
        kind: tensors[f"{name}|{kind}"] for kind in ("mask", "factor", "b", "a", "whole") if f"{name}|{kind}" in tensors
    }
    if "mask" in own:
        bits = np.unpackbits(own["mask"].numpy(), count=math.prod(shape)).astype(bool)
        factor = float(own["factor"][0]) if "factor" in own else None
        return TensorSwitch(torch.from_numpy(bits).view(shape), factor)
    if "a" in own:
        return TensorSwitch(low_rank=Factors(own["b"], own["a"]))
    return TensorSwitch(whole=own["whole"].float()) if "whole" in own else TensorSwitch()
