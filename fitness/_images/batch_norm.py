"""Batch-norm statistics of merged weights: those of the activations that these weights give, not a mix of others'."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from evomerge.errors import FitnessError


def batch_norms_of(module: torch.nn.Module) -> dict[str, _BatchNorm]:
    """A module's batch norms with statistics, by name."""
    return {
        name: own
        for name, own in module.named_modules()
        if isinstance(own, _BatchNorm) and own.track_running_stats and own.running_mean is not None
    }


@torch.no_grad()
def recomputed(module: Any, batches: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    """The statistics that a module's batch norms have of images; the module stays as it is.

    Every batch norm normalises each batch by the batch's own mean and variance, and their averages over the batches,
    by their sizes, are its statistics, as when training goes on for an epoch at a rate of 0 with ``momentum=None``
    (Izmailov et al., arXiv 1803.05407, section 3; for merged models Jordan et al., REPAIR, arXiv 2211.08403). Variances
    are unbiased. What came before does not matter: equal weights, equal statistics.

    Args:
        module: with its weights in place.
        batches: pixels, of shape (images, channels, height, width), as the module takes them.

    Returns:
        By the names of the module's buffers new means and variances, in the buffers' dtypes.

    Raises:
        FitnessError: statistics that are not finite.
    """
    norms = batch_norms_of(module)
    was = {
        name: (own.running_mean, own.running_var, own.num_batches_tracked, own.momentum) for name, own in norms.items()
    }
    sums: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    total, weight, hooks = sum(len(batch) for batch in batches), 0.0, []

    def note(name: str) -> Any:
        def hook(own: Any, _given: Any, _out: Any) -> None:
            for target, found in zip(sums[name], (own.running_mean, own.running_var), strict=True):
                target.add_(found.double(), alpha=weight)

        return hook

    training = module.training
    module.eval()
    try:
        for name, own in norms.items():
            mean, var = (torch.zeros_like(tensor) for tensor in was[name][:2] if tensor is not None)
            sums[name] = mean.double(), var.double()
            # With a momentum of 1 they are those of the last batch.
            own.running_mean, own.running_var, own.num_batches_tracked, own.momentum = mean, var, None, 1.0
            own.train()
            hooks.append(own.register_forward_hook(note(name)))
        for batch in batches:
            weight = len(batch) / total
            module(pixel_values=batch)
    finally:
        for handle in hooks:
            handle.remove()
        for name, own in norms.items():
            own.running_mean, own.running_var, own.num_batches_tracked, own.momentum = was[name]
        module.train(training)
    found = {}
    for name, own in norms.items():
        for part, value in zip(("running_mean", "running_var"), sums[name], strict=True):
            if not torch.isfinite(value).all():
                raise FitnessError(f"the batch norm {name} has statistics that are not finite", "finite weights")
            found[f"{name}.{part}"] = value.to(getattr(own, part).dtype)
    return found
