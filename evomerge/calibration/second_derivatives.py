"""The diagonal of the Hessian of the loss, estimated by products of the Hessian with random signs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from evomerge.calibration.encoding import Item
from evomerge.calibration.losses import generator_of, loss_of
from evomerge.calibration.measurement import Measurement
from evomerge.calibration.places import Place
from evomerge.errors import PoolError, reason_of
from evomerge.models.memory import out_of_memory


class HessianSums:
    """Sums over items of ``z * (H z)``, where ``H`` is the Hessian of an item's loss and ``z`` holds random signs.

    Hutchinson's estimate of the diagonal (Bekas, Kokiopoulou and Saad 2007; AdaHessian, arXiv 2006.00719): the mean
    over ``z`` is ``diag(H)``, and one ``z`` for an item, of all weights together, errs at an element by what its row
    holds off the diagonal. So the mean over items of one draw each estimates the diagonal of the mean loss's Hessian.
    That is the Hessian itself, and may be negative; the squared gradients of labels that the model draws are the
    diagonal of its positive part, the generalised Gauss-Newton matrix.

    Memory, beside the sums: the gradients of all weights, the signs, and the graph of a forward and backward of one
    item.

    Args:
        module: whose parameters they are.
        places: of the parameters that are summed.
        how: says which labels, and the seed of the signs.
    """

    def __init__(self, module: Any, places: Sequence[Place], how: Measurement) -> None:
        self._module, self._how = module, how
        self.shared: dict[str, str] = {}
        known = dict(module.named_parameters(remove_duplicate=False))
        self._places = {p.name: known[p.parameter] for p in places}
        self.sums = {
            p.name: torch.zeros(p.shape, device=known[p.parameter].device, dtype=torch.float32) for p in places
        }
        self._parameters = [own.requires_grad_(True) for own in module.parameters() if own.is_floating_point()]

    def add(self, number: int, item: Item) -> None:
        """Add one item's draw.

        Raises:
            PoolError: the model has no likelihood of such items, or some of its code no second derivatives.
        """
        generator = generator_of(f"signs {self._how.seed} {number}")
        # Of all parameters, whichever are asked for: the estimate depends on what else is drawn.
        signs = [_signs(own, generator) for own in self._parameters]
        wanted = list({id(own): own for own in self._places.values()}.values())
        try:
            with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):  # others have no second derivatives
                loss = loss_of(self._module, item, self._how, number)
                gradients = torch.autograd.grad(loss, self._parameters, create_graph=True, allow_unused=True)
                pairs = [(g, z) for g, z in zip(gradients, signs, strict=True) if g is not None and g.requires_grad]
                product = torch.stack([(g * z).sum() for g, z in pairs]).sum()
                found = torch.autograd.grad(product, wanted, allow_unused=True)
        except RuntimeError as error:
            if out_of_memory(error):
                raise
            raise PoolError(
                f"{type(self._module).__name__} has no second derivatives ({reason_of(error)})",
                "models whose every operation can be derived twice",
                "take squared gradients instead: statistics.kinds=[fisher] statistics.labels=sampled",
            ) from error
        second = {id(own): h for own, h in zip(wanted, found, strict=True) if h is not None}
        drawn = {id(own): z for own, z in zip(self._parameters, signs, strict=True)}
        for name, own in self._places.items():
            if id(own) in second:
                self.sums[name] += (second[id(own)].detach() * drawn[id(own)]).reshape(-1).float()

    def statistic(self, name: str, items: Sequence[Item]) -> torch.Tensor:
        """The mean over items."""
        return self.sums[name] / len(items)

    def close(self) -> None:
        """Leave the module without gradients."""
        for parameter in self._module.parameters():
            parameter.requires_grad_(False)


def _signs(like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """1 or -1 for every element, each as likely."""
    found = torch.randint(0, 2, like.shape, generator=generator, dtype=torch.int8)
    return found.to(like.device, like.dtype).mul_(2).sub_(1)
