"""A calibration item's forward, and what its likelihood is of."""

from __future__ import annotations

from typing import Any

import torch

from evomerge.calibration.encoding import Encoded, EncodedTensors, Item
from evomerge.errors import PoolError, reason_of
from evomerge.models.memory import out_of_memory


def forward(module: Any, item: Item) -> torch.Tensor:
    """The logits of one item, float32: of shape ``(1, tokens, words)``, or ``(1, classes)`` of a classifier.

    Raises:
        PoolError: the model does not take the item's tensors, or has no logits.
    """
    if isinstance(item, Encoded):
        found = module(input_ids=torch.tensor([item.ids], device=module.device))
    else:
        given = {name: torch.from_numpy(array)[None].to(module.device) for name, array in item.tensors}
        try:
            found = module(**{name: x.to(module.dtype) if x.is_floating_point() else x for name, x in given.items()})
        except Exception as error:  # a model's code raises what it likes
            if out_of_memory(error):
                raise
            shapes = ", ".join(f"{name} of shape {tuple(array.shape)}" for name, array in item.tensors)
            raise PoolError(
                f"{type(module).__name__} does not take {shapes} ({reason_of(error)})", "tensors that it is called with"
            ) from error
    logits: torch.Tensor | None = getattr(found, "logits", None)
    if logits is None:
        raise PoolError(f"{type(module).__name__} has no logits", "a model with a head")
    return logits.float()


def predicted(module: Any, item: Item, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """What an item's likelihood is of: logits of shape ``(predictions, choices)`` and the items' own labels.

    Labels are ``None`` where the item has none.

    Raises:
        PoolError: the model has no likelihood of such items.
    """
    if isinstance(item, Encoded) and logits.dim() == 3 and module.can_generate():
        ids = torch.tensor(item.ids, device=logits.device)
        return logits[0, item.start - 1 : -1], ids[item.start :]
    if logits.dim() == 2:
        label = item.label if isinstance(item, EncodedTensors) else None
        if label is not None and not 0 <= label < logits.shape[1]:
            raise PoolError(f"an item has label {label}", f"0 to {logits.shape[1] - 1}, the model's classes")
        return logits, None if label is None else torch.tensor([label], device=logits.device)
    what = "texts" if isinstance(item, Encoded) else "tensors"
    raise PoolError(
        f"{type(module).__name__} gives {what} no likelihood",
        "causal language models of texts; classifiers of tensors with labels, or with statistics.labels=sampled",
    )
