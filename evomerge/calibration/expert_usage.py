"""What a mixture's experts do on texts: how many tokens each is sent, and how alike routers and outputs are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from evomerge.calibration.encoding import Item
from evomerge.calibration.forwards import forward
from evomerge.errors import FitnessError
from evomerge.models.architecture.mixtures import Mixture


@dataclass(frozen=True)
class Usage:
    """What the experts of a layer do.

    Attributes:
        counts: tokens that each was sent, of shape ``(experts,)``.
        routed: cosines of the router's logits over all tokens, of shape ``(experts, experts)``.
        outputs: means over all tokens of the cosines of the experts' outputs, of that shape; ``None`` unless asked for.
    """

    counts: NDArray[np.float64]
    routed: NDArray[np.float64]
    outputs: NDArray[np.float64] | None = None


def expert_usage(
    module: Any, mixtures: Sequence[Mixture], items: Sequence[Item], *, outputs: bool = False
) -> dict[int, Usage]:
    """Run a model over items and look at its experts.

    Args:
        module: a transformers model, on any device.
        mixtures: of the module.
        items: texts or tensors, as calibration encodes them.
        outputs: compute every expert on every token, which takes as long as so many experts do.

    Returns:
        By layer.

    Raises:
        FitnessError: there are no items.
    """
    if not items:
        raise FitnessError("there are no items to see experts at work on", "a text at least")
    sums = {own.layer: _Sums.zero(own.count) for own in mixtures}
    handles = [
        module.get_submodule(own.experts).register_forward_pre_hook(
            _Watching(module.get_parameter(own.router), sums[own.layer], outputs)
        )
        for own in mixtures
    ]
    try:
        with torch.no_grad():
            for item in items:
                forward(module, item)
    finally:
        for handle in handles:
            handle.remove()
    return {layer: own.usage(outputs) for layer, own in sums.items()}


@dataclass
class _Sums:
    """Of a layer, over the tokens seen."""

    counts: torch.Tensor
    logits: torch.Tensor
    cosines: torch.Tensor
    tokens: int = 0

    @classmethod
    def zero(cls, count: int) -> _Sums:
        square = torch.zeros((count, count), dtype=torch.float64)
        return cls(torch.zeros(count, dtype=torch.float64), square, square.clone())

    def usage(self, outputs: bool) -> Usage:
        norms = self.logits.diagonal().clamp(min=1e-300).sqrt()
        routed = self.logits / norms[:, None] / norms
        return Usage(
            self.counts.numpy(),
            routed.clamp(-1, 1).numpy(),
            (self.cosines / max(self.tokens, 1)).numpy() if outputs else None,
        )


@dataclass
class _Watching:
    """Called with what a layer's experts are: ``(tokens, width)``, and by token the chosen experts and weights."""

    router: torch.Tensor
    sums: _Sums
    outputs: bool
    inside: bool = field(default=False)

    def __call__(self, experts: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        if self.inside:  # called below
            return
        hidden, chosen = given[0], given[1]
        count = len(self.sums.counts)
        self.sums.counts += torch.bincount(chosen.flatten().cpu(), minlength=count)[:count].double()
        logits = functional.linear(hidden, self.router.to(hidden.dtype)).double().cpu()
        self.sums.logits += logits.T @ logits
        self.sums.tokens += len(hidden)
        if not self.outputs:
            return
        self.inside = True
        try:
            every = []
            for expert in range(count):
                places = torch.full((len(hidden), 1), expert, dtype=chosen.dtype, device=chosen.device)
                made = experts(hidden, places, torch.ones_like(places, dtype=hidden.dtype))
                every.append(functional.normalize(made.double(), dim=-1).cpu())
        finally:
            self.inside = False
        stacked = torch.stack(every)
        self.sums.cosines += torch.einsum("itd,jtd->ij", stacked, stacked)


def counts_of(usage: Mapping[int, Usage]) -> dict[int, NDArray[np.float64]]:
    """The counts alone, by layer."""
    return {layer: own.counts for layer, own in usage.items()}
