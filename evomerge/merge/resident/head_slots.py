"""The head of a resident model, where sources have heads of their own: one of them at a time."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import nn

from evomerge.models.pool import Pool

_LABELS = ("id2label", "label2id", "problem_type")
"""What a configuration says of a head."""


class HeadSlots:
    """The module's places for a head, which may change its shape; every head is read and moved once.

    Args:
        module: as `from_pretrained` loaded it, with the head of the model that gives the configuration.
        pool: the source models.
        dtype: of the module's weights.
    """

    def __init__(self, module: Any, pool: Pool, dtype: torch.dtype) -> None:
        self._module, self._pool, self._dtype = module, pool, dtype
        self._task: str | None = None
        self._known: dict[str, dict[str, torch.Tensor]] = {}
        state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        self._places = {} if pool.heads is None else {place: state[place] for place in pool.heads.heads.tensors}

    def put(self, task: str | None) -> None:
        """Let the module have the head of a task, and its configuration the task's labels."""
        if task is None or task == self._task or self._pool.heads is None:
            return
        if task not in self._known:
            read = self._pool.read_head(task).items()
            self._known[task] = {p: self._moved(p, t) for p, t in read}
        for place, tensor in self._known[task].items():
            self._places[place].data = tensor
            parent = self._module.get_submodule(place.rpartition(".")[0])
            if isinstance(parent, nn.Linear) and place.endswith(".weight"):
                parent.out_features, parent.in_features = tensor.shape
        own, config = self._pool.heads.configs[task], self._module.config
        for key in _LABELS:
            setattr(config, key, deepcopy(getattr(own, key, None)))
        for part in self._module.modules():
            if isinstance(getattr(part, "num_labels", None), int):
                part.num_labels = config.num_labels
        self._task = task

    def _moved(self, place: str, tensor: torch.Tensor) -> torch.Tensor:
        """A copy where the module's is; floats in the module's dtype."""
        dtype = self._dtype if tensor.is_floating_point() else tensor.dtype
        return tensor.to(self._places[place].device, dtype, copy=True)

    def empty(self) -> None:
        """Hold nothing."""
        for tensor in self._places.values():
            tensor.data = tensor.new_empty(0)
        self._known.clear()
        self._task = None
