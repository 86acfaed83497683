"""Statistics of data that methods read: squared gradients of weights, inner products of what weights read, and more.

`evomerge.calibration` makes them. A folder holds those of one model, on one set of items, of one kind:
``statistics.json``, written last, and a safetensors file for every slice.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from evomerge.errors import PoolError
from evomerge.models.checkpoints.headers import read_json
from evomerge.recipes.slices import ModelRef

INDEX = "statistics.json"
FORMAT = 1


@dataclass(frozen=True)
class Statistic:
    """What data says of one tensor.

    Attributes:
        values: float32. Of kind ``fisher``, mean squares of gradients, flat, of the tensor's number of elements; of
            ``curvature`` those or Adam's second moments; of ``sensitivity``, the middle one of the items' products of
            gradient and weight; of ``hessian``, second derivatives, of either sign. Of kind ``gram``, of shape
            ``(n, n)``, the mean of ``x x^T`` over tokens, where ``x`` of n numbers is what the tensor is multiplied
            with, or its diagonal, of shape ``(n,)``; of ``activation``, of that shape, the mean of ``x``. Of tensors of
            a mixture of e experts: of kind ``routing``, of shape ``(2, e)``, which share of all choices falls on each
            expert, and which share of the router's weights; of ``expert_outputs``, of shape ``(e, e)``, means over
            tokens of the inner products of what two experts give.
        axis: of the tensor, along which it is multiplied with ``x``: 1 for ``y = W x``. Of a mixture's tensors the
            number of the expert that it is of, or -1 where its first dimension goes over all of them.
        mean: of all of the model's squared gradients or second moments, or of its second derivatives with 0 in place of
            negative ones, which gives them a unit.
    """

    values: torch.Tensor
    axis: int = 1
    mean: float = 1.0

    def part(self, at: slice) -> Statistic:
        """That of some elements, of kinds with a number for each."""
        return replace(self, values=self.values[at])

    def to(self, device: torch.device) -> Statistic:
        """The same on a device."""
        return replace(self, values=self.values.to(device))


class ModelStatistics:
    """The statistics of one model, of one kind.

    They are looked for when they are asked for: a search is set up before they are made.

    Args:
        root: the folder of all statistics.
        kind: one of `calibration.KINDS`.
        key: ``sha256:...``: of the model's content, the data, and how they are made.

    Attributes:
        folder: of these.
    """

    def __init__(self, root: Path, kind: str, key: str) -> None:
        self.kind, self.key = kind, key
        self.folder = root / key.removeprefix("sha256:")

    def __reduce__(self) -> tuple[Any, ...]:
        return ModelStatistics, (self.folder.parent, self.kind, self.key)

    @property
    def complete(self) -> bool:
        """Whether all of them have been made."""
        return (self.folder / INDEX).is_file()

    @cached_property
    def index(self) -> Mapping[str, Any]:
        """What ``statistics.json`` says.

        Raises:
            PoolError: it cannot be read, or is of another format.
        """
        file = self.folder / INDEX
        content = read_json(file, "what describes the statistics")
        if content.get("evomerge_statistics") != FORMAT or not isinstance(content.get("tensors"), dict):
            raise PoolError(
                f"{file} is not of format {FORMAT}", "what this version of evomerge writes", f"remove {self.folder}"
            )
        return content

    def has(self, name: str) -> bool:
        """Whether data says something of a tensor, by its name in the checkpoint."""
        return name in self.index["tensors"]

    def entry(self, name: str) -> str:
        """Where a tensor's statistic lies: tensors that read the same share one."""
        return str(self.index["tensors"][name]["entry"])

    def axis(self, name: str) -> int:
        """What a tensor's own axis is, also where it shares a statistic; as of `Statistic`."""
        return int(self.index["tensors"][name]["axis"])

    def nbytes(self, name: str) -> int:
        """Bytes of a tensor's statistic."""
        size = 4
        for side in self.index["tensors"][name]["shape"]:
            size *= int(side)
        return size

    def read(self, name: str) -> Statistic | None:
        """A tensor's statistic; ``None`` where there is none.

        Raises:
            PoolError: its file is gone or damaged.
        """
        from safetensors import SafetensorError, safe_open

        known = self.index["tensors"].get(name)
        if known is None:
            return None
        file = self.folder / str(known["file"])
        try:
            with safe_open(str(file), "pt") as content:
                values = content.get_tensor(str(known["entry"]))
        except (OSError, SafetensorError) as error:
            raise PoolError(
                f"{file} cannot be read ({error})",
                "the file that evomerge calibrate wrote",
                f"remove {self.folder} and make the statistics again",
            ) from error
        if values.dtype != torch.float32 or list(values.shape) != list(known["shape"]):
            raise PoolError(f"{file}: {name!r} is not what {INDEX} says", "", f"remove {self.folder}")
        return Statistic(values, self.axis(name), float(self.index["mean"]))


def default_folder() -> Path:
    """Where statistics are kept: ``$EVOMERGE_CACHE/statistics``, or evomerge's folder in the user's cache."""
    own = os.environ.get("EVOMERGE_CACHE")
    if own:
        return Path(own) / "statistics"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "evomerge" / "statistics"


def pool_words(refs: Sequence[tuple[str, ModelRef]]) -> tuple[str, ...]:
    """The overrides that make these the models of a pool."""
    models = ", ".join(f"{name}: {json.dumps(ref.address)}" for name, ref in refs)
    return f"pool.models={{{models}}}", "pool.base=null"
